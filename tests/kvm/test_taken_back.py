"""Runs that a raw kick ends while a worker still has their vCPU: no guest goes on, and no exit is lost."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.kvm.guest import CODE, DATA, HOLE, SPIN, boot, errno_of, let_the_loop_turn, refusal, running, until, vcpu_at
from vmmd.isa.context import Context
from vmmd.isa.engine import Engine
from vmmd.kvm.exits import DebugExit, MmioExit
from vmmd.kvm.uapi import KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm


class SlowWorker:
    """An engine whose worker is preempted before it enters guest mode with a vCPU, until it is let go."""

    def __init__(self, engine: Engine, vcpu: Vcpu) -> None:
        self._engine = engine
        self._context = vcpu.context
        self.is_there = threading.Event()
        self.may_go = threading.Event()

    def run(self, context: Context, *arguments: Any) -> Any:
        if context is self._context and not self.is_there.is_set():
            self.is_there.set()
            self.may_go.wait()
        return self._engine.run(context, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@contextmanager
def a_slow_worker(vm: Vm, vcpu: Vcpu) -> Iterator[SlowWorker]:
    meet = vm._meet
    inside = meet.engine
    slow = SlowWorker(inside, vcpu)
    meet.engine = slow  # type: ignore[assignment]
    try:
        yield slow
    finally:
        slow.may_go.set()
        meet.engine = inside


async def kicked_run(vm: Vm, vcpu: Vcpu, slow: SlowWorker) -> None:
    """Begin a run, end it with a raw kick while the worker stands still, and resume."""
    run = asyncio.create_task(vcpu.run())
    await until(lambda: vcpu.is_running and slow.is_there.is_set())
    await vm.kick_all_running_vcpus()
    with refusal(errno.EINTR):
        await run
    await vm.resume_all_kicked_vcpus()


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_guest_stands_still_once_all_its_runs_are_ended(vm: Vm, times: int) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    with a_slow_worker(vm, vcpu) as slow:
        for _ in range(times):
            await kicked_run(vm, vcpu, slow)
        slow.may_go.set()
    # Another vCPU's progress shows that the workers have had their time.
    other = await vcpu_at(vm, 1)
    async with running(other):
        pass
    await let_the_loop_turn()
    assert vcpu.stats().instructions == 0


async def test_the_first_exit_goes_to_the_run_that_is_in_flight(vm: Vm) -> None:
    await boot(vm, "addi a1, a1, 1\n sd a1, 0(a0)\n addi a1, a1, 1\n sd a1, 0(a0)\n 1: j 1b")
    vcpu = await vcpu_at(vm, a0=HOLE)
    with a_slow_worker(vm, vcpu) as slow:
        await kicked_run(vm, vcpu, slow)
        await kicked_run(vm, vcpu, slow)
        third = asyncio.create_task(vcpu.run())
        await until(lambda: vcpu.is_running)
        slow.may_go.set()
        assert await third == MmioExit(HOLE, 8, True, (1).to_bytes(8, "little"))
    assert await vcpu.run() == MmioExit(HOLE, 8, True, (2).to_bytes(8, "little"))


async def test_kicks_and_resumes_in_quick_succession_leave_nobody_running(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpus = [await vcpu_at(vm, index) for index in range(4)]
    for _ in range(40):
        for _ in range(2):
            runs = [asyncio.create_task(vcpu.run()) for vcpu in vcpus]
            await asyncio.sleep(0)
            await vm.kick_all_running_vcpus()
            assert {await errno_of(run) for run in runs} == {errno.EINTR}
            await vm.resume_all_kicked_vcpus()
        assert not any(vcpu.is_running for vcpu in vcpus)
        before = [(await vcpu.get_regs())["instret"] for vcpu in vcpus]
        await let_the_loop_turn()
        assert [(await vcpu.get_regs())["instret"] for vcpu in vcpus] == before


class LateVcpu:
    """An engine that says of a vCPU that it is in guest mode still, whenever it is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def wait_outside(self, *_arguments: Any) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


async def test_a_kick_that_a_resume_overtakes_ends_no_run_and_does_not_wait_for_any(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpus = [await vcpu_at(vm, index) for index in range(2)]
    async with running(*vcpus) as runs:
        meet = vm._meet
        inside = meet.engine
        meet.engine = LateVcpu(inside)  # type: ignore[assignment]
        kick = asyncio.create_task(vm.kick_all_running_vcpus())
        await let_the_loop_turn()
        await vm.resume_all_kicked_vcpus()
        assert (await kick).kicked == 2
        meet.engine = inside
        # Those that were in guest mode may have seen it, and have been ended by it then.
        for run in runs:
            if run.done():
                assert await errno_of(run) == errno.EINTR


async def test_every_step_ends_a_run_whatever_asks_the_vcpu_to_leave_meanwhile(vm: Vm) -> None:
    # An instruction that is evaluated, so that a request is seen between it and the end of the budget.
    await boot(vm, "1: csrr a1, mscratch\n j 1b")
    vcpus = [await vcpu_at(vm, index) for index in range(3)]
    for vcpu in vcpus:
        await vcpu.set_guest_debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)

    async def step(vcpu: Vcpu) -> None:
        for _ in range(100):
            before = vcpu.stats().instructions
            assert isinstance(await vcpu.run(), DebugExit)
            assert vcpu.stats().instructions == before + 1

    stepping = asyncio.gather(*(step(vcpu) for vcpu in vcpus))
    while not stepping.done():
        for vcpu in vcpus:
            await vcpu.get_regs()
        await asyncio.sleep(0)
    await stepping


async def test_a_rollback_marks_no_page_that_was_written_in_memory_that_goes(vm: Vm) -> None:
    base = await boot(vm, SPIN, flags=1)
    assert CODE < DATA
    await vm.get_dirty_log(0)
    await vm.kick_all_running_vcpus("hold")
    await vm.unmap_host_memory(base + DATA, 0x1000, hold="hold")
    anew = await vm.map_host_memory(0x1000, hold="hold")
    await vm.set_user_memory_region(1, 0, HOLE, 0x1000, anew, hold="hold")
    await vm.write_guest_memory(HOLE, b"x", hold="hold")
    vm.fail_hold("hold", await _refused(vm))
    with refusal(errno.EINVAL):
        await vm.resume_all_kicked_vcpus("hold")
    assert not any(await vm.get_dirty_log(0))


async def _refused(vm: Vm) -> Any:
    with refusal(errno.EINVAL) as caught:
        await vm.clear_dirty_log(0, 1, 1, b"", hold="hold")
    return caught.value
