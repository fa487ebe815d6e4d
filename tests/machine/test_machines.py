"""Machines: starting, stopping and destroying, in every state."""

from __future__ import annotations

import asyncio
import errno

import pytest

from tests.kvm.guest import CODE, DATA, HOLE, SPIN, STORE_FOREVER, boot, errno_of, progress, refusal, until, vcpu_at
from vmmd.kvm.exits import ShutdownExit
from vmmd.kvm.system import System
from vmmd.machine.machine import Machine, Machines, MachineState
from vmmd.machine.run_loop import StrayPolicy
from vmmd.memory.limits import PAGE_SIZE


async def spinning(machine: Machine, count: int = 2) -> None:
    """Start vCPUs that never leave the guest, and see each of them run."""
    await boot(machine.vm, SPIN)
    for vcpu_id in range(count):
        await vcpu_at(machine.vm, vcpu_id)
    machine.start()
    for vcpu in machine.vm.vcpus.values():
        await progress(vcpu)


def state(machine: Machine) -> MachineState:
    return machine.state


def retired(machine: Machine) -> int:
    return machine.vm.stats().instructions


async def test_a_machine_goes_from_created_to_running_to_stopped_and_runs_again(machine: Machine) -> None:
    assert state(machine) is MachineState.CREATED
    await spinning(machine)
    assert state(machine) is MachineState.RUNNING
    await machine.stop()
    assert state(machine) is MachineState.STOPPED
    before = retired(machine)
    machine.start()
    assert state(machine) is MachineState.RUNNING
    await until(lambda: retired(machine) > before)
    assert dict(machine.ended) == {}


async def test_starting_twice_is_busy_and_the_loops_go_on(machine: Machine) -> None:
    await spinning(machine)
    with refusal(errno.EBUSY):
        machine.start(StrayPolicy.ONES)
    before = retired(machine)
    await until(lambda: retired(machine) > before)


async def test_starting_while_a_vcpu_is_in_kvm_run_is_busy_and_nothing_starts(machine: Machine) -> None:
    await boot(machine.vm, SPIN)
    first, second = await vcpu_at(machine.vm, 0), await vcpu_at(machine.vm, 1)
    run = asyncio.create_task(errno_of(first.run()))
    await progress(first)
    with refusal(errno.EBUSY) as busy:
        machine.start()
    assert "[0]" in busy.value.message
    assert state(machine) is MachineState.CREATED
    assert second.stats().instructions == 0
    first.signal()
    assert await run == errno.EINTR


async def test_kvm_run_is_busy_while_the_loop_has_the_vcpu(machine: Machine) -> None:
    await spinning(machine, 1)
    with refusal(errno.EBUSY):
        await machine.vm.vcpu(0).run()


async def test_stop_has_ended_every_loop_and_is_idempotent(machine: Machine) -> None:
    await machine.stop()
    assert state(machine) is MachineState.CREATED
    await spinning(machine)
    await machine.stop()
    assert not any(vcpu.is_running for vcpu in machine.vm.vcpus.values())
    before = retired(machine)
    await machine.stop()
    assert state(machine) is MachineState.STOPPED
    assert retired(machine) == before
    assert dict(machine.ended) == {}


async def test_stops_side_by_side_all_come_back(machine: Machine) -> None:
    await spinning(machine)
    await asyncio.gather(machine.stop(), machine.stop(), machine.stop())
    assert state(machine) is MachineState.STOPPED


async def test_loops_that_make_exits_all_the_time_are_stopped_too(machine: Machine) -> None:
    await boot(machine.vm, "1: ld a1, 0(a0)\n j 1b")
    for vcpu_id in range(2):
        await vcpu_at(machine.vm, vcpu_id, a0=HOLE)
    machine.start(StrayPolicy.ONES)
    await until(lambda: machine.vm.stats().stray_exits > 20)
    await machine.stop()
    assert state(machine) is MachineState.STOPPED
    assert dict(machine.ended) == {}


