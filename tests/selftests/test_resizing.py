"""Slots that shrink, grow, split and merge inside holds, under vCPUs that use what stays: nothing is seen of it.

KVM has no such call; it is made of a kick, deletions, creations and a resume. The logs of the slots that went are
fetched inside the hold and merged by guest-physical address with those of the slots that came.
"""

from __future__ import annotations

import asyncio
import itertools

from tests.selftests.guest import counted_on, lines, load, pages_of, served
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

VCPUS = 3
DATA, STAYING, NPAGES = 1 << 30, 40, 100
"""Pages that are there in every layout, and pages of the largest."""
ROUNDS = 120

WRITE_AND_READ_BACK = f"""
    # Writes the number of its pass to its own word of every page that stays, and reads it back at once and a pass
    # later. The line holds the passes and the words that were wrong.
    slli t0, s2, 3
    add s0, s0, t0
    li s4, {PAGE_SIZE}
    li s5, 0
pass:
    mv a0, s0
    li a1, {STAYING}
page:
    ld a2, 0(a0)
    bne a2, s5, wrong
    addi a2, s5, 1
    sd a2, 0(a0)
    ld a3, 0(a0)
    bne a2, a3, wrong
    add a0, a0, s4
    addi a1, a1, -1
    bnez a1, page
    addi s5, s5, 1
    sd s5, 0(s1)
    j pass
wrong:
    ld a4, 8(s1)
    addi a4, a4, 1
    sd a4, 8(s1)
    j wrong
"""

LAYOUTS: tuple[tuple[int, ...], ...] = (
    (0, NPAGES),
    (0, STAYING),  # it shrinks
    (0, 17, NPAGES),  # it grows, and is split inside what is used
    (0, 17, STAYING, NPAGES),  # a part is split again
    (0, NPAGES),  # all of it merges
)
"""The pages at which slots begin and end."""


async def lay_out(vm: Vm, base: int, layout: tuple[int, ...], hold: str) -> set[int]:
    """Replace every slot of the area by those of a layout, and return the pages that the old slots' logs had."""
    dirty: set[int] = set()
    for region in vm.memory_regions()[1]:
        if region.slot == 0:
            continue
        first = (region.guest_phys_addr - DATA) // PAGE_SIZE
        dirty |= {first + page for page in pages_of(await vm.get_dirty_log(region.slot, hold=hold))}
        await vm.set_user_memory_region(region.slot, 0, 0, 0, 0, hold=hold)
    for slot, (first, end) in enumerate(itertools.pairwise(layout), 1):
        at, size = first * PAGE_SIZE, (end - first) * PAGE_SIZE
        await vm.set_user_memory_region(slot, KVM_MEM_LOG_DIRTY_PAGES, DATA + at, size, base + at, hold=hold)
    return dirty


async def test_a_vcpu_that_uses_what_stays_makes_no_exit_loses_no_store_and_every_store_is_in_the_merged_log(
    vm: Vm,
) -> None:
    await load(vm, WRITE_AND_READ_BACK, vcpus=VCPUS, s0=DATA)
    base = await vm.map_host_memory(NPAGES * PAGE_SIZE)
    await vm.set_user_memory_region(1, KVM_MEM_LOG_DIRTY_PAGES, DATA, NPAGES * PAGE_SIZE, base)
    copies = [bytes(8 * VCPUS)] * STAYING

    async def copy(dirty: set[int], hold: str | None = None) -> None:
        """Take over the pages that the log names, and find that no other has changed."""
        contents = await vm.read_host_memory(base, STAYING * PAGE_SIZE, hold=hold)
        for page in range(STAYING):
            now = contents[page * PAGE_SIZE : page * PAGE_SIZE + 8 * VCPUS]
            if page in dirty:
                copies[page] = now
            assert now == copies[page], f"a store to page {page} is in no log"
        assert dirty <= set(range(STAYING)), "nobody stores behind what stays"

    async with served(vm):
        for turn in range(ROUNDS):
            name = f"round {turn}"
            await vm.kick_all_running_vcpus(name, wait_ms=30_000)
            # Inside the hold nobody stores, so log and memory are of one moment.
            await copy(await lay_out(vm, base, LAYOUTS[turn % len(LAYOUTS)], name), name)
            await vm.resume_all_kicked_vcpus(name)
            if turn % 10 == 0:
                await counted_on(vm)
            await asyncio.sleep(0)
    assert vm.stats().exits == {}
    assert await lines(vm, 1) == [0] * VCPUS
    assert min(await lines(vm)) > 0
