"""Leases: a hold that its owner has left is rolled back and released, and its name tells what became of it."""

from __future__ import annotations

import asyncio
import errno

import pytest

from tests.kvm.guest import CODE, DATA, SPIN, boot, lease_has_run_out, progress, refusal, released, running, vcpu_at
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm

LONG, SHORT = 60_000, 1


async def test_a_hold_that_nobody_resumes_ends_with_its_lease_and_the_guest_goes_on(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu):
        kick = await vm.kick_all_running_vcpus("hold", lease_ms=SHORT)
        assert kick.lease_ms == SHORT
        await released(vm)
        await progress(vcpu)


async def test_what_was_done_inside_is_rolled_back(vm: Vm) -> None:
    base = await boot(vm, SPIN, flags=1)
    await vm.write_guest_memory(DATA, b"x")
    generation = vm.generation
    await vm.kick_all_running_vcpus("hold", lease_ms=300)
    mapped = await vm.map_host_memory(4096, hold="hold")
    dirty = await vm.get_dirty_log(0, hold="hold")
    await vm.set_user_memory_region(0, 0, 0, 0, 0, hold="hold")
    await vm.set_user_memory_region(1, 0, 0x20_0000, 4096, mapped, hold="hold")
    await released(vm)
    assert [slot.slot for slot in vm.memory_regions()[1]] == [0]
    assert vm.memslots.get(0).userspace_addr == base
    assert vm.generation > generation
    assert await vm.get_dirty_log(0) == dirty
    with refusal(errno.EFAULT):
        await vm.read_host_memory(mapped, 1)


async def test_the_name_tells_what_became_of_it(vm: Vm) -> None:
    await boot(vm, SPIN)
    await vm.kick_all_running_vcpus("hold", lease_ms=SHORT)
    await released(vm)
    for call in (
        vm.resume_all_kicked_vcpus("hold"),
        vm.kick_all_running_vcpus("hold"),
        vm.read_guest_memory(CODE, 1, hold="hold"),
    ):
        with refusal(errno.ECANCELED) as ended:
            await call
        assert ended.value.data["became"] == "was rolled back when its lease ran out"


async def test_the_same_kick_again_renews_the_lease_and_is_not_counted(system: System, vm: Vm) -> None:
    await boot(vm, SPIN)
    await vm.kick_all_running_vcpus("hold", lease_ms=500)
    renewed = await vm.kick_all_running_vcpus("hold", lease_ms=LONG)
    assert (renewed.renewed, renewed.lease_ms) == (True, LONG)
    await lease_has_run_out(system, 500)
    await vm.read_guest_memory(CODE, 1, hold="hold")
    await vm.resume_all_kicked_vcpus("hold")
    await vm.read_guest_memory(CODE, 1)


async def test_a_lease_is_at_most_what_the_limits_allow(vm: Vm) -> None:
    assert (await vm.kick_all_running_vcpus("hold", lease_ms=1 << 31)).lease_ms == 60_000
    await vm.resume_all_kicked_vcpus("hold")
    assert (await vm.kick_all_running_vcpus("other")).lease_ms == 5000


async def test_a_lease_that_was_ended_by_a_resume_does_not_end_the_next_hold(system: System, vm: Vm) -> None:
    await boot(vm, SPIN)
    await vm.kick_all_running_vcpus("one", lease_ms=50)
    await vm.resume_all_kicked_vcpus("one")
    await vm.kick_all_running_vcpus("two", lease_ms=LONG)
    await lease_has_run_out(system, 50)
    await vm.read_guest_memory(CODE, 1, hold="two")


async def test_a_failed_hold_expires_too(vm: Vm) -> None:
    await boot(vm, SPIN)
    await vm.kick_all_running_vcpus("hold", lease_ms=100)
    with refusal(errno.EINVAL):
        await vm.set_user_memory_region(0, 0, 1, 4096, 0, hold="hold")
    await released(vm)
    with refusal(errno.ECANCELED) as ended:
        await vm.resume_all_kicked_vcpus("hold")
    assert "lease" in ended.value.message


async def test_a_call_under_way_ends_before_the_rollback(vm: Vm) -> None:
    base = await boot(vm, SPIN)
    await vm.kick_all_running_vcpus("hold", lease_ms=LONG)
    # A call inside is under way for as long as this passage is.
    async with vm._gate.inside({"hold": "hold"}):
        vm.expire_hold("hold", "was left")
        with refusal(errno.ECANCELED):
            await vm.read_guest_memory(CODE, 1, hold="hold")
        with refusal(errno.EBUSY):
            await vm.read_guest_memory(CODE, 1)
    await vm.read_guest_memory(CODE, 1)
    with refusal(errno.ECANCELED) as ended:
        await vm.resume_all_kicked_vcpus("hold")
    assert ended.value.data["became"] == "was left"
    assert vm.memslots.get(0).userspace_addr == base


async def test_whoever_waits_in_line_gets_his_turn_when_a_lease_runs_out(vm: Vm) -> None:
    await boot(vm, SPIN)
    await vm.kick_all_running_vcpus("one", lease_ms=20)
    assert (await vm.kick_all_running_vcpus("two", wait_ms=20_000)).hold == "two"
    await vm.resume_all_kicked_vcpus("two")


async def test_destroying_a_vm_lets_go_of_its_lease(system: System, vm: Vm) -> None:
    await vm.kick_all_running_vcpus("hold", lease_ms=20)
    await vm.destroy()
    await lease_has_run_out(system, 20)
    with refusal(errno.ECANCELED):
        await vm.resume_all_kicked_vcpus("hold")


@pytest.mark.parametrize("held", [False, True])
async def test_a_call_that_waited_is_checked_against_the_generation_that_it_finds(vm: Vm, held: bool) -> None:
    base = await boot(vm, SPIN)
    generation = vm.generation
    await vm.kick_all_running_vcpus("one")
    if held:
        waiting = asyncio.create_task(vm.kick_all_running_vcpus("two", wait_ms=20_000, if_generation=generation))
    else:
        entry = {"wait_ms": 20_000, "if_generation": generation}
        waiting = asyncio.create_task(vm.write_guest_memory(DATA, b"late", **entry))
    await asyncio.sleep(0)
    await vm.set_user_memory_region(7, 0, 0x20_0000, 4096, base, hold="one")
    await vm.resume_all_kicked_vcpus("one")
    with refusal(errno.ESTALE) as stale:
        await waiting
    assert stale.value.data["generation"] == vm.generation
    assert await vm.read_guest_memory(DATA, 4) == bytes(4)
