"""A vCPU whose dirty ring is full softly makes no progress, whatever its runs end with."""

from __future__ import annotations

import errno
from contextlib import suppress

from tests.kvm.guest import CODE, DATA, refusal, vcpu_at
from vmmd.isa.assembler import assemble
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import DirtyRingFullExit, HltExit, MmioExit
from vmmd.kvm.uapi import KVM_CAP_DIRTY_LOG_RING
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES
from vmmd.memory.ring import ENTRY, RESERVED_ENTRIES

RING_BYTES = 16384
SOFT_LIMIT = RING_BYTES // ENTRY.size - RESERVED_ENTRIES
PAGES = 1100

FILL = """
    li a2, 4096
1:  sd a0, 0(a0)
    add a0, a0, a2
    addi a3, a3, 1
    bltu a3, a4, 1b
    add a0, a0, a2
    sd a0, -4(a0)
    ld a5, 0(a6)
    wfi
"""
"""Store to a4 pages, then over the border behind the page that follows them."""


async def filled(vm: Vm, stores: int, pages: int = PAGES) -> Vcpu:
    """Give a VM rings and a logged slot of so many pages, and a vCPU that is to store to so many of them."""
    await vm.enable_cap(KVM_CAP_DIRTY_LOG_RING, [RING_BYTES])
    code = await vm.map_host_memory(PAGE_SIZE)
    await vm.set_user_memory_region(1, 0, CODE, PAGE_SIZE, code)
    await vm.write_host_memory(code, assemble(FILL, CODE).code)
    data = await vm.map_host_memory(pages * PAGE_SIZE)
    await vm.set_user_memory_region(3, KVM_MEM_LOG_DIRTY_PAGES, DATA, pages * PAGE_SIZE, data)
    return await vcpu_at(vm, a0=DATA, a4=stores, a6=1 << 32)


async def test_immediate_exit_lets_no_instruction_through(vm: Vm) -> None:
    vcpu = await filled(vm, PAGES - 1)
    assert await vcpu.run() == DirtyRingFullExit()
    retired = vcpu.stats().instructions
    for _ in range(5):
        vcpu.set_immediate_exit(1)
        with refusal(errno.EINTR):
            await vcpu.run()
        vcpu.set_immediate_exit(0)
        assert await vcpu.run() == DirtyRingFullExit()
    assert vcpu.stats().instructions == retired


async def test_a_signal_lets_no_instruction_through(vm: Vm) -> None:
    vcpu = await filled(vm, PAGES - 1)
    assert await vcpu.run() == DirtyRingFullExit()
    retired = vcpu.stats().instructions
    for _ in range(5):
        # Either comes first, the signal or the exit.
        with suppress(KvmError):
            await vcpu.run(timeout_ms=0)
    assert await vcpu.run() == DirtyRingFullExit()
    assert vcpu.stats().instructions == retired


async def test_a_pending_exit_is_completed_and_the_run_ends_behind_it(vm: Vm) -> None:
    # The last store fills the ring with its first piece; its second is MMIO.
    vcpu = await filled(vm, SOFT_LIMIT - 1, pages=SOFT_LIMIT)
    assert isinstance(await vcpu.run(), MmioExit)
    retired = vcpu.stats().instructions
    assert await vcpu.run() == DirtyRingFullExit()
    assert vcpu.stats().instructions == retired + 1
    assert await vcpu.run() == DirtyRingFullExit()
    assert vcpu.stats().instructions == retired + 1
    assert len(vcpu.harvest_dirty_ring(PAGES)) == SOFT_LIMIT
    await vm.reset_dirty_rings()
    assert isinstance(await vcpu.run(), MmioExit)
    assert await vcpu.run() == HltExit()
