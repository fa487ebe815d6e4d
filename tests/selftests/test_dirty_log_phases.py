"""dirty_log_perf_test: populate, log, dirty, fetch and clear, and log no more; guests meet their own messages alone."""

from __future__ import annotations

import asyncio

import pytest

from tests.selftests.guest import (
    CODE,
    LINE_BYTES,
    LINES,
    SWEEP,
    add_memory,
    counted_on,
    lines,
    load,
    pages_of,
    served,
    sweep,
)
from vmmd.kvm.uapi import KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

VCPUS = 2
SLOTS, PAGES_A_SLOT = 5, 67
"""The vCPUs' parts end inside a slot, and every slot's log ends inside a word."""
DATA, NPAGES = 1 << 30, SLOTS * PAGES_A_SLOT
SLOT_BYTES = PAGES_A_SLOT * PAGE_SIZE
ITERATIONS = 4

STORE_TO_ALL_PAGES = f"""
pass:
    mv t0, s0
    li t1, {NPAGES}
    li t2, {PAGE_SIZE}
1:  ld t3, 0(t0)
    addi t3, t3, 1
    sd t3, 0(t0)
    add t0, t0, t2
    addi t1, t1, -1
    bnez t1, 1b
    ld t3, 0(s1)
    addi t3, t3, 1
    sd t3, 0(s1)
    j pass
"""

BLOCKS = 64
MARK_TOGETHER = f"""
    # Two vCPUs meet before each block of 64 pages, a word of the log, and store to every second of them each.
    slli t0, s2, 12
    add s0, s0, t0
    li t0, 1
    sub t0, t0, s2
    slli t0, t0, 6
    li s6, {LINES}
    add s6, s6, t0
    li s4, {2 * PAGE_SIZE}
    li s5, 0
    li s7, {BLOCKS}
block:
    addi s5, s5, 1
    sd s5, 0(s1)
1:  ld t0, 0(s6)
    bltu t0, s5, 1b
    li t1, 32
2:  sd s5, 0(s0)
    add s0, s0, s4
    addi t1, t1, -1
    bnez t1, 2b
    bne s5, s7, block
    wfi
"""


async def set_slots(vm: Vm, base: int, flags: int) -> None:
    for slot in range(SLOTS):
        at = slot * SLOT_BYTES
        await vm.set_user_memory_region(1 + slot, flags, DATA + at, SLOT_BYTES, base + at)


async def fetch(vm: Vm, *, clear: bool) -> set[int]:
    """Fetch every slot's log and return the pages of the whole area."""
    pages = set()
    for slot in range(SLOTS):
        log = await vm.get_dirty_log(1 + slot)
        pages |= {slot * PAGES_A_SLOT + page for page in pages_of(log)}
        if clear:
            await vm.clear_dirty_log(1 + slot, 0, PAGES_A_SLOT, log)
    return pages


@pytest.mark.parametrize("protect", [0, 1, 3], ids=["taken by the get", "cleared", "cleared, initially set"])
@pytest.mark.parametrize("every", [1, 3], ids=["every page", "every third page"])
@pytest.mark.parametrize("parts", [VCPUS, 1], ids=["parts of their own", "all of it each"])
async def test_each_iterations_log_holds_the_pages_that_were_stored_to_and_no_others(
    vm: Vm, protect: int, every: int, parts: int
) -> None:
    await vm.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, [protect])
    await load(vm, SWEEP, vcpus=VCPUS)
    base = await vm.map_host_memory(NPAGES * PAGE_SIZE)
    await set_slots(vm, base, 0)
    share = NPAGES // parts
    ranges = [range(index % parts * share, (index % parts + 1) * share, every) for index in range(VCPUS)]

    async def dirty_all() -> None:
        """Every vCPU stores a word of its own to its pages, and sends its message."""
        passes = [
            sweep(vcpu, DATA + pages.start * PAGE_SIZE + 8 * vcpu.id, every * PAGE_SIZE, len(pages), expected=0, left=0)
            for vcpu, pages in zip(vm.vcpus.values(), ranges, strict=True)
        ]
        await asyncio.gather(*passes)

    await dirty_all()
    await set_slots(vm, base, KVM_MEM_LOG_DIRTY_PAGES)
    first = await fetch(vm, clear=bool(protect))
    assert first == (set(range(NPAGES)) if protect == 3 else set())
    for _ in range(ITERATIONS):
        await dirty_all()
        assert await fetch(vm, clear=bool(protect)) == set().union(*ranges)
        assert await fetch(vm, clear=bool(protect)) == set()
    await set_slots(vm, base, 0)
    await dirty_all()
    assert vm.stats().exits == {"KVM_EXIT_HYPERCALL": VCPUS * (ITERATIONS + 2)}


async def test_logging_goes_on_and_off_slot_by_slot_under_running_guests_and_they_notice_nothing(vm: Vm) -> None:
    await load(vm, STORE_TO_ALL_PAGES, vcpus=1, s0=DATA)
    base = await vm.map_host_memory(NPAGES * PAGE_SIZE)
    await set_slots(vm, base, 0)
    async with served(vm):
        for _ in range(15):
            await set_slots(vm, base, KVM_MEM_LOG_DIRTY_PAGES)
            await counted_on(vm, 2)
            assert await fetch(vm, clear=False) == set(range(NPAGES))
            await set_slots(vm, base, 0)
            await counted_on(vm)
    assert vm.stats().exits == {}
    (passes,) = await lines(vm)
    for page in range(NPAGES):
        stored = int.from_bytes(await vm.read_guest_memory(DATA + page * PAGE_SIZE, 8), "little")
        assert stored in {passes, passes + 1}


async def test_two_vcpus_that_mark_pages_of_one_word_at_the_same_time_lose_no_bit(vm: Vm) -> None:
    await load(vm, MARK_TOGETHER, vcpus=2)
    await add_memory(vm, 1, DATA, 64 * BLOCKS, KVM_MEM_LOG_DIRTY_PAGES)
    for _ in range(20):
        await vm.write_guest_memory(LINES, bytes(2 * LINE_BYTES))
        for vcpu in vm.vcpus.values():
            await vcpu.set_regs({"pc": CODE, "s0": DATA})
        await asyncio.gather(*(vcpu.run() for vcpu in vm.vcpus.values()))
        assert await vm.get_dirty_log(1) == b"\xff" * (8 * BLOCKS)
