"""Several changes of memslots as one: in order on a scratch table, one publication, all or nothing."""

from __future__ import annotations

import asyncio
import errno

import pytest

from tests.kvm.guest import CODE, DATA, RAM_BYTES, boot, let_the_loop_turn, refusal, running, vcpu_at
from vmmd.kvm.hold import MAX_REMEMBERED
from vmmd.kvm.uapi import KVM_DIRTY_LOG_INITIALLY_SET
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES as LOG
from vmmd.memory.region import Region

LOW, HIGH = 0x10_0000, 0x20_0000


def table(vm: Vm) -> list[tuple[int, int, int]]:
    return [(slot.slot, slot.guest_phys_addr, slot.memory_size) for slot in vm.memory_regions()[1]]


async def merged_and_split(vm: Vm, base: int) -> tuple[list[Region], list[Region]]:
    """Make two slots side by side, and return the lists that merge and split them."""
    one = Region(1, 0, LOW, PAGE_SIZE, base)
    two = Region(2, 0, LOW + PAGE_SIZE, PAGE_SIZE, base + PAGE_SIZE)
    whole = Region(1, 0, LOW, 2 * PAGE_SIZE, base)
    gone = [Region(slot, 0, 0, 0, 0) for slot in (1, 2)]
    await vm.set_user_memory_region_list([one, two])
    return [*gone, whole], [gone[0], one, two]


async def test_changes_are_made_in_order_and_published_once(vm: Vm) -> None:
    base = await vm.map_host_memory(2 * PAGE_SIZE)
    merge, split = await merged_and_split(vm, base)
    generation = vm.generation
    published = await vm.set_user_memory_region_list(merge)
    assert table(vm) == [(1, LOW, 2 * PAGE_SIZE)]
    assert published.generation == vm.generation == generation + 1
    assert published.pause_ns is not None
    await vm.set_user_memory_region_list(split)
    assert table(vm) == [(1, LOW, PAGE_SIZE), (2, LOW + PAGE_SIZE, PAGE_SIZE)]
    assert vm.generation == generation + 2


async def test_no_vcpu_sees_anything_between_before_and_after(vm: Vm) -> None:
    # Every load meets memory, though the range goes and comes back in each update.
    base = await boot(vm, "1: ld a1, 0(a0)\n ld a2, 0(a3)\n addi a4, a4, 1\n j 1b")
    merge, split = await merged_and_split(vm, base)
    vcpus = [await vcpu_at(vm, index, a0=LOW, a3=LOW + PAGE_SIZE) for index in range(2)]
    async with running(*vcpus) as runs:
        for _ in range(200):
            await vm.set_user_memory_region_list(merge)
            await vm.set_user_memory_region_list(split)
        assert not any(run.done() for run in runs)


@pytest.mark.parametrize(
    ("bad", "number"),
    [(Region(5, 0, LOW, PAGE_SIZE, 0), errno.EEXIST), (Region(5, 0, HIGH + 1, PAGE_SIZE, 0), errno.EINVAL)],
)
async def test_a_refused_change_names_its_place_and_none_is_made(vm: Vm, bad: Region, number: int) -> None:
    base = await vm.map_host_memory(2 * PAGE_SIZE)
    await merged_and_split(vm, base)
    before, generation = table(vm), vm.generation
    for hold in (None, "hold"):
        if hold:
            await vm.kick_all_running_vcpus(hold)
        with refusal(number) as wrong:
            await vm.set_user_memory_region_list([Region(2, 0, 0, 0, 0), bad], hold=hold)
        assert wrong.value.data["index"] == 1
        assert wrong.value.ioctl == "KVM_SET_USER_MEMORY_REGION_LIST"
        assert (table(vm), vm.generation) == (before, generation)
    with refusal(number) as failed:
        await vm.resume_all_kicked_vcpus("hold")
    assert failed.value.data["rolled_back"]
    assert table(vm) == before


