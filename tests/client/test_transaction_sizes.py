"""Transactions of many slots, of huge ones, and of VMs that log in rings."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from vmmd_client import (
    Client,
    PlanTooLarge,
    Transaction,
    Vm,
)
from vmmd_client.changes.commit_held import LOG_PART_PAGES

from .core import LIMITS, Wire, core
from .logged_vm import LOG, PAGE, STORES, a_vm, store


@pytest.fixture
async def there() -> AsyncIterator[tuple[Client, Wire]]:
    async with core() as there:
        yield there


async def check_thousands(vm: Vm) -> None:
    async with vm.transaction(dry_run=True) as t:
        for slot in range(3000):
            t.create(guest_phys_addr=(1 << 30) + slot * PAGE, memory_size=PAGE, userspace_addr=PAGE)


async def test_what_goes_into_no_body_is_refused_before_anything_is_sent(there: tuple[Client, Wire]):
    client, wire = there
    vm = await a_vm(client)
    await vm.slot_table()
    wire.set_weather(lambda _: None)
    with pytest.raises(PlanTooLarge, match="make several transactions"):
        await check_thousands(vm)
    assert [b"get_info" in body for body in wire.bodies] == [True]


async def test_thousands_of_slots_go_in_bodies_that_the_daemon_takes_and_one_hold(there: tuple[Client, Wire]):
    client, wire = there
    vm = await a_vm(client)
    await store(vm)
    wire.set_weather(lambda _: None)
    async with vm.transaction() as t:
        for slot in range(3000):
            t.create(guest_phys_addr=(1 << 30) + slot * PAGE, memory_size=PAGE, userspace_addr=PAGE)
        t.merge(2, 3)
    assert len((await vm.get_memory_regions()).slots) == 3004
    assert max(map(len, wire.bodies)) <= LIMITS["body_bytes"]
    assert wire.round_trips > 3
    assert t.result.pause_ns is not None
    assert list(await vm.dirty.fetch()) == STORES


async def test_the_bits_of_hundreds_of_slots_take_no_more_round_trips_than_those_of_one(there: tuple[Client, Wire]):
    client, wire = there
    vm = await client.kvm.create_vm()
    memory = await vm.map_host_memory(2 * PAGE)
    async with vm.transaction() as t:
        for slot in range(500):
            t.create(guest_phys_addr=slot * 2 * PAGE, memory_size=2 * PAGE, userspace_addr=memory, flags=LOG)
    written = [slot * 2 * PAGE for slot in range(0, 500, 7)]
    for gpa in written:
        await vm.write_guest_memory(gpa, b"\1")
    wire.set_weather(lambda _: None)
    async with vm.transaction() as t:
        for slot in range(500):
            t.shrink(slot, PAGE)
    assert [b"get_info" in body for body in wire.bodies] == [True, False, False]
    assert list(await vm.dirty.fetch()) == written


async def a_vm_of_one_huge_slot(client: Client) -> Vm:
    """A logged slot whose bitmap is fetched in two parts."""
    vm = await client.kvm.create_vm()
    size = (LOG_PART_PAGES + 64) * PAGE
    memory = await vm.map_host_memory(size, sparse=True)
    await vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=size, userspace_addr=memory, flags=LOG)
    return vm


async def test_a_bitmap_that_is_too_large_for_one_answer_comes_in_parts_and_a_dry_run_foresees_it():
    async with core(guest_memory_bytes=1 << 34) as (client, wire):
        vm = await a_vm_of_one_huge_slot(client)
        stores = [0, (LOG_PART_PAGES + 1) * PAGE]
        for gpa in stores:
            await vm.write_guest_memory(gpa, b"\1")
        wire.set_weather(lambda _: None)
        for is_dry in (True, False):
            async with vm.transaction(dry_run=is_dry) as t:
                t.shrink(0, PAGE)
        assert sum(body.count(b"vm.get_dirty_log") for body in wire.bodies) == 2
        assert list(await vm.dirty.fetch()) == stores


@pytest.mark.parametrize("is_huge", [False, True])
async def test_a_vm_with_dirty_rings_has_its_logged_slots_changed_as_the_dry_run_says(is_huge: bool):
    async with core(guest_memory_bytes=1 << 34) as (client, _):
        vm = await client.kvm.create_vm()
        await vm.enable_cap("KVM_CAP_DIRTY_LOG_RING", [65_536])
        size = (LOG_PART_PAGES + 64 if is_huge else 16) * PAGE
        memory = await vm.map_host_memory(size, sparse=True)
        async with vm.transaction() as t:
            t.create(guest_phys_addr=0, memory_size=size, userspace_addr=memory, flags=LOG)
        for change in (split_in_middle, move_up, unlog):
            for is_dry in (True, False):
                async with vm.transaction(dry_run=is_dry) as t:
                    change(t)
                assert t.result.dirty == ()
        assert (await vm.get_memory_regions()).slots[0].flags == 0


@pytest.mark.parametrize("with_bitmap", [False, True])
async def test_a_hold_takes_a_huge_logged_slot_of_a_vm_with_dirty_rings(with_bitmap: bool):
    async with core(guest_memory_bytes=1 << 34) as (client, _):
        vm = await client.kvm.create_vm()
        await vm.enable_cap("KVM_CAP_DIRTY_LOG_RING_ACQ_REL", [65_536])
        if with_bitmap:
            await vm.enable_cap("KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP", [0])
        [info] = await client.kvm.list_vms()
        assert info.dirty_log == ("ring_with_bitmap" if with_bitmap else "ring")
        size = (LOG_PART_PAGES + 64) * PAGE
        memory = await vm.map_host_memory(size, sparse=True)
        async with vm.transaction() as t:
            t.create(guest_phys_addr=0, memory_size=size, userspace_addr=memory, flags=LOG)
        async with vm.hold() as hold, hold.transaction() as t:
            t.move(0, 1 << 40)
        assert (await vm.get_memory_regions()).slots[0].guest_phys_addr == 1 << 40
        assert len(t.result.dirty) == with_bitmap


def split_in_middle(t: Transaction) -> None:
    t.split(0, 8 * PAGE)


def move_up(t: Transaction) -> None:
    t.move(1, 1 << 40)


def unlog(t: Transaction) -> None:
    t.set_flags(0, log_dirty=False)
