"""The raw kick and resume, as they were proposed in October 2022: every corner case, flaws included."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.kvm.guest import DATA, HOLE, SPIN, boot, progress, refusal, running, until, vcpu_at
from vmmd.isa.context import Context
from vmmd.isa.engine import ContextGroup, Engine
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import HltExit, MmioExit
from vmmd.kvm.requests import KVM_REQ_USERSPACE_KICK
from vmmd.kvm.system import System
from vmmd.kvm.uapi import KVM_MP_STATE_HALTED
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.machine.machine import Machines


async def interrupted(run: asyncio.Task[object]) -> None:
    """Expect a run to have been ended by a kick."""
    with pytest.raises(KvmError) as ended:
        await run
    assert (ended.value.errno, ended.value.data["exit_reason"]) == (errno.EINTR, "KVM_EXIT_UNKNOWN")


async def refused(vcpu: Vcpu) -> str:
    """Run a vCPU that is kicked; return the exit reason that comes with EINTR."""
    with refusal(errno.EINTR) as kicked:
        await vcpu.run()
    reason: str = kicked.value.data["exit_reason"]
    return reason


async def test_a_kick_without_vcpus_or_with_none_running_returns_at_once(vm: Vm) -> None:
    assert (await vm.kick_all_running_vcpus()).kicked == 0
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    kick = await vm.kick_all_running_vcpus()
    assert (kick.hold, kick.kicked, kick.lease_ms) == (None, 0, None)
    assert await refused(vcpu) == "KVM_EXIT_UNKNOWN"


async def test_a_kick_returns_when_every_run_has_and_none_goes_on_until_the_resume(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpus = [await vcpu_at(vm, index) for index in range(3)]
    async with running(*vcpus) as runs:
        assert (await vm.kick_all_running_vcpus()).kicked == 3
        assert not any(vcpu.is_running for vcpu in vcpus)
        for run in runs:
            await interrupted(run)
        retired = vm.stats().instructions
        for vcpu in vcpus:
            await refused(vcpu)
        assert vm.stats().instructions == retired
        await vm.resume_all_kicked_vcpus()
        async with running(*vcpus):
            await progress(vcpus[0])


async def test_a_second_kick_is_idempotent_and_one_resume_ends_both(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    await vm.kick_all_running_vcpus()
    await vm.kick_all_running_vcpus()
    await refused(vcpu)
    await vm.resume_all_kicked_vcpus()
    async with running(vcpu):
        await progress(vcpu)


async def test_a_resume_without_a_kick_does_nothing(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu) as (run,):
        assert (await vm.resume_all_kicked_vcpus()).pause_ns is None
        await progress(vcpu)
        assert not run.done()


async def test_a_vcpu_that_is_created_between_kick_and_resume_runs(vm: Vm) -> None:
    await boot(vm, SPIN)
    await vm.kick_all_running_vcpus()
    vcpu = await vcpu_at(vm)
    async with running(vcpu):
        await progress(vcpu)


async def test_a_run_that_races_with_a_kick_runs_no_instruction_once_the_kick_has_returned(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpus = [await vcpu_at(vm, index) for index in range(4)]
    for _ in range(50):
        runs = [asyncio.create_task(vcpu.run()) for vcpu in vcpus]
        await vm.kick_all_running_vcpus()
        retired = vm.stats().instructions
        for run in runs:
            with pytest.raises(KvmError):
                await run
        assert vm.stats().instructions == retired
        await vm.resume_all_kicked_vcpus()


async def test_other_calls_are_not_held_off_and_the_kick_does_nothing_about_dirty_bits(vm: Vm) -> None:
    base = await boot(vm, "sd a0, 0(a0)\n wfi", flags=1)
    vcpu = await vcpu_at(vm, a0=DATA)
    await vcpu.run()
    await vm.kick_all_running_vcpus()
    await vm.set_user_memory_region(5, 0, HOLE, 4096, base)
    await vm.write_guest_memory(DATA, b"x")
    assert any(await vm.get_dirty_log(0))
    assert not any(await vm.get_dirty_log(0))


async def test_running_means_inside_kvm_run_and_sleepers_are_woken(vm: Vm) -> None:
    await vm.create_irqchip()
    await boot(vm, "wfi\n" + SPIN)
    vcpu = await vcpu_at(vm, mie=1 << 3)
    async with running(vcpu) as (run,):
        while await vcpu.get_mp_state() != KVM_MP_STATE_HALTED:
            await asyncio.sleep(0)
        assert (await vm.kick_all_running_vcpus()).kicked == 1
        await interrupted(run)
        assert await vcpu.get_mp_state() == KVM_MP_STATE_HALTED


@pytest.mark.parametrize(
    ("source", "reason", "retired", "behind"),
    [
        ("ld a1, 0(a0)\n wfi", "KVM_EXIT_MMIO", 0, 1),
        ("inb a1, 0(a0)\n wfi", "KVM_EXIT_IO", 0, 1),
        ("wfi\n wfi", "KVM_EXIT_HLT", 1, 1),
        (".word 0\n wfi", "KVM_EXIT_SHUTDOWN", 0, 0),
    ],
)
async def test_an_exit_of_the_same_round_is_swallowed_and_completed_unseen(
    system: System, vm: Vm, source: str, reason: str, retired: int, behind: int
) -> None:
    await boot(vm, source)
    vcpu = await vcpu_at(vm, a0=HOLE, a1=9)
    with kick_in_the_round(vm):
        assert await refused(vcpu) == reason
    assert (await vcpu.get_regs())["instret"] == retired
    assert vcpu.stats().exits == {}
    # The completion goes ahead between kick and resume, with zeroes, since nobody was asked; no instruction after it.
    assert await refused(vcpu) == "KVM_EXIT_UNKNOWN"
    regs = await vcpu.get_regs()
    assert regs["instret"] == behind
    assert regs["x11"] == (0 if reason in {"KVM_EXIT_MMIO", "KVM_EXIT_IO"} else 9)
    await vm.resume_all_kicked_vcpus()
    assert (await vcpu.run()).reason == ("KVM_EXIT_SHUTDOWN" if reason == "KVM_EXIT_SHUTDOWN" else "KVM_EXIT_HLT")


@contextmanager
def kick_in_the_round(vm: Vm) -> Iterator[None]:
    """Have the request of a raw kick come in just behind the next round in guest mode."""
    meet = vm._meet
    inside = meet.engine
    meet.engine = _KicksBehind(inside)
    try:
        yield
    finally:
        meet.engine = inside


class _KicksBehind:
    """An engine that is kicked as it leaves guest mode."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, context: Context, *arguments: Any) -> Any:
        ran = self._engine.run(context, *arguments)
        self._engine.post(ContextGroup((context,)), KVM_REQ_USERSPACE_KICK)
        return ran

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


