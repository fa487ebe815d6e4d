"""The system's ioctls and every limit."""

from __future__ import annotations

import errno

import pytest

from tests.kvm.guest import refusal
from vmmd.kvm.system import System
from vmmd.kvm.uapi import KVM_API_VERSION
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

MIB = 1 << 20
pytestmark = pytest.mark.parametrize("engine_name", ["evaluated"], indirect=True)


@pytest.mark.parametrize(
    ("extension", "value"),
    [
        ("KVM_CAP_NR_MEMSLOTS", 32764),
        ("KVM_CAP_MAX_VCPUS", 1024),
        ("KVM_CAP_MULTI_ADDRESS_SPACE", 0),
        ("KVM_CAP_READONLY_MEM", 1),
        ("KVM_CAP_IMMEDIATE_EXIT", 1),
        ("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", 3),
        ("KVM_CAP_HYPERV", 0),
        ("nonsense", 0),
    ],
)
async def test_a_capability_has_its_value_and_an_unknown_one_zero(system: System, extension: str, value: int) -> None:
    assert system.check_extension(extension) == value


async def test_the_version_is_twelve(system: System) -> None:
    assert KVM_API_VERSION == 12
    assert system.vms() == []


async def test_vms_have_ids_of_their_own_and_the_names_they_were_given(system: System) -> None:
    one, other = system.create_vm("same"), system.create_vm("same")
    assert one.id != other.id
    assert (one.name, other.name) == ("same", "same")
    assert system.vm(one.id) is one
    await system.destroy_vm(one.id)
    assert system.create_vm().id not in {one.id, other.id}


async def test_an_unknown_vm_is_ebadf(system: System) -> None:
    with refusal(errno.EBADF) as unknown:
        system.vm("vm99")
    assert "vm99" in unknown.value.message


async def test_a_vm_too_many_is_emfile_and_one_that_goes_makes_room(system: System) -> None:
    vms = [system.create_vm() for _ in range(3)]
    with refusal(errno.EMFILE) as full:
        system.create_vm()
    assert full.value.ioctl == "KVM_CREATE_VM"
    assert system.vms() == vms
    await system.destroy_vm(vms[1].id)
    system.create_vm()


async def test_memory_beyond_the_limit_of_all_vms_is_enomem_and_nothing_is_mapped(system: System) -> None:
    one, other = system.create_vm(), system.create_vm()
    base = await one.map_host_memory(40 * MIB)
    with refusal(errno.ENOMEM) as full:
        await other.map_host_memory(24 * MIB + PAGE_SIZE)
    assert "67108864" in full.value.message
    assert system.guest_memory_bytes == 40 * MIB
    await other.map_host_memory(24 * MIB)
    await one.unmap_host_memory(base, 8 * MIB)
    await other.map_host_memory(8 * MIB)
    assert system.guest_memory_bytes == 64 * MIB


@pytest.mark.parametrize("vcpu_id", [-1, 8, 1024, 1 << 32])
async def test_a_vcpu_id_out_of_range_is_einval(vm: Vm, vcpu_id: int) -> None:
    with refusal(errno.EINVAL) as wrong:
        await vm.create_vcpu(vcpu_id)
    assert wrong.value.ioctl == "KVM_CREATE_VCPU"
    assert vm.vcpus == {}


async def test_a_vcpu_id_that_is_taken_is_eexist_and_the_vcpu_stays(vm: Vm) -> None:
    vcpu = await vm.create_vcpu(7)
    with refusal(errno.EEXIST):
        await vm.create_vcpu(7)
    assert vm.vcpu(7) is vcpu
    assert list(vm.vcpus) == [7]


async def test_an_unknown_vcpu_is_ebadf(vm: Vm) -> None:
    with refusal(errno.EBADF):
        vm.vcpu(0)


async def test_an_error_says_ioctl_errno_and_sentence(vm: Vm) -> None:
    with refusal(errno.EINVAL) as wrong:
        await vm.set_user_memory_region(9, 0, 0, 0, 0)
    assert wrong.value.name == "EINVAL"
    assert str(wrong.value) == ("KVM_SET_USER_MEMORY_REGION: EINVAL: slot 9 is not set, so it cannot be deleted")
