"""What a hold does to vCPUs: they park inside KVM_RUN, lose nothing, and go on after the resume."""

from __future__ import annotations

import asyncio
import errno

import pytest

from tests.kvm.guest import (
    CODE,
    DATA,
    HOLE,
    RAM_BYTES,
    SPIN,
    STORE_FOREVER,
    boot,
    let_the_loop_turn,
    progress,
    refusal,
    running,
    until,
    vcpu_at,
)
from vmmd.kvm.exits import HltExit, MmioExit
from vmmd.kvm.system import System
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

LOAD = "ld a1, 0(a0)\n wfi"
STORE = "sd a1, 0(a0)\n wfi"
ANSWER = b"\x07" + bytes(7)


async def assert_parked(*vcpus: Vcpu) -> None:
    """Assert that nothing retires, however often the loop turns and the workers look."""
    before = [vcpu.stats().instructions for vcpu in vcpus]
    for _ in range(20):
        await let_the_loop_turn()
    assert [vcpu.stats().instructions for vcpu in vcpus] == before


async def fail_and_resume(vm: Vm, hold: str) -> None:
    """Make a call inside the hold fail, and have its resume roll back."""
    with refusal(errno.EINVAL):
        await vm.set_user_memory_region(1, 0, 1, PAGE_SIZE, 0, hold=hold)
    with refusal(errno.EINVAL) as rolled_back:
        await vm.resume_all_kicked_vcpus(hold)
    assert rolled_back.value.data["rolled_back"] is True


async def test_a_kick_parks_every_run_inside_and_counts_them(vm: Vm) -> None:
    await boot(vm, STORE_FOREVER)
    vcpus = [await vcpu_at(vm, index, a0=DATA + index * 8) for index in range(2)]
    await vcpu_at(vm, 2)
    async with running(*vcpus) as runs:
        kick = await vm.kick_all_running_vcpus("a")
        assert kick.kicked == 2
        assert kick.kick_ns > 0
        words = await vm.read_guest_memory(DATA, 16, hold="a")
        await assert_parked(*vcpus)
        assert await vm.read_guest_memory(DATA, 16, hold="a") == words
        assert not any(run.done() for run in runs)
        resume = await vm.resume_all_kicked_vcpus("a")
        assert resume.pause_ns >= kick.kick_ns
        assert resume.generation == kick.generation
        for vcpu in vcpus:
            await progress(vcpu)
        assert not any(run.done() for run in runs)


async def test_slots_that_go_and_come_back_inside_a_hold_are_not_missed(vm: Vm) -> None:
    base = await boot(vm, STORE_FOREVER)
    await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base + DATA)
    vcpus = [await vcpu_at(vm, index, a0=HOLE + index * 8) for index in range(2)]
    async with running(*vcpus) as runs:
        for at in range(20):
            hold = f"hold {at}"
            await vm.kick_all_running_vcpus(hold)
            await vm.set_user_memory_region(1, 0, 0, 0, 0, hold=hold)
            await let_the_loop_turn()
            await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base + DATA, hold=hold)
            await vm.resume_all_kicked_vcpus(hold)
            for vcpu in vcpus:
                await progress(vcpu)
        assert not any(run.done() for run in runs)
    assert vm.stats().exits == {}


async def test_what_a_hold_changed_is_what_every_vcpu_sees_after_it(vm: Vm) -> None:
    await boot(vm, "1: ld a1, 0(a0)\n beqz a1, 1b\n wfi")
    other = await vm.map_host_memory(PAGE_SIZE)
    base = vm.memory_regions()[1][0].userspace_addr
    await vm.write_host_memory(other, b"\x07")
    await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base + DATA)
    vcpus = [await vcpu_at(vm, index, a0=HOLE) for index in range(2)]
    async with running(*vcpus) as runs:
        await vm.kick_all_running_vcpus("a")
        await vm.set_user_memory_region(1, 0, 0, 0, 0, hold="a")
        await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, other, hold="a")
        await vm.resume_all_kicked_vcpus("a")
        assert await asyncio.gather(*runs) == [HltExit(), HltExit()]
    for vcpu in vcpus:
        assert (await vcpu.get_regs())["x11"] == 7


