"""memslot_modification_stress_test: a slot that comes and goes beside the memory in use is never noticed."""

from __future__ import annotations

import asyncio

from tests.selftests.guest import add_memory, counted_on, lines, load, served
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

VCPUS = 2
AREA, PAGES_EACH = 1 << 30, 256
DUMMY_SLOT, DUMMY = 7, AREA - PAGE_SIZE
CHANGES = 600

OVER_ALL_MEMORY = f"""
    # Writes the number of its pass to every page of its own part, and finds the one before there. The line holds the
    # passes and the pages with something else; the message to userspace comes every 64 passes.
    li t0, {PAGES_EACH * PAGE_SIZE}
    mul t0, t0, s2
    add s0, s0, t0
    li s4, {PAGE_SIZE}
    li s5, 0
pass:
    mv a0, s0
    li a1, {PAGES_EACH}
page:
    ld a2, 0(a0)
    beq a2, s5, 1f
    ld a3, 8(s1)
    addi a3, a3, 1
    sd a3, 8(s1)
1:  addi a2, s5, 1
    sd a2, 0(a0)
    add a0, a0, s4
    addi a1, a1, -1
    bnez a1, page
    addi s5, s5, 1
    sd s5, 0(s1)
    andi a2, s5, 63
    bnez a2, pass
    ecall
    j pass
"""


async def test_a_slot_that_comes_and_goes_beside_the_memory_in_use_makes_no_exit_and_loses_no_access(vm: Vm) -> None:
    await load(vm, OVER_ALL_MEMORY, vcpus=VCPUS, s0=AREA)
    await add_memory(vm, 1, AREA, VCPUS * PAGES_EACH)
    dummy = await vm.map_host_memory(PAGE_SIZE)
    async with served(vm) as guests:
        for turn in range(CHANGES // 2):
            await vm.set_user_memory_region(DUMMY_SLOT, 0, DUMMY, PAGE_SIZE, dummy)
            await vm.set_user_memory_region(DUMMY_SLOT, 0, 0, 0, 0)
            await asyncio.sleep(0)
            if turn % 50 == 0:
                await counted_on(vm)
        await counted_on(vm, 64)
    assert set(vm.stats().exits) == {"KVM_EXIT_HYPERCALL"}
    assert all(guest.messages for guest in guests)
    assert await lines(vm, 1) == [0] * VCPUS
