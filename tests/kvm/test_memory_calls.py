"""Host memory, guest memory and memslots through the VM's ioctls."""

from __future__ import annotations

import errno

import pytest

from tests.kvm.guest import DATA, HOLE, STORE_FOREVER, boot, progress, refusal, running, vcpu_at
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY

evaluated = pytest.mark.parametrize("engine_name", ["evaluated"], indirect=True)


@evaluated
async def test_the_generation_is_one_more_for_each_table_and_stays_at_what_changes_nothing(vm: Vm) -> None:
    base = await vm.map_host_memory(4 * PAGE_SIZE)
    assert vm.generation == 0
    assert await vm.set_user_memory_region(0, 0, 0, PAGE_SIZE, base) == 1
    assert await vm.set_user_memory_region(0, 0, 0, PAGE_SIZE, base) == 1
    assert await vm.set_user_memory_region(0, 0, PAGE_SIZE, PAGE_SIZE, base) == 2
    assert await vm.set_user_memory_region(0, KVM_MEM_LOG_DIRTY_PAGES, PAGE_SIZE, PAGE_SIZE, base) == 3
    assert await vm.set_user_memory_region(0, 0, 0, 0, 0) == 4
    assert vm.generation == 4


@evaluated
@pytest.mark.parametrize(
    ("region", "number"),
    [
        ((1, 0, 0x3000, 0x2000, 0), errno.EEXIST),
        ((1, 8, 0x8000, 0x1000, 0), errno.EINVAL),
        ((0, 0, 0, 0x3000, 0), errno.EINVAL),
        ((5, 0, 0, 0, 0), errno.EINVAL),
    ],
)
async def test_a_refused_region_leaves_slots_generation_and_view_as_they_were(
    vm: Vm, region: tuple[int, int, int, int, int], number: int
) -> None:
    await boot(vm, "wfi")
    before = vm.memory_regions()
    with refusal(number) as refused:
        await vm.set_user_memory_region(*region)
    assert refused.value.ioctl == "KVM_SET_USER_MEMORY_REGION"
    after = vm.memory_regions()
    assert after == before
    assert after[1][0] is before[1][0]


@evaluated
async def test_regions_are_given_by_id_and_in_parts(vm: Vm) -> None:
    for slot in (7, 300, 2, 32763, 5):
        await vm.set_user_memory_region(slot, 0, slot * PAGE_SIZE, PAGE_SIZE, 0)
    generation, regions = vm.memory_regions()
    assert generation == 5
    assert [region.slot for region in regions] == [2, 5, 7, 300, 32763]
    assert [region.slot for region in vm.memory_regions(1, 2)[1]] == [5, 7]
    assert [region.slot for region in vm.memory_regions(3)[1]] == [300, 32763]
    assert vm.memory_regions(5, 1)[1] == []


@evaluated
async def test_host_memory_is_given_zeroed_and_keeps_what_is_written(vm: Vm) -> None:
    base = await vm.map_host_memory(2 * PAGE_SIZE, "ram")
    assert await vm.read_host_memory(base, 2 * PAGE_SIZE) == bytes(2 * PAGE_SIZE)
    await vm.write_host_memory(base + PAGE_SIZE - 3, b"across")
    assert await vm.read_host_memory(base + PAGE_SIZE - 3, 6) == b"across"


@evaluated
@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE + 1])
async def test_host_memory_is_mapped_and_unmapped_in_whole_pages(vm: Vm, size: int) -> None:
    base = await vm.map_host_memory(PAGE_SIZE)
    with refusal(errno.EINVAL):
        await vm.map_host_memory(size)
    with refusal(errno.EINVAL):
        await vm.unmap_host_memory(base, size)
    assert await vm.read_host_memory(base, 1) == b"\0"


@evaluated
async def test_an_address_of_one_vm_is_nothing_in_another(vm: Vm) -> None:
    with refusal(errno.EFAULT) as hole:
        await vm.read_host_memory(id(vm), 8)
    assert hole.value.ioctl is None


@evaluated
async def test_a_slots_mapping_is_looked_at_when_it_is_touched_and_not_when_it_is_set(vm: Vm) -> None:
    await vm.set_user_memory_region(0, 0, 0, PAGE_SIZE, 0x7000_0000)
    with refusal(errno.EFAULT):
        await vm.read_guest_memory(0, 1)
    with refusal(errno.EFAULT):
        await vm.write_guest_memory(0, b"x")


@evaluated
async def test_guest_writes_pass_over_slots_and_stop_before_the_first_byte_where_one_page_refuses(vm: Vm) -> None:
    base = await vm.map_host_memory(3 * PAGE_SIZE)
    await vm.set_user_memory_region(0, 0, 0, PAGE_SIZE, base)
    await vm.set_user_memory_region(1, 0, PAGE_SIZE, PAGE_SIZE, base + PAGE_SIZE)
    await vm.set_user_memory_region(2, KVM_MEM_READONLY, 2 * PAGE_SIZE, PAGE_SIZE, base + 2 * PAGE_SIZE)
    await vm.write_guest_memory(PAGE_SIZE - 2, b"over")
    assert await vm.read_guest_memory(PAGE_SIZE - 2, 4) == b"over"
    assert await vm.read_guest_memory(2 * PAGE_SIZE, 1) == b"\0"
    with refusal(errno.EFAULT):
        await vm.write_guest_memory(PAGE_SIZE - 2, b"x" * (PAGE_SIZE + 3))
    assert await vm.read_guest_memory(PAGE_SIZE - 2, 4) == b"over"


async def test_no_running_vcpu_reaches_a_page_once_its_unmap_returned(vm: Vm) -> None:
    base = await boot(vm, STORE_FOREVER)
    await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base + DATA)
    vcpu = await vcpu_at(vm, a0=DATA)
    async with running(vcpu) as (run,):
        await progress(vcpu)
        await vm.unmap_host_memory(base + DATA, PAGE_SIZE)
        with refusal(errno.EFAULT):
            await run
    assert await vm.map_host_memory(PAGE_SIZE) != base


async def test_a_running_vcpu_sees_what_the_api_writes(vm: Vm) -> None:
    await boot(vm, "1: ld a1, 0(a0)\n beqz a1, 1b\n wfi")
    vcpu = await vcpu_at(vm, a0=DATA)
    async with running(vcpu) as (run,):
        await vm.write_guest_memory(DATA, b"\x2a")
        await run
    assert (await vcpu.get_regs())["x11"] == 0x2A
