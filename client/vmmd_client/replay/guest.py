"""The guest that notices: vCPUs that walk over memory, know what it has to hold, and count what they find otherwise.

`data/walk.s` is its program and says how it checks. Here is what goes around it: where code, page lists and counters
lie, which registers a vCPU starts with, and how the counters are read. The slots for these are the guest's own; whoever
replays updates leaves them alone.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from ..connection import Client
from ..slots.memslots import MemFlag
from ..vm import Vm
from .layout import LayoutError

PAGE_SIZE = 4096
"""Bytes of a page; every vCPU has one for its list of pages and one for its counters."""

WORD_STEP = 1024
"""Bytes from one visited word to the next: four words a page."""

MAX_PAGES = PAGE_SIZE // 8
"""How many pages one vCPU's list holds."""

_ODD_CONSTANT = 0x1E37_79B9_7F4A_7C15
_COUNTERS = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Counters:
    """What one vCPU has counted since it started.

    Attributes:
        passes: whole walks over its pages.
        wrong_values: visits on which a word was not what it had to be: a load that fell through, a store that was lost.
    """

    passes: int
    wrong_values: int


@dataclass(frozen=True, slots=True)
class Guest:
    """The guest in a VM.

    Attributes:
        vm: the VM.
        counters_addr: the userspace address of the counters, a page a vCPU.
        vcpus: how many vCPUs walk.
    """

    vm: Vm
    counters_addr: int
    vcpus: int

    def counters(self, reply: bytes) -> list[Counters]:
        """Read every vCPU's counters out of the bytes that `counters_size` from `counters_addr` on hold."""
        return [Counters(*_COUNTERS.unpack_from(reply, vcpu * PAGE_SIZE)) for vcpu in range(self.vcpus)]

    @property
    def counters_size(self) -> int:
        """How many bytes of host memory hold the counters."""
        return (self.vcpus - 1) * PAGE_SIZE + _COUNTERS.size


async def install(client: Client, vm: Vm, *, gpa: int, slot: int, pages: Sequence[Sequence[int]]) -> Guest:
    """Put the guest in a VM: two slots, the code, and a vCPU for each list of pages, ready to start.

    Args:
        client: the client of the VM's daemon; it assembles.
        vm: a VM without vCPUs.
        gpa: where the guest's own memory begins: a page of code, a page list a vCPU, then the counters.
        slot: the first of two free slot ids: read-only for code and lists, writable for the counters.
        pages: for each vCPU the gpa of the pages that it walks over.

    Raises:
        LayoutError: a vCPU has more than MAX_PAGES pages; nothing was asked of the daemon.
    """
    for number, own in enumerate(pages):
        if len(own) > MAX_PAGES:
            raise LayoutError(f"vCPU {number} is to walk over {len(own)} pages, and its list holds {MAX_PAGES}")
    source = resources.files("vmmd_client").joinpath("data", "walk.s").read_text(encoding="utf-8")
    program = await client.isa.assemble(source, gpa)
    code_size, counters_size = PAGE_SIZE * (1 + len(pages)), PAGE_SIZE * len(pages)
    userspace_addr = await vm.map_host_memory(code_size + counters_size, "guest")
    lists = b"".join(struct.pack(f"<{len(own)}Q", *own).ljust(PAGE_SIZE, b"\0") for own in pages)
    await vm.write_host_memory(userspace_addr, program.code.ljust(PAGE_SIZE, b"\0") + lists)
    await vm.set_user_memory_region(
        slot, guest_phys_addr=gpa, memory_size=code_size, userspace_addr=userspace_addr, flags=MemFlag.READONLY
    )
    counters_gpa, counters_addr = gpa + code_size, userspace_addr + code_size
    await vm.set_user_memory_region(
        slot + 1, guest_phys_addr=counters_gpa, memory_size=counters_size, userspace_addr=counters_addr
    )
    for number, own in enumerate(pages):
        vcpu = await vm.create_vcpu(number)
        first = gpa + PAGE_SIZE * (1 + number)
        await vcpu.set_regs(
            {
                "pc": gpa,
                "a0": first,
                "a1": first + 8 * len(own),
                "a2": counters_gpa + PAGE_SIZE * number,
                "a3": WORD_STEP,
                "a4": _ODD_CONSTANT,
                "s3": (number + 1) << 52,
            }
        )
    return Guest(vm, counters_addr, len(pages))
