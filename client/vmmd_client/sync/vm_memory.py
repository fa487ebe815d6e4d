"""The bytes of a VM: mapping host memory, reading and writing by userspace and by guest-physical address.

`VmMemory` is the half of a `vm.Vm` that needs no memslot's name. It keeps nothing.
"""

# Made of ../vm_memory.py by `python -m tests.client.twin`: change that one.

from typing import Unpack

from ..wire import calls
from ..wire.call_options import BytesLike, GatedChangeOptions, GateOptions
from .wire.channel import Channel


class VmMemory:
    """One VM's memory.

    Attributes:
        id: the VM's id.
    """

    def __init__(self, channel: Channel, vm: str) -> None:
        self._channel = channel
        self.id = vm

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    def map_host_memory(
        self, size: int, name: str | None = None, *, sparse: bool | None = None, **options: Unpack[GatedChangeOptions]
    ) -> int:
        """Map zeroed host memory and give its userspace address.

        Args:
            size: bytes, whole pages.
            name: a name for people.
            sparse: count only the pages that are touched against the limits, and not the size.
            **options: see `call_options.GatedChangeOptions`.

        Raises:
            InvalidArgument: the size is 0 or not of whole pages.
            OutOfMemory: over the VM's or the daemon's limit.
        """
        return self._channel.send(calls.map_host_memory(self.id, size, name, sparse, **options))

    def unmap_host_memory(self, userspace_addr: int, size: int, **options: Unpack[GatedChangeOptions]) -> None:
        """Unmap whole pages; once it has returned no vCPU reaches them.

        Raises:
            InvalidArgument: not whole pages.
        """
        self._channel.send(calls.unmap_host_memory(self.id, userspace_addr, size, **options))

    def read_host_memory(self, userspace_addr: int, length: int, **options: Unpack[GateOptions]) -> bytes:
        """Read `length` bytes by their userspace address.

        Raises:
            BadAddress: a page is not mapped.
        """
        return self._channel.send(calls.read_host_memory(self.id, userspace_addr, length, **options))

    def write_host_memory(self, userspace_addr: int, data: BytesLike, **options: Unpack[GatedChangeOptions]) -> None:
        """Write bytes by their userspace address; marks no page dirty.

        Raises:
            BadAddress: a page is not mapped; nothing was written.
        """
        self._channel.send(calls.write_host_memory(self.id, userspace_addr, data, **options))

    def read_guest_memory(self, guest_phys_addr: int, length: int, **options: Unpack[GateOptions]) -> bytes:
        """Read `length` bytes through the memslots.

        Raises:
            BadAddress: a part of the range has no memory.
        """
        return self._channel.send(calls.read_guest_memory(self.id, guest_phys_addr, length, **options))

    def write_guest_memory(self, guest_phys_addr: int, data: BytesLike, **options: Unpack[GatedChangeOptions]) -> None:
        """Write bytes through the memslots; marks pages dirty where the slot logs.

        Raises:
            BadAddress: a part of the range has no memory, or is read-only; nothing was written.
        """
        self._channel.send(calls.write_guest_memory(self.id, guest_phys_addr, data, **options))
