"""A run loop has its vCPUs for as long as it goes, and a stop leaves nobody in KVM_RUN."""

from __future__ import annotations

import asyncio
import errno

import pytest

from tests.kvm.guest import HOLE, SPIN, boot, refusal, until, vcpu_at
from vmmd.kvm.errors import KvmError
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.machine.machine import Machine, MachineState
from vmmd.machine.run_loop import StrayPolicy

LOAD_FROM_THE_HOLE = "1: ld a1, 0(a0)\n j 1b"


@pytest.fixture
def vm(system: System) -> Vm:
    return system.create_vm()


async def test_nobody_else_runs_a_vcpu_that_a_loop_has_not_even_between_two_runs(vm: Vm) -> None:
    await boot(vm, LOAD_FROM_THE_HOLE)
    vcpu = await vcpu_at(vm, a0=HOLE)
    machine = Machine(vm)
    machine.start(StrayPolicy.ONES)
    for _ in range(200):
        with refusal(errno.EBUSY):
            await vcpu.run()
        await asyncio.sleep(0)
    await until(lambda: vcpu.stray_exits > 10)
    assert machine.ended == {}
    await machine.stop()
    vcpu.set_immediate_exit(1)
    with refusal(errno.EINTR):
        await vcpu.run()


async def test_a_stop_also_ends_a_run_that_no_loop_has(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    orphan = asyncio.create_task(vcpu.run())
    await until(lambda: vcpu.is_running)
    await Machine(vm).stop()
    with refusal(errno.EINTR):
        await orphan


async def test_a_loop_that_was_not_told_to_stop_keeps_what_ended_it(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    vcpu.set_immediate_exit(1)
    machine = Machine(vm)
    machine.start()
    await until(lambda: bool(machine.ended))
    ending = machine.ended[0]
    assert isinstance(ending, KvmError)
    assert ending.errno == errno.EINTR
    assert machine.state is MachineState.RUNNING
    await machine.stop()