async def test_a_pending_exit_is_completed_between_kick_and_resume(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n addi a2, a2, 1\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE)
    assert isinstance(await vcpu.run(), MmioExit)
    await vm.kick_all_running_vcpus()
    with refusal(errno.EINTR):
        await vcpu.run((7).to_bytes(8, "little"))
    regs = await vcpu.get_regs()
    assert (regs["x11"], regs["x12"], regs["instret"]) == (7, 0, 1)
    await vm.resume_all_kicked_vcpus()
    assert await vcpu.run() == HltExit()


async def test_a_second_fragment_of_a_pending_exit_is_delivered_between_kick_and_resume(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE + 4096 - 4)
    assert isinstance(await vcpu.run(), MmioExit)
    await vm.kick_all_running_vcpus()
    assert await vcpu.run(b"\1\2\3\4") == MmioExit(HOLE + 4096, 4, is_write=False, data=None)
    assert await refused(vcpu) == "KVM_EXIT_UNKNOWN"
    assert (await vcpu.get_regs())["x11"] == 0x04030201


async def test_kicks_are_per_vm(system: System) -> None:
    one, other = system.create_vm(), system.create_vm()
    for vm in (one, other):
        await boot(vm, SPIN)
    mine, theirs = await vcpu_at(one), await vcpu_at(other)
    async with running(mine, theirs) as (_, run):
        await one.kick_all_running_vcpus()
        await progress(theirs)
        assert not run.done()


async def test_a_raw_kick_and_a_hold_do_not_know_of_each_other(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu) as (run,):
        await vm.kick_all_running_vcpus("hold")
        await vm.kick_all_running_vcpus()
        await interrupted(run)
        await vm.resume_all_kicked_vcpus("hold")
        await refused(vcpu)
        await vm.kick_all_running_vcpus("other")
        await vm.resume_all_kicked_vcpus()
        waiting = asyncio.create_task(vcpu.run())
        retired = vcpu.stats().instructions
        await vcpu.get_regs()
        assert not waiting.done()
        assert vcpu.stats().instructions == retired, "it is held still"
        await vm.resume_all_kicked_vcpus("other")
        await progress(vcpu)
        waiting.cancel()


async def test_a_raw_kick_has_no_lease_and_no_wait(vm: Vm) -> None:
    for options in ({"lease_ms": 1}, {"wait_ms": 1}):
        with refusal(errno.EINVAL) as wrong:
            await vm.kick_all_running_vcpus(**options)
        assert wrong.value.ioctl == "KVM_KICK_ALL_RUNNING_VCPUS"


async def test_a_run_loop_waits_for_the_resume_and_goes_on(system: System) -> None:
    machines = Machines(system)
    machine = machines.create()
    await boot(machine.vm, SPIN)
    vcpu = await vcpu_at(machine.vm)
    machine.start()
    await progress(vcpu)
    await machine.vm.kick_all_running_vcpus()
    retired = vcpu.stats().instructions
    for _ in range(20):
        await asyncio.sleep(0)
    assert machine.ended == {}
    assert vcpu.stats().instructions == retired
    await machine.vm.resume_all_kicked_vcpus()
    await progress(vcpu)
    await machine.vm.kick_all_running_vcpus()
    await machine.stop()
    assert machine.ended == {}
    await machines.close()


async def test_a_resume_that_races_with_a_kick_may_leave_nobody_kicked(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu) as (run,):
        kick = asyncio.create_task(vm.kick_all_running_vcpus())
        await until(lambda: run.done() or kick.done())
        await vm.resume_all_kicked_vcpus()
        await kick
    async with running(vcpu):
        await progress(vcpu)
