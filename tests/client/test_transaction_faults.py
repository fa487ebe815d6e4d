"""A transaction of which any round trip goes wrong: the old map or the new one, nobody held, and every store told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from vmmd_client import (
    Client,
    ProtocolError,
    StaleGeneration,
    Transaction,
    TransactionRefused,
    TransactionUnsettled,
    TransportError,
    Vm,
    VmmdError,
)
from vmmd_client.slots.memslots import Memslot, SlotMap

from .core import Fault, Wire, another_client, core
from .logged_vm import PAGE, STORES, a_vm, store

Change = Callable[[Transaction], None]


@pytest.fixture
async def there() -> AsyncIterator[tuple[Client, Wire]]:
    async with core() as there:
        yield there


@pytest.fixture
async def there_with_short_leases() -> AsyncIterator[tuple[Client, Wire]]:
    """A core whose holds end soon where nobody can end them, and long after any transaction."""
    async with core(lease_ms=400) as there:
        yield there


def shrink(t: Transaction) -> None:
    t.shrink(0, PAGE)


def merge_logged(t: Transaction) -> None:
    t.merge(2, 3)


def switch_logging_off_and_move(t: Transaction) -> None:
    t.set_flags(2, log_dirty=False)
    t.move(3, 200 * PAGE)


def change_far_apart(t: Transaction) -> None:
    """Three changes that no vCPU can see half done."""
    gone = t.delete(4)
    t.create(guest_phys_addr=192 * PAGE, memory_size=PAGE, userspace_addr=gone.userspace_addr)
    t.create(guest_phys_addr=194 * PAGE, memory_size=PAGE, userspace_addr=gone.userspace_addr)


def one_move(t: Transaction) -> None:
    t.move(4, 192 * PAGE)


def split_much(t: Transaction) -> None:
    """More than one body takes, over a map that is in use: one list."""
    for slot in range(400):
        t.create(1000 + slot, guest_phys_addr=(1 << 30) + slot * PAGE, memory_size=PAGE, userspace_addr=PAGE)
    t.shrink(0, PAGE)


def merge_logged_and_split_much(t: Transaction) -> None:
    """More than one body takes, with dirty bits to keep: several bodies in one hold."""
    split_much(t)
    t.merge(2, 3)


CHANGES: list[Change] = [
    shrink,
    merge_logged,
    switch_logging_off_and_move,
    change_far_apart,
    one_move,
    split_much,
    merge_logged_and_split_much,
]


async def attempt(vm: Vm, change: Change) -> VmmdError | None:
    try:
        async with vm.transaction(wait_ms=50) as t:
            change(t)
    except VmmdError as error:
        return error
    return None


async def wanted(vm: Vm, change: Change) -> tuple[SlotMap, SlotMap]:
    before = (await vm.slot_table()).slots
    t = vm.transaction(dry_run=True)
    async with t:
        change(t)
    return before, t.plan().after


async def check(client: Client, vm: Vm, before: SlotMap, after: SlotMap, error: VmmdError | None) -> bool:
    """What has to be so behind any fault; tells whether the map is the new one."""
    other = client.vm(vm.id)
    # Answered at once, so nobody is held.
    await other.read_host_memory(next(iter(before.values())).userspace_addr, 1)
    standing = (await other.get_memory_regions()).slots
    assert standing in (before, after)
    if not isinstance(error, TransactionUnsettled):
        assert (standing == after) == (error is None)
    assert (await vm.slot_table()).slots == standing
    assert list(await vm.dirty.fetch()) == STORES
    assert list(await vm.dirty.fetch()) == []
    return standing == after


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("fault", Fault)
async def test_a_fault_at_any_round_trip_leaves_the_old_map_or_the_new_one_and_loses_no_store(
    there: tuple[Client, Wire], change: Change, fault: Fault
):
    client, wire = there
    position = 0
    while True:
        vm = await a_vm(client)
        before, after = await wanted(vm, change)
        await store(vm)
        wire.set_weather(lambda number, at=position: fault if number == at else None)
        error = await attempt(vm, change)
        was_reached = wire.round_trips > position
        wire.set_weather(lambda _: None)
        is_new = await check(client, vm, before, after, error)
        await vm.destroy()
        if not was_reached:
            assert error is None
            assert is_new
            break
        position += 1
    assert position > 0


@pytest.mark.parametrize("change", [change for change in CHANGES if change is not change_far_apart])
@pytest.mark.parametrize("fault", [Fault.LOST_REQUEST, Fault.LOST_REPLY])
async def test_a_daemon_that_stays_away_for_a_while_is_asked_later_and_no_store_is_lost(
    there_with_short_leases: tuple[Client, Wire], change: Change, fault: Fault
):
    client, wire = there_with_short_leases
    maps: set[bool] = set()
    position = 0
    while True:
        vm = await a_vm(client)
        before, after = await wanted(vm, change)
        await store(vm)
        wire.set_weather(lambda number, at=position: fault if number >= at else None)
        error = await attempt(vm, change)
        was_reached = wire.round_trips > position
        wire.set_weather(lambda _: None)
        # A hold that nobody could end goes with its lease.
        await client.vm(vm.id).read_host_memory(before[0].userspace_addr, 1, wait_ms=10_000)
        maps.add(await check(client, vm, before, after, error))
        await vm.destroy()
        if not was_reached:
            break
        assert error is not None
        position += 1
    assert position > 0
    assert True in maps


async def test_without_a_hold_a_daemon_that_goes_away_in_between_leaves_a_part_and_the_error_says_so(
    there: tuple[Client, Wire],
):
    client, wire = there
    vm = await a_vm(client)
    before, after = await wanted(vm, change_far_apart)
    # The dry run, the first change, and nothing behind it.
    wire.set_weather(lambda number: Fault.LOST_REQUEST if number >= 2 else None)
    error = await attempt(vm, change_far_apart)
    wire.set_weather(lambda _: None)
    assert isinstance(error, TransactionUnsettled)
    assert "the 1 steps before" in error.__notes__[0]
    standing = (await vm.slot_table()).slots
    assert standing not in (before, after)
    assert standing == (await client.vm(vm.id).get_memory_regions()).slots


@pytest.mark.parametrize("change", CHANGES)
async def test_a_client_that_repeats_what_it_may_never_takes_a_dirty_bitmap_twice(change: Change):
    async with core(attempts=2) as (client, wire):
        position = 0
        while True:
            vm = await a_vm(client)
            before, after = await wanted(vm, change)
            await store(vm)
            wire.set_weather(lambda number, at=position: Fault.LOST_REPLY if number == at else None)
            error = await attempt(vm, change)
            was_reached = wire.round_trips > position
            wire.set_weather(lambda _: None)
            await check(client, vm, before, after, error)
            await vm.destroy()
            if not was_reached:
                break
            position += 1
        assert position > 0


async def test_a_cancelled_transaction_ends_its_hold_behind_the_callers_back(there: tuple[Client, Wire]):
    client, wire = there
    vm = await a_vm(client)
    before, after = await wanted(vm, merge_logged)
    await store(vm)
    hangs = asyncio.Event()
    carry = wire.carry

    async def hang_once(body: bytes) -> bytes:
        answered = await carry(body)
        if b"kick" in body and not hangs.is_set():
            hangs.set()
            await asyncio.Event().wait()
        return answered

    wire.carry = hang_once  # type: ignore[method-assign]
    attempting = asyncio.create_task(attempt(vm, merge_logged))
    await hangs.wait()
    attempting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempting
    await client.vm(vm.id).read_host_memory(before[0].userspace_addr, 1, wait_ms=10_000)
    assert not await check(client, vm, before, after, TransportError())


async def test_a_batch_that_still_stands_in_line_is_waited_for_and_its_end_is_known(there: tuple[Client, Wire]):
    client, wire = there
    vm = await a_vm(client)
    before, after = await wanted(vm, shrink)
    await store(vm)
    carry = wire.carry
    late: list[asyncio.Task[bytes]] = []

    async def gone_while_it_waits(body: bytes) -> bytes:
        if b"memory_size" in body:
            late.append(asyncio.create_task(carry(body)))
            await asyncio.sleep(0)
            raise TransportError("gone while it stood in line")
        return await carry(body)

    other = client.vm(vm.id)
    await other.kick_all_running_vcpus("somebody else's", lease_ms=10_000)
    wire.carry = gone_while_it_waits  # type: ignore[method-assign]
    attempting = asyncio.create_task(attempt(vm, shrink))
    while wire.round_trips < 3:
        await asyncio.sleep(0)
    await other.resume_all_kicked_vcpus("somebody else's")
    error = await attempting
    await asyncio.gather(*late)
    assert error is None
    assert await check(client, vm, before, after, None)


async def test_a_second_client_that_changes_the_map_first_is_a_clear_conflict(there: tuple[Client, Wire]):
    client, wire = there
    vm = await a_vm(client)
    before, _ = await wanted(vm, shrink)
    async with another_client(wire).vm(vm.id).transaction() as t:
        one_move(t)
    for change in (shrink, merge_logged, change_far_apart, split_much):
        vm.know_slot_table((await vm.get_memory_regions()).generation - 1, before)
        assert isinstance(await attempt(vm, change), StaleGeneration)
    assert (await vm.get_memory_regions()).slots[4].guest_phys_addr == 192 * PAGE


async def test_where_another_client_comes_between_single_calls_those_before_are_undone(there: tuple[Client, Wire]):
    client, wire = there
    vm = await a_vm(client)
    before, _ = await wanted(vm, change_far_apart)
    carry = wire.carry
    calls = 0

    async def change_between(body: bytes) -> bytes:
        nonlocal calls
        calls += b'"vm.set_user_memory_region"' in body
        if calls == 2:
            calls += 1
            await client.vm(vm.id).set_user_memory_region(
                9, guest_phys_addr=1 << 32, memory_size=PAGE, userspace_addr=PAGE
            )
        return await carry(body)

    wire.carry = change_between  # type: ignore[method-assign]
    error = await attempt(vm, change_far_apart)
    assert isinstance(error, TransactionRefused)
    assert error.rolled_back
    assert isinstance(error.__cause__, StaleGeneration)
    assert (await vm.get_memory_regions()).slots == {**before, 9: Memslot(9, 0, 1 << 32, PAGE, PAGE)}


async def test_a_lost_answer_to_a_fetch_makes_the_pages_dirty_that_it_was_about(there: tuple[Client, Wire]):
    client, wire = there
    vm = await a_vm(client)
    await store(vm)
    wire.set_weather(lambda number: Fault.LOST_REPLY if number == 1 else None)
    with pytest.raises(TransportError):
        await vm.dirty.fetch()
    wire.set_weather(lambda _: None)
    assert set(STORES) <= set(await vm.dirty.fetch()) <= {page * PAGE for page in range(16, 92)}


async def test_a_vm_with_manual_protection_has_its_bits_cleared_once_they_are_here(there: tuple[Client, Wire]):
    client, wire = there
    vm = await a_vm(client)
    await vm.enable_cap("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", [1])
    await store(vm)
    wire.set_weather(lambda number: Fault.LOST_REPLY if number in {1, 4} else None)
    for _ in range(2):
        with pytest.raises(TransportError):
            await vm.dirty.fetch(manual_protect=True)
    assert list(await vm.dirty.fetch(manual_protect=True)) == STORES
    assert list(await vm.dirty.fetch(manual_protect=True)) == []


async def test_a_reply_that_is_none_is_asked_after_like_one_that_is_lost(there: tuple[Client, Wire]):
    client, wire = there
    vm = await a_vm(client)
    before, _ = await wanted(vm, shrink)
    wire.set_weather(lambda number: Fault.GARBLED_REPLY if number >= 0 else None)
    assert isinstance(await attempt(vm, shrink), TransactionUnsettled | ProtocolError)
    wire.set_weather(lambda _: None)
    assert (await vm.slot_table()).slots != before


async def test_a_slot_that_is_moved_while_its_log_is_asked_for_has_no_bit_at_the_old_address(
    there: tuple[Client, Wire],
):
    client, wire = there
    vm = await a_vm(client)
    await store(vm)
    carry, other = wire.carry, another_client(wire).vm(vm.id)
    is_moved = False

    async def move_first(body: bytes) -> bytes:
        nonlocal is_moved
        if b"get_dirty_log" in body and not is_moved:
            is_moved = True
            async with other.transaction() as t:
                t.move(3, 200 * PAGE)
            await client.vm(vm.id).write_guest_memory(201 * PAGE, b"\1")
        return await carry(body)

    wire.carry = move_first  # type: ignore[method-assign]
    told = list(await vm.dirty.fetch())
    assert is_moved
    # What slot 3 had logged before it was moved is in the view of the client that has moved it.
    assert told == [*STORES[:4], 201 * PAGE]
    assert list(await other.dirty.fetch()) == STORES[4:]
