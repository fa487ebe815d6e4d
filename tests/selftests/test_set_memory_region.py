"""set_memory_region_test: what may be set, how many slots there are, and MOVE and DELETE of a slot in use."""

from __future__ import annotations

import asyncio
import errno
import itertools
import random

import pytest

from tests.kvm.guest import HOLE, progress, refusal, until
from tests.selftests.guest import CODE, LINES, add_memory, load, served, words
from vmmd.isa.assembler import assemble
from vmmd.kvm.exits import HltExit, InternalErrorExit, MmioExit
from vmmd.kvm.system import System
from vmmd.kvm.uapi import KVM_INTERNAL_ERROR_EMULATION
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY

KNOWN_FLAGS = {KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY}
UNKNOWN_FLAGS = [1 << bit for bit in range(32) if 1 << bit not in KNOWN_FLAGS]

REGION_SLOT, REGION, REGION_BYTES = 10, 0xC000_0000, 2 << 20
MMIO_VALUE = 0x22
REPEATS = 10

SPIN_ON_A_WORD = """
    # Loads s0's word for ever. Bit n of the first word of its line says that it has read n, the second is the last.
    li s4, 0
again:
    ld t0, 0(s0)
    li t1, 1
    sll t1, t1, t0
    or s4, s4, t1
    sd s4, 0(s1)
    sd t0, 8(s1)
    j again
"""


async def test_a_vm_without_any_slot_ends_in_an_internal_error_and_lives_once_it_has_one(vm: Vm) -> None:
    vcpu = await vm.create_vcpu(0)
    for _ in range(2):
        assert await vcpu.run() == InternalErrorExit(KVM_INTERNAL_ERROR_EMULATION, 0)
    await add_memory(vm, 0, 0, 1)
    await vm.write_guest_memory(0, assemble("wfi").code)
    assert await vcpu.run() == HltExit()


@pytest.mark.parametrize("flag", UNKNOWN_FLAGS, ids=hex)
async def test_a_flag_bit_that_is_not_known_is_einval_in_every_call_and_changes_nothing(vm: Vm, flag: int) -> None:
    base = await add_memory(vm, 0, 0, 1)
    before = vm.memory_regions()
    for flags in (flag, flag | KVM_MEM_LOG_DIRTY_PAGES, flag | KVM_MEM_READONLY):
        for region in (
            (1, flags, HOLE, PAGE_SIZE, base),  # a creation
            (0, flags, 0, PAGE_SIZE, base),  # a change of flags
            (0, flags, HOLE, PAGE_SIZE, base),  # a move
            (0, flags, 0, 0, base),  # a deletion
        ):
            with refusal(errno.EINVAL):
                await vm.set_user_memory_region(*region)
    assert vm.memory_regions() == before


async def test_the_known_flags_are_taken_alone_and_together(vm: Vm) -> None:
    base = await vm.map_host_memory(PAGE_SIZE)
    for slot, flags in enumerate((0, *KNOWN_FLAGS, sum(KNOWN_FLAGS))):
        await vm.set_user_memory_region(slot, flags, slot * PAGE_SIZE, PAGE_SIZE, base)
    assert [region.flags for region in vm.memory_regions()[1]] == [0, *KNOWN_FLAGS, sum(KNOWN_FLAGS)]


async def test_every_slot_can_be_used_and_one_more_is_einval(system: System, vm: Vm) -> None:
    most = system.check_extension("KVM_CAP_NR_MEMSLOTS")
    assert most == 32764
    size = REGION_BYTES
    base = await vm.map_host_memory(most * size)
    for slot in range(most):
        await vm.set_user_memory_region(slot, 0, slot * size, size, base + slot * size)
    assert len(vm.memory_regions()[1]) == most
    with refusal(errno.EINVAL):
        await vm.set_user_memory_region(most, 0, most * size, size, base)

    # A guest finds its way among all of them: each slot that it is sent to holds the number of the next.
    chosen = [0, *random.Random(1).sample(range(1, most - 1), 500), most - 1]
    for here, after in itertools.pairwise(chosen):
        await vm.write_host_memory(base + here * size + 8, (after * size + 8).to_bytes(8, "little"))
    await vm.write_guest_memory(CODE, assemble("1: mv a1, a0\n ld a0, 0(a0)\n bnez a0, 1b\n wfi", CODE).code)
    vcpu = await vm.create_vcpu(0)
    await vcpu.set_regs({"pc": CODE, "a0": 8})
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x11"] == (most - 1) * size + 8

    # A slot that is deleted is free again, and it alone.
    await vm.set_user_memory_region(17, 0, 0, 0, 0)
    with refusal(errno.EINVAL):
        await vm.set_user_memory_region(most, 0, most * size, size, base)
    await vm.set_user_memory_region(17, 0, most * size, size, base + 17 * size)


