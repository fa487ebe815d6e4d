"""Address spaces over the daemon's real core: a change of the tree is one transaction, or none."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rich.console import Console

from vmmd_client import (
    Client,
    InvalidArgument,
    MemFlag,
    Memslot,
    Misaligned,
    NestedTurn,
    PlanError,
    RangeOverlap,
    StaleGeneration,
    TransactionRefused,
    TransactionUnsettled,
    Vm,
    VmmdError,
)
from vmmd_client.address_space import AddressSpace, container, ram, reservation, rom, rom_device
from vmmd_client.address_space.flat_view import flatten
from vmmd_client.errors import OutOfRange
from vmmd_client.pc_demo import show
from vmmd_client.slots.memslots import SlotMap

from .core import Fault, Wire, another_client, core

PAGE = 4096


@pytest.fixture
async def there() -> AsyncIterator[tuple[Client, Wire]]:
    async with core() as there:
        yield there


class Machine:
    """A VM with 16 pages of RAM at 0, and a device's window of two pages over it that is off."""

    def __init__(self, vm: Vm, memory: int) -> None:
        self.vm = vm
        self.memory = memory
        self.root = container("system", 1 << 30)
        self.ram = self.root.add(ram("ram", 16 * PAGE, memory), 0)
        self.window = self.root.add(reservation("window", 2 * PAGE), 4 * PAGE, priority=1)
        self.window.enabled = False
        self.space = AddressSpace(vm, self.root)

    async def places(self) -> list[tuple[int, int, int]]:
        slots: SlotMap = (await self.vm.get_memory_regions()).slots
        in_order = sorted(slots.values(), key=lambda slot: slot.guest_phys_addr)
        return [(slot.guest_phys_addr // PAGE, slot.end // PAGE, slot.flags) for slot in in_order]

    async def update(self, **changes: Any) -> None:
        """Change the window's attributes."""
        async with self.space.update():
            for name, value in changes.items():
                setattr(self.window, name, value)


@pytest.fixture
async def machine(there: tuple[Client, Wire]) -> Machine:
    client, _ = there
    vm = await client.kvm.create_vm()
    machine = Machine(vm, await vm.map_host_memory(64 * PAGE))
    async with machine.space.update():
        pass
    return machine


async def test_a_window_over_ram_splits_its_slot_and_is_closed_again(machine: Machine):
    assert await machine.places() == [(0, 16, 0)]
    async with machine.space.update() as update:
        machine.window.enabled = True
    assert update.plan.reason == "[0x0, 0x4000) goes with slot 0 and comes again with slot 0"
    assert update.result.pause_ns is not None
    assert await machine.places() == [(0, 4, 0), (6, 16, 0)]
    assert machine.space.view == flatten(machine.root)
    await machine.update(enabled=False)
    assert await machine.places() == [(0, 16, 0)]


async def test_a_change_that_changes_nothing_asks_nothing(there: tuple[Client, Wire], machine: Machine):
    _, wire = there
    wire.set_weather(lambda _: None)
    async with machine.space.update() as update:
        machine.window.enabled = True
        machine.window.enabled = False
    assert (wire.round_trips, update.plan.steps) == (0, ())


async def test_only_what_has_changed_is_touched(machine: Machine):
    async with machine.space.update() as update:
        machine.root.add(ram("dimm", 4 * PAGE, machine.memory + 32 * PAGE), 32 * PAGE)
    assert [str(step) for step in update.plan.steps] == ["create slot 1 [0x20000, 0x24000)"]
    assert update.result.pause_ns is None


async def test_a_rom_device_has_a_read_only_slot_and_as_registers_none(machine: Machine):
    flash = rom_device("flash", 2 * PAGE, machine.memory + 32 * PAGE)
    async with machine.space.update():
        machine.root.add(flash, 32 * PAGE)
        machine.root.add(rom("rom", PAGE, machine.memory + 40 * PAGE), 40 * PAGE)
    assert await machine.places() == [(0, 16, 0), (32, 34, MemFlag.READONLY), (40, 41, MemFlag.READONLY)]
    async with machine.space.update():
        flash.reads_memory = False
    assert await machine.places() == [(0, 16, 0), (40, 41, MemFlag.READONLY)]


async def raise_in_the_middle(machine: Machine) -> None:
    async with machine.space.update():
        machine.window.enabled = True
        machine.root.add(reservation("other", PAGE), 8 * PAGE, priority=2)
        machine.root.remove(machine.ram)
        raise KeyError("x")


async def test_an_exception_in_the_block_sends_nothing_and_the_tree_is_as_it_was(
    there: tuple[Client, Wire], machine: Machine
):
    _, wire = there
    wire.set_weather(lambda _: None)
    with pytest.raises(KeyError):
        await raise_in_the_middle(machine)
    assert wire.round_trips == 0
    assert flatten(machine.root) == machine.space.view
    assert (machine.window.enabled, machine.ram.container) == (False, machine.root)


async def test_where_the_daemon_refuses_tree_and_map_are_as_they_were(there: tuple[Client, Wire], machine: Machine):
    _, wire = there
    wire.set_weather(lambda _: Fault.REFUSED)
    with pytest.raises(TransactionRefused, match=r"step 2 .*rolled back") as caught:
        await machine.update(enabled=True)
    wire.set_weather(lambda _: None)
    assert isinstance(caught.value.__cause__, InvalidArgument)
    assert not machine.window.enabled
    assert await machine.places() == [(0, 16, 0)]


async def test_after_an_update_whose_end_is_not_known_the_next_one_puts_the_map_right(
    there: tuple[Client, Wire], machine: Machine
):
    _, wire = there
    wire.set_weather(lambda number: Fault.LOST_REPLY)
    with pytest.raises(TransactionUnsettled):
        await machine.update(enabled=True)
    wire.set_weather(lambda _: None)
    assert not machine.window.enabled
    assert await machine.places() == [(0, 4, 0), (6, 16, 0)]
    await machine.update()
    assert await machine.places() == [(0, 16, 0)]


async def test_a_dry_run_is_checked_by_the_daemon_and_changes_neither_tree_nor_map(
    there: tuple[Client, Wire], machine: Machine
):
    _, wire = there
    wire.set_weather(lambda _: None)
    async with machine.space.update(dry_run=True) as update:
        machine.window.enabled = True
    assert [b'"dry_run":true' in body for body in wire.bodies] == [True]
    assert len(update.plan.changes) == 3
    assert not machine.window.enabled
    assert await machine.places() == [(0, 16, 0)]


async def test_slots_of_others_are_left_alone_and_nothing_is_laid_over_them(machine: Machine):
    theirs = Memslot(0x100, 0, 64 * PAGE, PAGE, machine.memory)
    await machine.vm.set_user_memory_region(
        theirs.slot, guest_phys_addr=64 * PAGE, memory_size=PAGE, userspace_addr=machine.memory
    )
    await machine.update(enabled=True)
    assert (await machine.vm.get_memory_regions()).slots[0x100] == theirs
    with pytest.raises(RangeOverlap) as caught:
        await plug(machine, 63 * PAGE, 2 * PAGE)
    assert 0x100 in caught.value.slots
    assert await machine.places() == [(0, 4, 0), (6, 16, 0), (64, 65, 0)]


async def plug(machine: Machine, addr: int, size: int, userspace_addr: int | None = None) -> None:
    memory = machine.memory if userspace_addr is None else userspace_addr
    async with machine.space.update():
        machine.root.add(ram("dimm", size, memory), addr)


async def test_where_another_client_was_first_the_comparison_is_made_anew(there: tuple[Client, Wire], machine: Machine):
    client, _ = there
    await client.vm(machine.vm.id).set_user_memory_region(
        9, guest_phys_addr=64 * PAGE, memory_size=PAGE, userspace_addr=machine.memory
    )
    await machine.update(enabled=True)
    assert await machine.places() == [(0, 4, 0), (6, 16, 0), (64, 65, 0)]


async def test_another_client_who_is_always_first_is_told_in_the_end(there: tuple[Client, Wire], machine: Machine):
    client, wire = there
    carry, number = wire.carry, 100

    async def change_before(body: bytes) -> bytes:
        nonlocal number
        if b"kick" in body:
            number += 1
            await carry(
                b'{"jsonrpc":"2.0","id":1,"method":"vm.set_user_memory_region","params":{"vm":"%s","slot":%d,"flags":0,'
                b'"guest_phys_addr":%d,"memory_size":4096,"userspace_addr":4096}}'
                % (machine.vm.id.encode(), number, number * PAGE),
            )
        return await carry(body)

    wire.carry = change_before  # type: ignore[method-assign]
    with pytest.raises(StaleGeneration):
        await machine.update(enabled=True)
    assert not machine.window.enabled
    assert len((await client.vm(machine.vm.id).get_memory_regions()).slots) == 6


async def test_two_tasks_that_change_one_tree_take_turns(machine: Machine):
    inside = 0

    async def switch(*, enabled: bool) -> None:
        nonlocal inside
        async with machine.space.update():
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            machine.window.enabled = enabled
            inside -= 1

    await asyncio.gather(*(switch(enabled=number % 2 == 0) for number in range(5)))
    assert await machine.places() == [(0, 4, 0), (6, 16, 0)]


async def test_logging_that_goes_with_a_split_keeps_its_bits(machine: Machine):
    async with machine.space.update():
        machine.root.log_dirty = True
    await machine.vm.write_guest_memory(5 * PAGE, b"x")
    await machine.vm.write_guest_memory(9 * PAGE, b"x")
    await machine.update(enabled=True)
    await machine.vm.write_guest_memory(10 * PAGE, b"x")
    assert list(await machine.vm.dirty.fetch(8 * PAGE, 2 * PAGE)) == [9 * PAGE]
    assert list(await machine.vm.dirty.fetch()) == [5 * PAGE, 10 * PAGE]


async def test_a_region_that_lies_where_no_slot_can_be_is_refused_before_anything_is_sent(
    there: tuple[Client, Wire], machine: Machine
):
    _, wire = there
    wire.set_weather(lambda _: None)
    with pytest.raises(Misaligned, match="region 'dimm': userspace_addr"):
        await plug(machine, 64 * PAGE, PAGE, machine.memory + 1)
    with pytest.raises(OutOfRange, match="userspace_addr"):
        await plug(machine, 64 * PAGE, PAGE, (1 << 47) - PAGE)
    assert wire.round_trips == 0


@pytest.mark.parametrize(
    ("addr", "error", "says"),
    [
        (0x1800, Misaligned, "begins at guest-physical 0x1800"),
        (1 << 60, OutOfRange, "guest-physical space ends at"),
    ],
)
async def test_memory_where_no_slot_can_be_is_refused_and_nothing_is_sent(
    there: tuple[Client, Wire], machine: Machine, addr: int, error: type[PlanError], says: str
):
    _, wire = there
    machine.root.size = 1 << 64
    wire.set_weather(lambda _: None)
    with pytest.raises(error, match=says):
        await plug(machine, addr, PAGE, machine.memory)
    assert wire.round_trips == 0
    assert [child.name for child in machine.root.children] == ["window", "ram"]


async def empty_update(space: AddressSpace) -> None:
    async with space.update():
        pass


async def update_inside_an_update(machine: Machine) -> None:
    async with machine.space.update():
        await empty_update(machine.space)


async def test_an_update_inside_an_update_is_refused_and_the_next_one_goes_on(machine: Machine):
    with pytest.raises(NestedTurn, match="inside another block"):
        await update_inside_an_update(machine)
    async with machine.vm.transaction() as t:
        t.create(40, guest_phys_addr=1 << 30, memory_size=PAGE, userspace_addr=machine.memory)
        with pytest.raises(NestedTurn):
            await empty_update(machine.space)
    await machine.update(enabled=True)
    assert (0, 4, 0) in await machine.places()


async def test_a_region_over_somebody_elses_slot_is_named_with_that_slot(machine: Machine):
    async with machine.vm.transaction() as t:
        t.create(500, guest_phys_addr=64 * PAGE, memory_size=PAGE, userspace_addr=machine.memory)
    with pytest.raises(RangeOverlap, match=r"region 'dimm' \[0x40000, 0x41000\) would lie over slot 500") as caught:
        await plug(machine, 64 * PAGE, PAGE, machine.memory)
    assert caught.value.slots == (500,)


async def test_two_clients_with_a_tree_each_come_both_through(there: tuple[Client, Wire], machine: Machine):
    _, wire = there
    vm = another_client(wire).vm(machine.vm.id)
    other = AddressSpace(vm, container("other", 1 << 30))

    async def plug_in_other(number: int) -> None:
        async with other.update():
            other.root.add(ram(f"dimm {number}", PAGE, machine.memory), (64 + 2 * number) * PAGE)

    both = [(machine.update(enabled=number % 2 == 0), plug_in_other(number)) for number in range(3)]
    await asyncio.gather(*(change for pair in both for change in pair))
    assert await machine.places() == [(0, 4, 0), (6, 16, 0), (64, 65, 0), (66, 67, 0), (68, 69, 0)]


async def test_an_update_shows_its_plan_before_its_end_and_has_no_result_yet(machine: Machine):
    async with machine.space.update() as update:
        machine.window.enabled = True
        before_its_end = update.plan
        assert [str(step) for step in before_its_end.steps][:1] == ["delete slot 0 [0x0, 0x10000)"]
        with pytest.raises(VmmdError, match="no result"):
            _ = update.result
    assert update.plan.steps == before_its_end.steps


async def test_the_demonstration_shows_each_switch_of_a_pc(there: tuple[Client, Wire]):
    client, _ = there
    written = io.StringIO()
    await show(await client.kvm.create_vm(), Console(file=written, width=300))
    lines = written.getvalue().splitlines()
    assert "and moved; nobody was held" in lines
    assert "  0  move slot 5 [0xfd000000, 0xfd100000) to [0xfe000000, 0xfe100000)" in lines
    assert sum("fetch the dirty log" in line for line in lines) == 3