async def test_a_run_that_begins_in_a_hold_waits_for_its_resume(vm: Vm) -> None:
    await boot(vm, "wfi")
    vcpu = await vcpu_at(vm)
    await vm.kick_all_running_vcpus("a")
    run = asyncio.create_task(vcpu.run())
    await until(lambda: vcpu.stats().kicks == 1)
    await assert_parked(vcpu)
    assert not run.done()
    await vm.resume_all_kicked_vcpus("a")
    assert await run == HltExit()


async def test_a_vcpu_created_while_held_starts_held(vm: Vm) -> None:
    await boot(vm, "wfi")
    await vm.kick_all_running_vcpus("a")
    vcpu = await vcpu_at(vm)
    run = asyncio.create_task(vcpu.run())
    await until(lambda: vcpu.stats().kicks == 1)
    await assert_parked(vcpu)
    await vm.resume_all_kicked_vcpus("a")
    assert await run == HltExit()


async def test_a_vcpu_created_in_a_hold_that_is_rolled_back_stays_and_runs(vm: Vm) -> None:
    await boot(vm, "wfi")
    await vm.kick_all_running_vcpus("a")
    vcpu = await vcpu_at(vm)
    await fail_and_resume(vm, "a")
    assert vm.vcpu(0) is vcpu
    assert await vcpu.run() == HltExit()


@pytest.mark.parametrize("rolled_back", [False, True])
async def test_a_pending_read_parks_before_its_completion_and_completes_after(vm: Vm, rolled_back: bool) -> None:
    await boot(vm, LOAD)
    vcpu = await vcpu_at(vm, a0=HOLE)
    assert await vcpu.run() == MmioExit(HOLE, 8, is_write=False, data=None)
    await vm.kick_all_running_vcpus("a")
    run = asyncio.create_task(vcpu.run(ANSWER))
    await until(lambda: vcpu.stats().kicks == 1)
    await assert_parked(vcpu)
    regs = await vcpu.get_regs()
    assert (regs["pc"], regs["x11"]) == (CODE, 0)
    if rolled_back:
        await fail_and_resume(vm, "a")
    else:
        await vm.resume_all_kicked_vcpus("a")
    assert await run == HltExit()
    assert (await vcpu.get_regs())["x11"] == 7


@pytest.mark.parametrize("rolled_back", [False, True])
async def test_an_exit_before_a_hold_is_completed_by_a_run_after_it(vm: Vm, rolled_back: bool) -> None:
    base = await boot(vm, LOAD)
    vcpu = await vcpu_at(vm, a0=HOLE)
    await vcpu.run()
    await vm.kick_all_running_vcpus("a")
    await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base, hold="a")
    if rolled_back:
        await fail_and_resume(vm, "a")
    else:
        await vm.resume_all_kicked_vcpus("a")
    assert await vcpu.run(ANSWER) == HltExit()
    assert (await vcpu.get_regs())["x11"] == 7


async def test_a_pending_write_is_not_written_again_where_a_hold_put_memory(vm: Vm) -> None:
    base = await boot(vm, STORE)
    vcpu = await vcpu_at(vm, a0=HOLE, a1=9)
    await vcpu.run()
    await vm.kick_all_running_vcpus("a")
    await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base + DATA, hold="a")
    await vm.resume_all_kicked_vcpus("a")
    assert await vcpu.run() == HltExit()
    assert await vm.read_guest_memory(HOLE, 8) == bytes(8)


async def test_no_exit_is_swallowed_however_often_the_vm_is_held(vm: Vm) -> None:
    await boot(vm, "1: addi a1, a1, 1\n sd a1, 0(a0)\n j 1b")
    vcpu = await vcpu_at(vm, a0=HOLE)
    stores: list[int] = []

    async def serve() -> None:
        while len(stores) < 200:
            exit_ = await vcpu.run()
            assert isinstance(exit_, MmioExit)
            assert exit_.data is not None
            stores.append(int.from_bytes(exit_.data, "little"))

    served = asyncio.create_task(serve())
    holds = 0
    while not served.done():
        await vm.kick_all_running_vcpus(f"hold {holds}")
        await vm.resume_all_kicked_vcpus(f"hold {holds}")
        holds += 1
        await asyncio.sleep(0)
    await served
    assert stores == list(range(1, 201))
    assert vcpu.stats().exits == {"KVM_EXIT_MMIO": 200}


