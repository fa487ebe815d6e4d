"""Several tasks and several blocks on one VM: within one client they take turns, and none is a conflict."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vmmd_client import (
    CallTimeout,
    Client,
    Misaligned,
    NestedTurn,
    Outcome,
    OutOfRange,
    StaleGeneration,
    Transaction,
    TransactionRefused,
    TransactionUnsettled,
    TurnTimeout,
    Vm,
    VmmdError,
)
from vmmd_client.sync.wire.waiting import Turn

from .core import Fault, Wire, another_client, core

PAGE = 4096


@pytest.fixture
async def there() -> AsyncIterator[tuple[Client, Wire]]:
    async with core() as there:
        yield there


@pytest.fixture
async def vm(there: tuple[Client, Wire]) -> Vm:
    """Slot 0 logs, and has eight pages."""
    client, _ = there
    vm = await client.kvm.create_vm()
    memory = await vm.map_host_memory(64 * PAGE)
    async with vm.transaction() as t:
        t.create(guest_phys_addr=0, memory_size=8 * PAGE, userspace_addr=memory, flags=1)
    return vm


async def split_and_merge(vm: Vm) -> None:
    async with vm.transaction() as t:
        t.split(0, 4 * PAGE)
    async with vm.transaction() as t:
        t.merge(0, 1)


async def test_eight_tasks_with_a_handle_each_change_one_vm_and_a_reader_comes_through(
    there: tuple[Client, Wire], vm: Vm
):
    client, _ = there

    async def create(number: int) -> None:
        async with client.vm(vm.id).transaction() as t:
            await asyncio.sleep(0)
            t.create(guest_phys_addr=(1 << 30) + number * PAGE, memory_size=PAGE, userspace_addr=PAGE)

    await asyncio.gather(*map(create, range(8)))
    assert len((await vm.slot_table()).slots) == 9
    seen: set[int] = set()

    async def read() -> None:
        for page in range(8):
            await vm.write_guest_memory(page * PAGE, b"x", wait_ms=10_000)
            seen.update(await client.vm(vm.id).dirty.fetch(0, 8 * PAGE))

    await asyncio.gather(read(), *(remap_and_back(client.vm(vm.id)) for _ in range(4)))
    assert seen == {page * PAGE for page in range(8)}


async def remap_and_back(vm: Vm) -> None:
    for by in (PAGE, -PAGE):
        async with vm.transaction() as t:
            t.remap(0, t.slots[0].userspace_addr + by)


async def test_two_handles_of_one_client_read_one_dirty_view_and_another_client_has_its_own(
    there: tuple[Client, Wire], vm: Vm
):
    client, wire = there
    await vm.write_guest_memory(PAGE, b"x")
    async with client.vm(vm.id).transaction() as t:
        t.delete(0)
    assert list(await another_client(wire).vm(vm.id).dirty.fetch()) == []
    assert list(await client.vm(vm.id).dirty.fetch()) == [PAGE]
    assert list(await vm.dirty.fetch()) == []


async def nested(vm: Vm) -> None:
    async with vm.transaction(), vm.transaction():
        pass


async def test_a_block_inside_another_one_is_refused_at_once_and_says_what_to_do(there: tuple[Client, Wire], vm: Vm):
    _, wire = there
    wire.set_weather(lambda _: None)
    with pytest.raises(NestedTurn, match="end that block before"):
        await nested(vm)
    async with vm.hold():
        for inner in (vm.transaction(), vm.hold()):
            with pytest.raises(NestedTurn, match=r"hold\.transaction\(\)"):
                await inner.__aenter__()
        with pytest.raises(NestedTurn):
            await vm.dirty.fetch()
    assert wire.round_trips == 2
    await split_and_merge(vm)


async def begin(vm: Vm) -> None:
    async with vm.transaction(wait_ms=0):
        pass


async def test_a_turn_that_does_not_come_in_its_time_is_an_error_and_nothing_is_sent(vm: Vm):
    async with vm.transaction() as t:
        with pytest.raises(TurnTimeout, match="other tasks of this client") as caught:
            await asyncio.create_task(begin(vm.with_timeout(0.01)))
        t.split(0, PAGE)
    assert caught.value.wait_s == 0.01
    assert len((await vm.slot_table()).slots) == 2


async def test_who_waits_for_a_turn_can_be_cancelled_and_the_turn_goes_on(vm: Vm):
    async with vm.transaction():
        waiting = asyncio.create_task(begin(vm))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await split_and_merge(vm)


def test_threads_have_their_turns_in_the_order_in_which_they_came():
    turn = Turn()
    order: list[int] = []
    came = threading.Semaphore(0)

    def wait(number: int) -> None:
        came.release()
        turn.take("a test", 30)
        order.append(number)
        turn.give_back()

    turn.take("a test", 30)
    with pytest.raises(NestedTurn):
        turn.take("a test", 30)
    with ThreadPoolExecutor(4) as threads:
        done = []
        for number in range(4):
            done.append(threads.submit(wait, number))
            came.acquire()
            while len(turn._line) < number + 2:
                pass
        with pytest.raises(TurnTimeout):
            threads_turn_times_out(turn)
        turn.give_back()
    assert order == [0, 1, 2, 3]
    assert [future.exception() for future in done] == [None] * 4


def threads_turn_times_out(turn: Turn) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(turn.take, "a test", 0.001).result()


async def test_a_transaction_joins_a_hold_and_its_bits_are_told_when_the_hold_ends(vm: Vm):
    await vm.write_guest_memory(PAGE, b"x")
    async with vm.hold() as hold:
        async with hold.transaction() as t:
            t.shrink(0, PAGE)
        async with hold.transaction() as t:
            t.split(0, 4 * PAGE)
        assert len(vm.dirty.view.unsettled) == 1
    assert (await vm.slot_table()) == (await vm.get_memory_regions())
    assert t.result.generation == (await vm.slot_table()).generation
    assert list(await vm.dirty.fetch()) == [PAGE]
    with pytest.raises(VmmdError, match="has ended"):
        hold.transaction()
    with pytest.raises(VmmdError, match="not open"):
        vm.hold().transaction()


async def change_and_fail(vm: Vm) -> None:
    async with vm.hold() as hold:
        async with hold.transaction() as t:
            t.delete(0)
        await vm.set_user_memory_region(9, guest_phys_addr=0, memory_size=PAGE + 1, userspace_addr=0, hold=hold.name)


async def test_a_hold_that_is_rolled_back_takes_its_transactions_and_their_bits_back(vm: Vm):
    await vm.write_guest_memory(PAGE, b"x")
    before = (await vm.slot_table()).slots
    with pytest.raises(VmmdError):
        await change_and_fail(vm)
    assert (await vm.slot_table()).slots == before
    assert list(await vm.dirty.fetch()) == [PAGE]


async def shrink_in_a_hold(vm: Vm) -> None:
    async with vm.hold() as hold, hold.transaction() as t:
        t.shrink(0, PAGE)


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.LOST_REQUEST, Fault.REFUSED, Fault.UNSENT])
async def test_a_fault_in_a_transaction_inside_a_hold_loses_no_store(there: tuple[Client, Wire], vm: Vm, fault: Fault):
    _, wire = there
    await vm.write_guest_memory(PAGE, b"x")
    before = (await vm.slot_table()).slots
    for position in range(3):
        wire.set_weather(lambda number, at=position: fault if number == at else None)
        is_resume_refused = fault is Fault.REFUSED and position != 1
        if is_resume_refused:
            continue
        with pytest.raises(VmmdError):
            await shrink_in_a_hold(vm)
        wire.set_weather(lambda _: None)
        await vm.read_host_memory(before[0].userspace_addr, 1, wait_ms=10_000)
        standing = (await vm.get_memory_regions()).slots
        assert standing == before or position == 2
        assert list(await vm.dirty.fetch()) == [PAGE]
        await vm.write_guest_memory(PAGE, b"x")


async def shrink(vm: Vm, **options: Any) -> None:
    async with vm.transaction(**options) as t:
        t.shrink(0, PAGE)


async def test_an_error_says_in_a_field_what_became_of_the_transaction(there: tuple[Client, Wire], vm: Vm):
    _, wire = there
    await vm.slot_table()
    carry = wire.carry

    async def too_late(body: bytes) -> bytes:
        if b"slot" in body and b"memory_size" in body:
            raise CallTimeout("no answer in time; whether it was executed is not known")
        return await carry(body)

    wire.carry = too_late  # type: ignore[method-assign]
    with pytest.raises(CallTimeout) as lost:
        await shrink(vm)
    wire.carry = carry  # type: ignore[method-assign]
    assert lost.value.outcome is Outcome.NOTHING_DONE
    async with another_client(wire).vm(vm.id).transaction() as t:
        t.split(0, 4 * PAGE)
    vm.know_slot_table(t.result.generation - 1, (await vm.slot_table()).slots)
    with pytest.raises(StaleGeneration) as stale:
        await shrink(vm)
    assert stale.value.outcome is Outcome.NOTHING_DONE
    await vm.slot_table()
    wire.set_weather(lambda number: Fault.REFUSED if number == 0 else None)
    with pytest.raises(TransactionRefused) as refused:
        await shrink(vm)
    assert refused.value.outcome is Outcome.NOTHING_DONE
    await vm.slot_table()
    wire.set_weather(lambda number: Fault.LOST_REQUEST)
    with pytest.raises(TransactionUnsettled) as unsettled:
        await shrink(vm)
    assert unsettled.value.outcome is Outcome.UNKNOWN
    wire.set_weather(lambda _: None)


@pytest.mark.parametrize("wait_ms", [-1, "1", None, True, 1.5])
async def test_a_time_that_is_none_is_refused_before_the_block(vm: Vm, wait_ms: Any):
    for make in (vm.transaction, vm.hold):
        with pytest.raises(OutOfRange, match="wait_ms"):
            make(wait_ms=wait_ms)
    with pytest.raises(OutOfRange, match="wait_ms"):
        await vm.dirty.fetch(wait_ms=wait_ms)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.create(guest_phys_addr=1 << 30, memory_size=PAGE, userspace_addr=0, flags="READONLY"), "READONLY"),
        (lambda t: t.create(guest_phys_addr=1 << 30, memory_size=PAGE, userspace_addr=0, flags=None), "None"),
        (lambda t: t.create(guest_phys_addr=1 << 30, memory_size=PAGE, userspace_addr=0, flags=["LOG"]), "LOG"),
        (lambda t: t.split(0, "0x1000"), "guest_phys_addr is '0x1000'"),
        (lambda t: t.move([], PAGE), r"slot id is \[\]"),
        (lambda t: t.move("0", PAGE), "slot id is '0'; give an integer"),
        (lambda t: t.delete(False), "slot id is False"),
        (lambda t: t.merge(0, 1.5), "slot id is 1.5"),
        (lambda t: t.set_flags(0, readonly="no"), "READONLY is to be 'no'"),
    ],
)
async def test_what_is_of_another_type_is_refused_with_its_value(vm: Vm, change: Any, says: str):
    async with vm.transaction() as t:
        before = t.slots
        with pytest.raises(OutOfRange, match=says):
            change(t)
        assert t.slots == before


async def test_a_split_in_the_middle_of_a_page_names_the_address(vm: Vm):
    async with vm.transaction() as t:
        with pytest.raises(Misaligned, match="guest_phys_addr 0x64 is not a multiple of 0x1000") as caught:
            split_in_a_page(t)
    assert caught.value.field == "guest_phys_addr"


def split_in_a_page(t: Transaction) -> None:
    t.split(0, 100)


@pytest.mark.parametrize("place", [("0x0", None), (None, None), (0, "all"), (0, True)])
async def test_a_range_of_another_type_is_refused_with_its_value(vm: Vm, place: Any):
    with pytest.raises(OutOfRange, match="give an integer"):
        await vm.dirty.fetch(*place)