async def test_stop_ends_held_loops_and_the_hold_goes_on(machine: Machine) -> None:
    await spinning(machine)
    await machine.vm.kick_all_running_vcpus("a")
    await machine.stop()
    assert state(machine) is MachineState.STOPPED
    await machine.vm.map_host_memory(PAGE_SIZE, hold="a")
    kicks, before = machine.vm.stats().kicks, retired(machine)
    machine.start()
    await until(lambda: machine.vm.stats().kicks == kicks + 2)
    assert retired(machine) == before
    await machine.vm.resume_all_kicked_vcpus("a")
    await until(lambda: retired(machine) > before)


async def test_a_stopped_vcpu_goes_on_where_it_was(machine: Machine) -> None:
    await boot(machine.vm, STORE_FOREVER)
    vcpu = await vcpu_at(machine.vm, a0=DATA)
    machine.start()
    for _ in range(3):
        await progress(vcpu)
        await machine.stop()
        count = (await vcpu.get_regs())["x11"]
        stored = int.from_bytes(await machine.vm.read_guest_memory(DATA, 8), "little")
        assert stored in {count, count - 1}
        machine.start()


async def test_what_ended_loops_is_kept_until_the_next_start(machine: Machine) -> None:
    await boot(machine.vm, "ebreak\n ebreak")
    vcpu = await vcpu_at(machine.vm)
    machine.start()
    await until(lambda: 0 in machine.ended)
    with refusal(errno.EBUSY):
        machine.start()
    await machine.stop()
    assert isinstance(machine.ended[0], ShutdownExit)
    assert state(machine) is MachineState.STOPPED
    await vcpu.set_regs({"pc": CODE + 4})
    machine.start()
    assert dict(machine.ended) == {}
    await until(lambda: 0 in machine.ended)


async def test_a_machine_without_vcpus_starts_and_stops(machine: Machine) -> None:
    machine.start()
    assert state(machine) is MachineState.RUNNING
    await machine.stop()
    assert state(machine) is MachineState.STOPPED


@pytest.mark.usefixtures("reference_counts_alone")
@pytest.mark.parametrize("held", [False, True])
async def test_a_machine_that_runs_is_destroyed_and_its_memory_goes_back(
    system: System, machines: Machines, machine: Machine, held: bool
) -> None:
    await spinning(machine)
    if held:
        await machine.vm.kick_all_running_vcpus("a")
    await machines.destroy(machine.vm.id)
    assert state(machine) is MachineState.STOPPED
    assert not any(vcpu.is_running for vcpu in machine.vm.vcpus.values())
    assert system.vms() == []
    assert system.guest_memory_bytes == 0
    with refusal(errno.EBADF):
        machines.get(machine.vm.id)
    with refusal(errno.EBADF):
        await machines.destroy(machine.vm.id)


async def test_machines_are_found_by_their_vm_and_listed_the_oldest_first(machines: Machines) -> None:
    one, other = machines.create("one"), machines.create()
    assert machines.all() == [one, other]
    assert machines.get(other.vm.id) is other
    assert (one.vm.name, other.vm.name) == ("one", None)
    await machines.destroy(one.vm.id)
    assert machines.all() == [other]


async def test_a_machine_too_many_is_emfile_and_not_listed(machines: Machines) -> None:
    made = [machines.create() for _ in range(3)]
    with refusal(errno.EMFILE):
        machines.create()
    assert machines.all() == made


async def test_closing_destroys_every_machine(system: System, machines: Machines) -> None:
    for machine in (machines.create(), machines.create()):
        await spinning(machine, 1)
    await machines.close()
    assert machines.all() == []
    assert system.vms() == []


async def test_two_machines_have_consoles_and_loops_of_their_own(machines: Machines) -> None:
    one, other = machines.create(), machines.create()
    await boot(one.vm, "outb a1, 0(a0)\n ebreak")
    await vcpu_at(one.vm, a0=0x3F8, a1=ord("1"))
    await spinning(other, 1)
    one.start()
    await until(lambda: 0 in one.ended)
    assert one.read_console() == (b"1", 1)
    assert other.read_console() == (b"", 0)
    await one.stop()
    assert state(other) is MachineState.RUNNING
    before = retired(other)
    await until(lambda: retired(other) > before)