async def test_a_dry_run_checks_and_changes_nothing(vm: Vm) -> None:
    base = await vm.map_host_memory(2 * PAGE_SIZE)
    merge, _ = await merged_and_split(vm, base)
    before, generation = table(vm), vm.generation
    published = await vm.set_user_memory_region_list(merge, dry_run=True)
    assert (published.generation, published.pause_ns, published.dirty) == (generation, None, [])
    assert (table(vm), vm.generation) == (before, generation)
    with refusal(errno.EINVAL):
        await vm.set_user_memory_region_list([Region(9, 0, 0, 0, 0)], dry_run=True)


async def test_the_logs_of_slots_that_go_are_given_back_and_those_that_stay_are_not(vm: Vm) -> None:
    base = await vm.map_host_memory(8 * PAGE_SIZE)
    for slot, gpa in ((1, LOW), (2, LOW + 0x1_0000), (3, LOW + 0x2_0000)):
        await vm.set_user_memory_region(slot, LOG, gpa, 2 * PAGE_SIZE, base + slot * 2 * PAGE_SIZE)
        await vm.write_guest_memory(gpa + PAGE_SIZE, b"x")
    published = await vm.set_user_memory_region_list(
        [
            Region(1, 0, 0, 0, 0),
            Region(2, LOG, HIGH, 2 * PAGE_SIZE, base + 4 * PAGE_SIZE),
            Region(3, 0, LOW + 0x2_0000, 2 * PAGE_SIZE, base + 6 * PAGE_SIZE),
        ]
    )
    assert [(slot.slot, slot.guest_phys_addr, bitmap[0]) for slot, bitmap in published.dirty] == [
        (1, LOW, 2),
        (3, LOW + 0x2_0000, 2),
    ]
    assert (await vm.get_dirty_log(2))[0] == 2, "a MOVE keeps its log"


async def test_no_store_is_lost_between_the_last_log_and_the_end_of_its_slot(vm: Vm) -> None:
    # The guest stores to a page and counts; the count in the page is what the log and the page have to agree on.
    base = await boot(vm, "1: addi a1, a1, 1\n sd a1, 0(a0)\n j 1b")
    logged = Region(1, LOG, LOW, PAGE_SIZE, base + DATA)
    await vm.set_user_memory_region_list([logged])
    vcpu = await vcpu_at(vm, a0=LOW)
    async with running(vcpu):
        for _ in range(30):
            before = vcpu.stats().instructions
            while vcpu.stats().instructions - before < 100:
                await vcpu.get_regs()
            published = await vm.set_user_memory_region_list([Region(1, 0, 0, 0, 0), logged])
            ((_, bitmap),) = published.dirty
            assert bitmap[0] == 1


async def test_more_log_than_can_be_given_back_is_e2big_and_nothing_has_changed(vm: Vm) -> None:
    base = await vm.map_host_memory(8 * PAGE_SIZE)
    await vm.set_user_memory_region(1, LOG, LOW, 2 * PAGE_SIZE, base)
    generation = vm.generation
    with refusal(errno.E2BIG):
        await vm.set_user_memory_region_list([Region(1, 0, 0, 0, 0)], max_log_bytes=7)
    assert vm.generation == generation


async def test_inside_a_hold_it_takes_none_of_its_own_and_is_rolled_back_with_it(vm: Vm) -> None:
    base = await vm.map_host_memory(2 * PAGE_SIZE)
    merge, _ = await merged_and_split(vm, base)
    before = table(vm)
    await vm.kick_all_running_vcpus("hold")
    published = await vm.set_user_memory_region_list(merge, hold="hold")
    assert published.pause_ns is None
    assert table(vm) != before
    with refusal(errno.EINVAL):
        await vm.set_user_memory_region(9, 0, 0, 0, 0, hold="hold")
    with refusal(errno.EINVAL):
        await vm.resume_all_kicked_vcpus("hold")
    assert table(vm) == before