async def test_a_parked_run_ends_by_its_timeout_and_the_hold_goes_on(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    await vm.kick_all_running_vcpus("a")
    with refusal(errno.EINTR) as interrupted:
        await vcpu.run(timeout_ms=1)
    assert interrupted.value.data["exit_reason"] == "KVM_EXIT_INTR"
    assert vcpu.stats().instructions == 0
    await vm.map_host_memory(PAGE_SIZE, hold="a")
    await vm.resume_all_kicked_vcpus("a")


async def test_a_parked_run_ends_by_cancellation(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu) as (run,):
        await vm.kick_all_running_vcpus("a")
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert not vcpu.is_running
        await vm.resume_all_kicked_vcpus("a")
    async with running(vcpu):
        pass


async def test_a_parked_run_ends_by_destroy(system: System, vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    run = asyncio.create_task(vcpu.run())
    await progress(vcpu)
    await vm.kick_all_running_vcpus("a")
    await system.destroy_vm(vm.id)
    with refusal(errno.ECANCELED):
        await run


async def test_a_held_vm_leaves_another_ones_vcpus_running(system: System) -> None:
    one, other = system.create_vm(), system.create_vm()
    for vm in (one, other):
        await boot(vm, SPIN)
        await vcpu_at(vm)
    async with running(one.vcpu(0), other.vcpu(0)):
        assert (await one.kick_all_running_vcpus("a")).kicked == 1
        await progress(other.vcpu(0))
        await assert_parked(one.vcpu(0))
        await until(lambda: one.stats().kicks == 1)
        assert other.stats().kicks == 0
        await one.resume_all_kicked_vcpus("a")
        await progress(one.vcpu(0))


@pytest.mark.parametrize("engine_name", ["compiled"], indirect=True)
async def test_parked_vcpus_leave_the_workers_to_others(system: System) -> None:
    one, other = system.create_vm(), system.create_vm()
    await boot(one, SPIN)
    await boot(other, SPIN)
    held = [await vcpu_at(one, index) for index in range(4)]
    free = await vcpu_at(other)
    async with running(*held):
        assert (await one.kick_all_running_vcpus("a")).kicked == 4
        async with running(free):
            await progress(free)
        await one.resume_all_kicked_vcpus("a")
        for vcpu in held:
            await progress(vcpu)


async def test_a_slot_change_without_a_hold_is_seen_by_a_running_vcpu_once_it_returned(vm: Vm) -> None:
    base = await boot(vm, STORE_FOREVER)
    await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base + DATA)
    vcpu = await vcpu_at(vm, a0=HOLE)
    async with running(vcpu) as (run,):
        await vm.set_user_memory_region(1, 0, 0, 0, 0)
        word = await vm.read_guest_memory(DATA, 8)
        exit_ = await run
        assert isinstance(exit_, MmioExit)
        assert (exit_.phys_addr, exit_.is_write) == (HOLE, True)
        assert await vm.read_guest_memory(DATA, 8) == word
    assert exit_.data == (int.from_bytes(word, "little") + 1).to_bytes(8, "little")


async def test_unrelated_slot_changes_are_never_noticed(vm: Vm) -> None:
    base = await boot(vm, STORE_FOREVER)
    vcpu = await vcpu_at(vm, a0=DATA)
    async with running(vcpu) as (run,):
        for _ in range(30):
            await vm.set_user_memory_region(7, 0, RAM_BYTES, PAGE_SIZE, base)
            await vm.set_user_memory_region(7, 0, HOLE, PAGE_SIZE, base)
            await vm.set_user_memory_region(7, 0, 0, 0, 0)
        await progress(vcpu)
        assert not run.done()
    assert vm.stats().exits == {}
