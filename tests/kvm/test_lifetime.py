"""Destroying VMs, and that memory goes back by reference counts alone."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

import pytest

from tests.kvm.guest import (
    DATA,
    HOLE,
    RAM_BYTES,
    SPIN,
    boot,
    errno_of,
    let_the_loop_turn,
    progress,
    refusal,
    until,
    vcpu_at,
)
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

LONG_MS = 20_000
counted = pytest.mark.usefixtures("reference_counts_alone")


@counted
async def test_a_vm_that_never_ran_gives_its_memory_back(system: System, vm: Vm) -> None:
    await boot(vm, SPIN)
    assert system.guest_memory_bytes == RAM_BYTES
    await system.destroy_vm(vm.id)
    assert system.guest_memory_bytes == 0


@counted
@pytest.mark.parametrize("held", [False, True])
async def test_a_vm_that_is_destroyed_as_it_runs_gives_its_memory_back(system: System, vm: Vm, held: bool) -> None:
    await boot(vm, SPIN)
    vcpus = [await vcpu_at(vm, index) for index in range(2)]
    runs = [asyncio.create_task(errno_of(vcpu.run())) for vcpu in vcpus]
    for vcpu in vcpus:
        await progress(vcpu)
    if held:
        await vm.kick_all_running_vcpus("a")
    await system.destroy_vm(vm.id)
    assert await asyncio.gather(*runs) == [errno.ECANCELED, errno.ECANCELED]
    assert system.guest_memory_bytes == 0


@counted
async def test_a_run_that_was_interrupted_keeps_no_memory(system: System, vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    assert await errno_of(vcpu.run(timeout_ms=1)) == errno.EINTR
    await system.destroy_vm(vm.id)
    assert system.guest_memory_bytes == 0


@counted
async def test_a_run_that_met_a_lost_page_keeps_no_memory(system: System, vm: Vm) -> None:
    base = await boot(vm, "ld a1, 0(a0)")
    vcpu = await vcpu_at(vm, a0=DATA)
    await vm.unmap_host_memory(base + DATA, PAGE_SIZE)
    assert await errno_of(vcpu.run()) == errno.EFAULT
    await system.destroy_vm(vm.id)
    assert system.guest_memory_bytes == 0


@counted
async def test_an_unmap_gives_its_pages_back_when_it_returns(system: System, vm: Vm) -> None:
    base = await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    run = asyncio.create_task(errno_of(vcpu.run()))
    await progress(vcpu)
    other = await vm.map_host_memory(4 * PAGE_SIZE)
    await vm.unmap_host_memory(base + DATA, PAGE_SIZE)
    assert system.guest_memory_bytes == RAM_BYTES + 3 * PAGE_SIZE
    await vm.unmap_host_memory(other, 4 * PAGE_SIZE)
    # A worker lets go of the view that it had when it next looks at its vCPU.
    await until(lambda: system.guest_memory_bytes == RAM_BYTES - PAGE_SIZE)
    await system.destroy_vm(vm.id)
    assert await run == errno.ECANCELED


async def test_a_destroyed_vm_is_unknown_and_the_others_stay(system: System) -> None:
    one, other = system.create_vm("one"), system.create_vm("other")
    await system.destroy_vm(one.id)
    assert system.vms() == [other]
    with refusal(errno.EBADF):
        system.vm(one.id)
    with refusal(errno.EBADF):
        await system.destroy_vm(one.id)
    assert system.vm(other.id) is other


async def test_whoever_waits_for_a_vm_that_is_destroyed_is_canceled(system: System, vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    waiting = []
    for call in (
        vm.kick_all_running_vcpus("b", wait_ms=LONG_MS),
        vm.kick_all_running_vcpus("c", wait_ms=LONG_MS),
        vm.map_host_memory(PAGE_SIZE, wait_ms=LONG_MS),
    ):
        waiting.append(asyncio.ensure_future(errno_of(call)))
        await let_the_loop_turn()
    await system.destroy_vm(vm.id)
    assert await asyncio.gather(*waiting) == [errno.ECANCELED] * 3


AFTERWARDS: dict[str, Callable[[Vm], Awaitable[object]]] = {
    "KVM_SET_USER_MEMORY_REGION": lambda vm: vm.set_user_memory_region(0, 0, HOLE, PAGE_SIZE, 0),
    "KVM_GET_DIRTY_LOG": lambda vm: vm.get_dirty_log(0),
    "KVM_CREATE_VCPU": lambda vm: vm.create_vcpu(1),
    "KVM_KICK_ALL_RUNNING_VCPUS": lambda vm: vm.kick_all_running_vcpus("b"),
    "KVM_RUN": lambda vm: vm.vcpu(0).run(),
}


async def test_every_call_after_a_destroy_is_canceled_under_its_own_name(system: System, vm: Vm) -> None:
    await vm.create_vcpu(0)
    await system.destroy_vm(vm.id)
    for ioctl, call in AFTERWARDS.items():
        with refusal(errno.ECANCELED) as canceled:
            await call(vm)
        assert canceled.value.ioctl == ioctl


async def test_a_hold_that_went_with_its_vm_cannot_be_resumed(system: System, vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    await system.destroy_vm(vm.id)
    with refusal(errno.ECANCELED):
        await vm.resume_all_kicked_vcpus("a")


async def test_closing_a_system_ends_every_run(system: System) -> None:
    vms = [system.create_vm() for _ in range(2)]
    runs = []
    for vm in vms:
        await boot(vm, SPIN)
        vcpu = await vcpu_at(vm)
        runs.append(asyncio.create_task(errno_of(vcpu.run())))
        await progress(vcpu)
    await system.close()
    assert await asyncio.gather(*runs) == [errno.ECANCELED] * 2
    assert system.vms() == []