async def test_while_somebody_else_holds_it_waits_its_turn(vm: Vm) -> None:
    base = await vm.map_host_memory(2 * PAGE_SIZE)
    merge, _ = await merged_and_split(vm, base)
    generation = vm.generation
    await vm.kick_all_running_vcpus("hold")
    with refusal(errno.EBUSY):
        await vm.set_user_memory_region_list(merge, wait_ms=0)
    with refusal(errno.ESTALE):
        await vm.set_user_memory_region_list(merge, if_generation=generation + 1, hold="hold")
    assert vm.generation == generation


async def test_an_id_may_occur_twice_and_changes_that_cancel_out_are_one_publication(vm: Vm) -> None:
    base = await vm.map_host_memory(RAM_BYTES)
    generation = vm.generation
    published = await vm.set_user_memory_region_list([Region(1, 0, CODE, PAGE_SIZE, base), Region(1, 0, 0, 0, 0)])
    assert table(vm) == []
    assert published.generation == generation + 1


async def test_what_somebody_elses_hold_may_change_is_judged_behind_it(vm: Vm) -> None:
    base = await vm.map_host_memory(2 * PAGE_SIZE)
    await vm.set_user_memory_region(0, 0, LOW, PAGE_SIZE, base)
    overlapping = [Region(1, 0, LOW, PAGE_SIZE, base)]
    await vm.kick_all_running_vcpus("somebody's")
    with refusal(errno.EBUSY):
        await vm.set_user_memory_region_list(overlapping, wait_ms=0)
    with refusal(errno.ESTALE):
        await vm.set_user_memory_region_list(overlapping, if_generation=vm.generation + 1)
    waits = asyncio.create_task(vm.set_user_memory_region_list(overlapping, wait_ms=20_000))
    await let_the_loop_turn()
    await vm.set_user_memory_region(0, 0, LOW, 0, 0, hold="somebody's")
    await vm.resume_all_kicked_vcpus("somebody's")
    await waits
    assert table(vm) == [(1, LOW, PAGE_SIZE)]


async def test_holds_that_lists_take_push_no_name_out_of_those_remembered(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("mine")
    await vm.resume_all_kicked_vcpus("mine")
    for _ in range(MAX_REMEMBERED + 1):
        await vm.set_user_memory_region_list([])
    with refusal(errno.ECANCELED):
        await vm.resume_all_kicked_vcpus("mine")


def many(base: int, flags: int = 0) -> list[Region]:
    """So many regions that they are prepared on a thread."""
    return [Region(10 + index, flags, HIGH + index * 2 * PAGE_SIZE, PAGE_SIZE, base) for index in range(400)]


async def test_a_long_list_keeps_nobody_waiting_and_what_was_changed_meanwhile_stays(vm: Vm) -> None:
    base = await vm.map_host_memory(PAGE_SIZE)
    changing = asyncio.create_task(vm.set_user_memory_region_list(many(base)))
    await asyncio.sleep(0)
    await vm.set_user_memory_region(1, 0, LOW, PAGE_SIZE, base)
    assert not changing.done()
    assert table(vm) == [(1, LOW, PAGE_SIZE)]
    assert (await changing).generation == 2
    assert len(table(vm)) == 401


async def test_a_long_list_meets_a_slot_that_came_meanwhile(vm: Vm) -> None:
    base = await vm.map_host_memory(PAGE_SIZE)
    changing = asyncio.create_task(vm.set_user_memory_region_list(many(base)))
    await asyncio.sleep(0)
    await vm.set_user_memory_region(1, 0, HIGH, PAGE_SIZE, base)
    with refusal(errno.EEXIST):
        await changing
    assert table(vm) == [(1, HIGH, PAGE_SIZE)]


async def test_the_logs_of_a_long_list_are_those_of_the_mode_in_which_it_is_published(vm: Vm) -> None:
    base = await vm.map_host_memory(PAGE_SIZE)
    changing = asyncio.create_task(vm.set_user_memory_region_list(many(base, LOG)))
    await asyncio.sleep(0)
    await vm.enable_cap("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", [KVM_DIRTY_LOG_INITIALLY_SET | 1])
    await changing
    logs = [await vm.get_dirty_log(slot) for slot, _, _ in table(vm)]
    assert set(logs) == {(1).to_bytes(8, "little")}
