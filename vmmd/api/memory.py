"""Host memory, what memslots point into, and guest memory, what vCPUs see through memslots: models and methods."""

from pydantic import Field

from vmmd.api.method import Method
from vmmd.api.types import U32, Base64, ChangeOptions, GateOptions, Hex64, Result, U64In, VmParams

_PAGES = "a multiple of 4096"


class MapHostMemoryParams(VmParams, GateOptions, ChangeOptions):
    """How much memory to map."""

    size: U64In = Field(description=f"Bytes to map, {_PAGES}; counts against the VM's and the daemon's limit.")
    name: str | None = Field(default=None, min_length=1, max_length=64, description="A name for people.")
    sparse: bool = Field(
        default=False,
        strict=True,
        description="Count only the pages that are touched, as they are, and not the size; the sizes have a limit of "
        "their own, limits.sparse_mapping_bytes.",
    )


class MapHostMemoryResult(Result):
    """Where it lies."""

    userspace_addr: Hex64 = Field(
        description="The first byte's address in the VM's own host address space; zeroed pages."
    )


class UnmapHostMemoryParams(VmParams, GateOptions, ChangeOptions):
    """Which pages go: any whole pages, across mappings too."""

    userspace_addr: U64In = Field(description=f"The first byte's address, {_PAGES}.")
    size: U64In = Field(description=f"Bytes to unmap, {_PAGES}.")


class ReadHostMemoryParams(VmParams, GateOptions):
    """Which bytes of host memory to read."""

    userspace_addr: U64In = Field(description="The first byte's address in the VM's own host address space.")
    length: U32 = Field(description="Bytes to read.")


class WriteHostMemoryParams(VmParams, GateOptions, ChangeOptions):
    """Which bytes to write to host memory; no dirty bit is set."""

    userspace_addr: U64In = Field(description="The first byte's address in the VM's own host address space.")
    data: Base64 = Field(description="The bytes, base64.")


class ReadGuestMemoryParams(VmParams, GateOptions):
    """Which bytes of guest memory to read."""

    guest_phys_addr: U64In = Field(description="The first byte's guest physical address.")
    length: U32 = Field(description="Bytes to read.")


class WriteGuestMemoryParams(VmParams, GateOptions, ChangeOptions):
    """Which bytes to write to guest memory; dirty bits are set where the slot logs."""

    guest_phys_addr: U64In = Field(description="The first byte's guest physical address.")
    data: Base64 = Field(description="The bytes, base64.")


class MemoryResult(Result):
    """The bytes that were read."""

    data: Base64 = Field(description="The bytes, base64.")


_NO_ROOM = "The bytes have no room in the reply; ask for less at a time."

_UNMAPPED = "A page of the range is not mapped; nothing was read or written."

ROWS = (
    Method(
        "vm.map_host_memory",
        MapHostMemoryParams,
        MapHostMemoryResult,
        "Map zeroed host memory for memslots to point into; the daemon chooses the address.",
        changes=True,
        errors={
            "EINVAL": "`size` is 0 or no multiple of 4096.",
            "ENOMEM": "The VM's or the daemon's limit of memory is reached, or no addresses are left.",
        },
    ),
    Method(
        "vm.unmap_host_memory",
        UnmapHostMemoryParams,
        None,
        "Unmap whole pages; once it has returned, no vCPU reaches them.",
        changes=True,
        errors={
            "EINVAL": "The range is empty, is not of whole pages, or leaves the userspace addresses.",
        },
    ),
    Method(
        "vm.read_host_memory",
        ReadHostMemoryParams,
        MemoryResult,
        "Read host memory by its userspace address.",
        errors={"EFAULT": _UNMAPPED, "E2BIG": _NO_ROOM},
    ),
    Method(
        "vm.write_host_memory",
        WriteHostMemoryParams,
        None,
        "Write host memory by its userspace address; never marks a page dirty.",
        changes=True,
        errors={"EFAULT": _UNMAPPED, "ENOMEM": "A sparse mapping's page would exceed the limit of memory."},
    ),
    Method(
        "vm.read_guest_memory",
        ReadGuestMemoryParams,
        MemoryResult,
        "Read guest memory through the memslots; the whole range is checked first.",
        errors={"EFAULT": "A page of the range has no memslot, or its memslot no mapping.", "E2BIG": _NO_ROOM},
    ),
    Method(
        "vm.write_guest_memory",
        WriteGuestMemoryParams,
        None,
        "Write guest memory through the memslots; the whole range is checked first, and pages are marked dirty.",
        changes=True,
        errors={
            "EFAULT": "A page of the range has no memslot or a read-only one, or its memslot no mapping.",
            "ENOMEM": "A sparse mapping's page would exceed the limit of memory.",
        },
    ),
)
