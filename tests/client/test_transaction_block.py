"""What a transaction's block offers, against the daemon's real core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from vmmd_client import (
    BadVm,
    Client,
    HoldConflict,
    InvalidArgument,
    InvalidParams,
    MemFlag,
    OutOfRange,
    RangeOverlap,
    SlotTaken,
    StaleGeneration,
    Transaction,
    TransactionRefused,
    UnknownSlot,
    Vm,
    VmmdError,
)
from vmmd_client.slots.slot_ids import MAX_SLOTS

from .core import Fault, Wire, another_client, core

PAGE = 4096


@pytest.fixture
async def there() -> AsyncIterator[tuple[Client, Wire]]:
    async with core() as there:
        yield there


@pytest.fixture
async def vm(there: tuple[Client, Wire]) -> Vm:
    client, _ = there
    vm = await client.kvm.create_vm()
    base = await vm.map_host_memory(64 * PAGE)
    for slot, first in ((0, 0), (1, 4), (3, 16)):
        await vm.set_user_memory_region(
            slot, guest_phys_addr=first * PAGE, memory_size=4 * PAGE, userspace_addr=base + first * PAGE
        )
    return vm


async def map_of(vm: Vm) -> dict[int, tuple[int, int, int]]:
    slots = (await vm.get_memory_regions()).slots.values()
    return {slot.slot: (slot.guest_phys_addr // PAGE, slot.end // PAGE, slot.flags) for slot in slots}


async def test_all_kinds_of_change_at_once_are_one_transaction(there: tuple[Client, Wire], vm: Vm):
    _, wire = there
    await vm.slot_table()
    wire.set_weather(lambda _: None)
    async with vm.transaction() as t:
        t.grow(0, 4 * PAGE)
        t.move(1, 40 * PAGE)
        low, high = t.split(3, 18 * PAGE)
        t.set_flags(low.slot, readonly=True)
        t.shrink(high.slot, PAGE)
        t.set_flags(high.slot, log_dirty=True)
        t.remap(1, t.slots[0].userspace_addr)
    assert wire.round_trips == 1
    log, readonly = int(MemFlag.LOG_DIRTY_PAGES), int(MemFlag.READONLY)
    assert await map_of(vm) == {0: (0, 8, 0), 1: (40, 44, 0), 2: (18, 19, log), 3: (16, 18, readonly)}
    assert t.result.pause_ns is not None
    assert (await vm.slot_table()).slots == (await vm.get_memory_regions()).slots


async def test_slots_without_a_name_get_the_lowest_free_ids_and_those_that_went_are_used_again(vm: Vm):
    async with vm.transaction() as t:
        gone = t.delete(1)
        made = [
            t.create(guest_phys_addr=(100 + n) * PAGE, memory_size=PAGE, userspace_addr=gone.userspace_addr)
            for n in range(3)
        ]
    assert [slot.slot for slot in made] == [1, 2, 4]
    assert sorted(await map_of(vm)) == [0, 1, 2, 3, 4]


async def test_a_slot_swap_is_possible_since_deletes_come_first(vm: Vm):
    async with vm.transaction() as t:
        t.move(0, 16 * PAGE)
        t.move(3, 0)
    assert await map_of(vm) == {0: (16, 20, 0), 1: (4, 8, 0), 3: (0, 4, 0)}


async def test_a_dry_run_is_checked_by_the_daemon_and_changes_nothing(there: tuple[Client, Wire], vm: Vm):
    _, wire = there
    before = await vm.get_memory_regions()
    async with vm.transaction(dry_run=True) as t:
        t.merge(0, 1)
    assert t.result.generation == before.generation
    assert t.plan().needs_hold
    assert await vm.get_memory_regions() == before
    wire.set_weather(lambda _: Fault.REFUSED)
    with pytest.raises(TransactionRefused, match=r"step 2 .*create slot 0 .*only checked") as caught:
        await merge_dry(vm)
    wire.set_weather(lambda _: None)
    assert isinstance(caught.value.__cause__, InvalidArgument)
    assert caught.value.rolled_back


async def merge_dry(vm: Vm) -> None:
    async with vm.transaction(dry_run=True) as t:
        t.merge(0, 1)


async def test_a_dry_run_on_a_map_that_has_moved_on_says_so(there: tuple[Client, Wire], vm: Vm):
    _, wire = there
    await vm.slot_table()
    async with another_client(wire).vm(vm.id).transaction() as t:
        t.delete(3)
    with pytest.raises(StaleGeneration):
        await merge_dry(vm)


async def test_what_kvm_refuses_by_its_size_is_refused_when_the_block_ends_too(vm: Vm):
    before = await map_of(vm)
    for change, error in (
        (lambda t: t.grow(0, PAGE), RangeOverlap),
        (lambda t: t.delete(9), UnknownSlot),
        (lambda t: t.create(0, guest_phys_addr=1 << 30, memory_size=PAGE, userspace_addr=0), SlotTaken),
        (lambda t: t.create(MAX_SLOTS, guest_phys_addr=1 << 30, memory_size=PAGE, userspace_addr=0), OutOfRange),
    ):
        with pytest.raises(error):
            await make(vm, change)
        assert await map_of(vm) == before


async def make(vm: Vm, change: object) -> None:
    assert callable(change)
    async with vm.transaction() as t:
        change(t)


async def test_a_transaction_that_is_over_takes_no_more_changes_and_still_shows_its_plan(vm: Vm):
    async with vm.transaction() as t:
        t.delete(3)
    with pytest.raises(VmmdError, match="is over"):
        t.delete(0)
    assert [str(step) for step in t.plan().steps] == ["delete slot 3 [0x10000, 0x14000)"]


async def test_a_transaction_in_a_vm_that_is_gone_says_that(there: tuple[Client, Wire], vm: Vm):
    def change(t: Transaction) -> None:
        t.delete(3)

    await vm.slot_table()
    await vm.destroy()
    with pytest.raises(BadVm, match="there is no VM"):
        await make(vm, change)


async def test_a_logged_slots_last_bits_are_told_by_the_result_and_by_the_dirty_view(vm: Vm):
    async with vm.transaction() as t:
        t.set_flags(0, log_dirty=True)
    await vm.write_guest_memory(PAGE, b"x")
    async with vm.transaction() as t:
        t.delete(0)
    assert t.result.dirty_pages == 1
    assert [list(bitmap.dirty_pages()) for bitmap in t.result.dirty] == [[PAGE]]
    assert list(await vm.with_timeout(1).dirty.fetch()) == [PAGE]
    assert list(await vm.dirty.fetch()) == []


@pytest.mark.parametrize(("gpa", "size"), [(-PAGE, PAGE), (0, -1), (1 << 52, PAGE), (0, (1 << 52) + 1)])
async def test_a_range_that_is_none_is_not_fetched(vm: Vm, gpa: int, size: int):
    with pytest.raises(OutOfRange, match="is no range of guest-physical space"):
        await vm.dirty.fetch(gpa, size)


async def test_while_somebody_is_held_a_fetch_waits_its_turn_and_keeps_what_it_has(there: tuple[Client, Wire], vm: Vm):
    _, wire = there
    async with vm.transaction() as t:
        t.set_flags(0, log_dirty=True)
    await vm.write_guest_memory(PAGE, b"x")
    async with another_client(wire).vm(vm.id).hold():
        with pytest.raises(HoldConflict):
            await vm.dirty.fetch(wait_ms=0)
    assert list(await vm.dirty.fetch()) == [PAGE]


async def test_a_block_that_failed_for_what_others_have_changed_sees_it_at_the_next_try(
    there: tuple[Client, Wire], vm: Vm
):
    _, wire = there
    others = another_client(wire).vm(vm.id)
    memory = (await vm.slot_table()).slots[3].userspace_addr

    async def delete_theirs() -> None:
        async with vm.transaction() as t:
            t.delete(9)

    async def take_the_place_of_3() -> None:
        async with vm.transaction() as t:
            t.create(guest_phys_addr=16 * PAGE, memory_size=PAGE, userspace_addr=memory)

    async with others.transaction() as t:
        t.create(9, guest_phys_addr=40 * PAGE, memory_size=PAGE, userspace_addr=memory)
    with pytest.raises(UnknownSlot):
        await delete_theirs()
    await delete_theirs()
    others.forget_slot_table()
    async with others.transaction() as t:
        t.delete(3)
    with pytest.raises(RangeOverlap):
        await take_the_place_of_3()
    await take_the_place_of_3()
    assert await map_of(vm) == {0: (0, 4, 0), 1: (4, 8, 0), 2: (16, 17, 0)}


async def test_the_known_table_forgets_what_a_hold_by_name_has_undone(vm: Vm):
    await vm.slot_table()
    await vm.kick_all_running_vcpus("mine")
    await vm.set_user_memory_region(3, guest_phys_addr=0, memory_size=0, userspace_addr=0, hold="mine")
    with pytest.raises(InvalidArgument):
        await vm.set_user_memory_region(4, guest_phys_addr=1, memory_size=PAGE, userspace_addr=0, hold="mine")
    with pytest.raises(InvalidArgument):
        await vm.resume_all_kicked_vcpus("mine")
    assert await vm.slot_table() == await vm.get_memory_regions()


@pytest.mark.parametrize("wait_ms", [1 << 32, 10**400])
async def test_a_wait_longer_than_the_wire_has_is_refused_and_nothing_else_happens(vm: Vm, wait_ms: int):
    for refused in (vm.transaction, vm.hold):
        with pytest.raises(OutOfRange, match="from 0 to 4294967295"):
            refused(wait_ms=wait_ms)
    with pytest.raises(OutOfRange, match="from 0 to 4294967295"):
        await vm.dirty.fetch(wait_ms=wait_ms)
    with pytest.raises(InvalidParams, match="wait_ms"):
        await vm.read_guest_memory(0, 1, wait_ms=wait_ms)


async def test_a_reader_whose_answer_is_late_puts_no_older_table_in_the_place_of_a_newer_one(
    there: tuple[Client, Wire], vm: Vm, monkeypatch: pytest.MonkeyPatch
):
    _, wire = there
    carry = wire.carry
    answered, changed = asyncio.Event(), asyncio.Event()

    async def carry_late(body: bytes) -> bytes:
        answer = await carry(body)
        if b'"vm.get_memory_regions"' in body:
            answered.set()
            await changed.wait()
        return answer

    await vm.slot_table()
    monkeypatch.setattr(wire, "carry", carry_late)
    reader = asyncio.create_task(vm.get_memory_regions())
    await answered.wait()
    async with vm.transaction() as t:
        t.delete(3)
    changed.set()
    assert sorted((await reader).slots) == [0, 1, 3]
    async with vm.transaction() as t:
        t.delete(1)
    assert await map_of(vm) == {0: (0, 4, 0)}
