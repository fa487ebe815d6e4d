"""Loading a guest: an executable's segments into the memory that slots give, and a vCPU at its entry.

Memory is written in one call that passes the gate: either every segment is in place or nothing has changed. Slots are
the caller's to make; a segment that lies in none, or in a read-only one, is refused.
"""

from __future__ import annotations

from typing import Unpack

from vmmd.isa.elf import Image
from vmmd.kvm.errors import KvmError
from vmmd.kvm.gate import Entry
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.memory.access import Write


async def load(vm: Vm, image: Image, vcpu_id: int | None = None, **entry: Unpack[Entry]) -> None:
    """Write an executable's segments, zeroes behind their data included, and set the pc of one vCPU to its entry.

    A vCPU that runs leaves guest mode to have its pc set, and goes on from there.

    Raises:
        KvmError: EBADF where there is no such vCPU; EFAULT where a page of any segment has no memslot, a read-only one,
            or no host mapping; ENOMEM where the limit of memory is reached. Nothing is written then.
    """
    vcpu = None if vcpu_id is None else _vcpu(vm, vcpu_id, entry.get("hold"))
    writes = [Write(segment.paddr, segment.data, segment.memory_size - len(segment.data)) for segment in image.segments]
    await vm.write_guest_memory_list(writes, **entry)
    if vcpu is not None:
        await vcpu.start_at(image.entry)


def _vcpu(vm: Vm, vcpu_id: int, hold: str | None) -> Vcpu:
    """Return a vCPU; where there is none, the hold that the call names has failed with it."""
    try:
        return vm.vcpu(vcpu_id)
    except KvmError as error:
        if hold is not None:
            vm.fail_hold(hold, error)
        raise
