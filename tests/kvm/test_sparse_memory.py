"""Sparse host memory: the largest slot that there can be costs what is touched of it, and no more than the limit."""

from __future__ import annotations

import errno
import gc
import time

import pytest

from tests.kvm.guest import CODE, boot, refusal, vcpu_at
from vmmd.kvm.exits import HltExit
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import MAX_SLOT_PAGES, PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

LARGEST = MAX_SLOT_PAGES * PAGE_SIZE
BASE = 1 << 44

TOUCH = """
    # a0: from where, a1: how far apart, a2: how many
1:  sd a0, 0(a0)
    ld a3, 0(a0)
    bne a3, a0, 2f
    add a0, a0, a1
    addi a2, a2, -1
    bnez a2, 1b
2:  wfi
"""


async def with_largest_slot(vm: Vm, *, flags: int = 0) -> int:
    await boot(vm, TOUCH)
    sparse = await vm.map_host_memory(LARGEST, sparse=True)
    await vm.set_user_memory_region(1, flags, BASE, LARGEST, sparse)
    return sparse


async def test_the_largest_slot_costs_nothing_until_it_is_touched(system: System, vm: Vm) -> None:
    before = system.guest_memory_bytes
    await with_largest_slot(vm)
    cost = system.guest_memory_bytes - before
    vcpu = await vcpu_at(vm, a0=BASE, a1=1 << 36, a2=100)
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x12"] == 0
    assert system.guest_memory_bytes - before - cost == 100 * PAGE_SIZE


async def test_pages_side_by_side_are_each_charged_once(system: System, vm: Vm) -> None:
    await with_largest_slot(vm)
    before = system.guest_memory_bytes
    vcpu = await vcpu_at(vm)
    for _ in range(3):
        await vcpu.set_regs({"pc": CODE, "a0": BASE + 60 * PAGE_SIZE, "a1": 1024, "a2": 4 * 200})
        assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x12"] == 0
    assert system.guest_memory_bytes - before == 200 * PAGE_SIZE


async def test_the_limit_on_touched_pages_holds_and_the_guest_goes_on_when_there_is_room(
    system: System, vm: Vm
) -> None:
    sparse = await with_largest_slot(vm)
    hog = await vm.map_host_memory((64 << 20) - system.guest_memory_bytes - 10 * PAGE_SIZE)
    vcpu = await vcpu_at(vm, a0=BASE, a1=PAGE_SIZE, a2=20)
    with refusal(errno.EFAULT):
        await vcpu.run()
    regs = await vcpu.get_regs()
    assert regs["x10"] == BASE + 10 * PAGE_SIZE
    with refusal(errno.ENOMEM):
        await vm.write_host_memory(sparse + (1 << 30), b"x")
    assert await vm.read_host_memory(sparse + (1 << 30), 4) == bytes(4)
    await vm.unmap_host_memory(hog, 10 * PAGE_SIZE)
    assert await vcpu.run() == HltExit()


async def test_unmapped_pages_of_a_sparse_mapping_give_their_charge_back(system: System, vm: Vm) -> None:
    sparse = await with_largest_slot(vm)
    before = system.guest_memory_bytes
    await vm.write_host_memory(sparse, bytes(50 * PAGE_SIZE))
    await vm.unmap_host_memory(sparse + 10 * PAGE_SIZE, 100 * PAGE_SIZE)
    assert system.guest_memory_bytes - before == 10 * PAGE_SIZE


async def test_the_log_of_the_largest_slot_is_fetched_in_parts(vm: Vm) -> None:
    await with_largest_slot(vm, flags=KVM_MEM_LOG_DIRTY_PAGES)
    vcpu = await vcpu_at(vm, a0=BASE + (1 << 40), a1=PAGE_SIZE, a2=3)
    await vcpu.run()
    first = (1 << 40) // PAGE_SIZE
    part = await vm.get_dirty_log(1, first_page=first, num_pages=64)
    assert int.from_bytes(part, "little") == 0b111


async def test_half_of_the_largest_mapping_is_unmapped_while_others_are_served(system: System, vm: Vm) -> None:
    sparse = await with_largest_slot(vm)
    before = system.guest_memory_bytes
    for page in (0, 1 << 20, (1 << 26) - 1, 1 << 26):
        await vm.write_host_memory(sparse + page * PAGE_SIZE, b"x")
    start = time.perf_counter()
    await vm.unmap_host_memory(sparse + PAGE_SIZE, (1 << 38) - PAGE_SIZE)
    # A look at each page took half a minute.
    assert time.perf_counter() - start < 1
    assert system.guest_memory_bytes - before == 2 * PAGE_SIZE
    assert await vm.read_host_memory(sparse, 1) == b"x"
    assert await vm.read_host_memory(sparse + (1 << 38), 1) == b"x"


async def test_a_refused_write_charges_nothing(system: System, vm: Vm) -> None:
    sparse = await vm.map_host_memory(1 << 20, sparse=True)
    await vm.set_user_memory_region(0, 0, 0, 1 << 20, sparse)
    other = await vm.map_host_memory(1 << 30, sparse=True)
    await vm.set_user_memory_region(1, 0, 1 << 20, 1 << 30, other)
    with refusal(errno.EFAULT):
        await vm.write_guest_memory((1 << 30) + (1 << 19), bytes(1 << 20))
    with refusal(errno.EFAULT):
        await vm.write_host_memory(sparse + (1 << 19), bytes(1 << 20))
    # The limit of this system is 64 MiB.
    with refusal(errno.ENOMEM) as refused:
        await vm.write_guest_memory(0, bytes(65 << 20))
    assert "limits.guest_memory_bytes" in refused.value.message
    assert system.guest_memory_bytes == 0


@pytest.mark.parametrize(
    ("all_vms", "one_vm", "setting"),
    [
        (LARGEST + PAGE_SIZE, 1 << 45, "limits.sparse_mapping_bytes)"),
        (1 << 45, LARGEST + PAGE_SIZE, "limits.sparse_mapping_bytes_per_vm)"),
    ],
)
async def test_sparse_mappings_are_bounded_by_their_sizes_and_the_refusal_names_the_setting(
    all_vms: int, one_vm: int, setting: str
) -> None:
    limits = Limits(1 << 24, vms=2, vcpus_per_vm=1, sparse_mapping_bytes=all_vms, sparse_mapping_bytes_per_vm=one_vm)
    system = System(engine="evaluated", cache_dir=None, workers=1, limits=limits)
    first, second = system.create_vm(), system.create_vm()
    largest = await first.map_host_memory(LARGEST, sparse=True)
    await first.map_host_memory(PAGE_SIZE, sparse=True)
    with refusal(errno.ENOMEM) as refused:
        await first.map_host_memory(PAGE_SIZE, sparse=True)
    assert setting in refused.value.message
    # Addresses are taken until the last page of a mapping goes.
    await first.unmap_host_memory(largest, LARGEST - PAGE_SIZE)
    with refusal(errno.ENOMEM):
        await first.map_host_memory(PAGE_SIZE, sparse=True)
    assert await second.map_host_memory(PAGE_SIZE)
    del refused
    await system.destroy_vm(first.id)
    # The refusals' frames still hold the first VM.
    gc.collect()
    assert await second.map_host_memory(LARGEST, sparse=True)
    await system.close()
