"""A change of a slot at once: only where nobody has to be waited for, and then as any other change."""

from __future__ import annotations

import errno

import pytest

from tests.kvm.guest import boot, running, vcpu_at
from vmmd.kvm.errors import KvmError
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import Region

pytestmark = pytest.mark.parametrize("engine_name", ["evaluated"], indirect=True)


async def a_page_at(vm: Vm, gpa: int) -> Region:
    return Region(5, 0, gpa, PAGE_SIZE, await vm.map_host_memory(PAGE_SIZE))


async def test_where_nobody_is_in_the_way_a_change_at_once_is_the_change(vm: Vm) -> None:
    region = await a_page_at(vm, 0)
    assert vm.set_user_memory_region_at_once(region) == vm.generation == 1
    await vm.write_guest_memory(0, b"here")
    # It changes nothing more, and the generation stays.
    assert vm.set_user_memory_region_at_once(region) == 1


async def test_a_refusal_at_once_names_the_ioctl_and_changes_nothing(vm: Vm) -> None:
    with pytest.raises(KvmError) as refused:
        vm.set_user_memory_region_at_once(Region(0, 0, 1, PAGE_SIZE, 0))
    assert (refused.value.errno, refused.value.ioctl) == (errno.EINVAL, "KVM_SET_USER_MEMORY_REGION")
    assert vm.generation == 0


async def test_while_the_vm_is_held_nothing_is_changed_at_once(vm: Vm) -> None:
    region = await a_page_at(vm, 0)
    await vm.kick_all_running_vcpus("mine")
    assert vm.set_user_memory_region_at_once(region) is None
    await vm.resume_all_kicked_vcpus("mine")
    assert vm.generation == 0
    assert vm.set_user_memory_region_at_once(region) == 1


async def test_while_a_vcpu_is_inside_kvm_run_nothing_is_changed_at_once(vm: Vm) -> None:
    await boot(vm, "j .")
    async with running(await vcpu_at(vm)):
        generation = vm.generation
        assert vm.set_user_memory_region_at_once(await a_page_at(vm, 64 * PAGE_SIZE)) is None
        assert vm.generation == generation


async def test_of_a_vm_that_is_destroyed_nothing_is_changed_at_once(vm: Vm) -> None:
    region = await a_page_at(vm, 0)
    await vm.destroy()
    assert vm.set_user_memory_region_at_once(region) is None