async def last_read(vm: Vm, value: int) -> None:
    """Wait until what the guest has read last is this."""
    async with asyncio.timeout(60):
        while (await words(vm, LINES + 8))[0] != value:
            await asyncio.sleep(0)


async def test_a_slot_that_moves_by_a_page_under_a_guest_shows_old_or_new_contents_and_no_other(system: System) -> None:
    for _ in range(REPEATS):
        vm = system.create_vm()
        await load(vm, SPIN_ON_A_WORD, s0=REGION)
        hva = await add_memory(vm, REGION_SLOT, REGION, REGION_BYTES // PAGE_SIZE)
        async with served(vm, answer=MMIO_VALUE):
            await vm.set_user_memory_region(REGION_SLOT, 0, REGION - PAGE_SIZE, REGION_BYTES, hva)
            # The guest's address is the slot's second page now. The marker in the first must never be seen.
            await vm.write_host_memory(hva, b"\2")
            await progress(vm.vcpus[0])
            await vm.write_host_memory(hva, b"\1")
            await vm.set_user_memory_region(REGION_SLOT, 0, REGION, REGION_BYTES, hva)
            await last_read(vm, 1)
        assert (await words(vm, LINES))[0] == 1 << 0 | 1 << 1
        # The slot covers the address before and after, and no vCPU sees anything in between.
        assert vm.stats().exits == {}
        await system.destroy_vm(vm.id)


async def test_a_slot_that_is_deleted_under_a_guest_is_mmio_and_reads_its_new_backing_once_it_is_back(
    system: System,
) -> None:
    for _ in range(REPEATS):
        vm = system.create_vm()
        await load(vm, SPIN_ON_A_WORD, s0=REGION)
        hva = await add_memory(vm, REGION_SLOT, REGION, REGION_BYTES // PAGE_SIZE)
        await vm.write_host_memory(hva, b"\5")
        fresh = await vm.map_host_memory(REGION_BYTES)
        async with served(vm, answer=MMIO_VALUE) as (guest,):
            await last_read(vm, 5)
            await vm.set_user_memory_region(REGION_SLOT, 0, 0, 0, 0)
            await last_read(vm, MMIO_VALUE)
            await vm.set_user_memory_region(REGION_SLOT, 0, REGION, REGION_BYTES, fresh)
            await last_read(vm, 0)
            await vm.set_user_memory_region(REGION_SLOT, 0, 0, 0, 0)
            await last_read(vm, MMIO_VALUE)
            assert (await words(vm, LINES))[0] == 1 << 5 | 1 << MMIO_VALUE | 1 << 0
            # Without its code the guest cannot live; it dies where it was.
            await vm.set_user_memory_region(0, 0, 0, 0, 0)
            await until(lambda guest=guest: guest.ended is not None)  # type: ignore[misc]
        ended = guest.ended
        assert isinstance(ended, InternalErrorExit)
        assert CODE <= ended.phys_addr < CODE + len(assemble(SPIN_ON_A_WORD, CODE).code)
        assert set(guest.mmio) == {MmioExit(REGION, 8, is_write=False, data=None)}
        await system.destroy_vm(vm.id)


async def test_a_slot_may_move_over_its_own_old_range_and_not_over_another_under_a_guest(vm: Vm) -> None:
    await load(vm, SPIN_ON_A_WORD, s0=REGION + PAGE_SIZE)
    hva = await add_memory(vm, REGION_SLOT, REGION, 3)
    other = await add_memory(vm, 11, REGION + 4 * PAGE_SIZE, 1)
    size = 3 * PAGE_SIZE
    async with served(vm):
        for turn in range(50):
            await vm.set_user_memory_region(REGION_SLOT, 0, REGION + (turn + 1) % 2 * PAGE_SIZE, size, hva)
            before = vm.memory_regions()
            with refusal(errno.EEXIST):
                await vm.set_user_memory_region(REGION_SLOT, 0, REGION + 2 * PAGE_SIZE, size, hva)
            with refusal(errno.EEXIST):
                await vm.set_user_memory_region(11, 0, REGION + PAGE_SIZE, PAGE_SIZE, other)
            assert vm.memory_regions() == before
    assert vm.stats().exits == {}
