"""Who may call what of a cooperative VM, and when: an advance stands alone, and between two a call acts exactly."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.kvm.guest import CODE, DATA, HOLE, SPIN, errno_of, refusal, until, vcpu_at
from tests.machine.advancing import load
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import MmioExit
from vmmd.kvm.turns import End
from vmmd.kvm.vm import Vm
from vmmd.machine.machine import Machine, Machines, MachineState

FOR_EVER = 1 << 60


@pytest.fixture
def machine(machines: Machines) -> Machine:
    return machines.create("box", 1)


@asynccontextmanager
async def advancing(machine: Machine) -> AsyncIterator[asyncio.Task[object]]:
    """Have an advance under way that does not end by itself."""
    advance: asyncio.Task[object] = asyncio.create_task(machine.advance(FOR_EVER))
    await until(lambda: machine.vm.stats().instructions > 0)
    try:
        yield advance
    finally:
        advance.cancel()
        await asyncio.wait([advance])


async def test_a_parallel_vm_is_not_advanced_and_a_cooperative_one_never_runs_by_itself(
    machine: Machine, machines: Machines
) -> None:
    with refusal(errno.EINVAL):
        await machines.create("parallel").advance(1)
    await load(machine, SPIN, 1)
    with refusal(errno.EINVAL):
        machine.start()
    with refusal(errno.EINVAL):
        await machine.vm.vcpu(0).run()
    assert machine.state is MachineState.CREATED
    assert machine.vm.stats().instructions == 0


_REFUSED: dict[str, Callable[[Machine], Awaitable[object]]] = {
    "another advance": lambda machine: machine.advance(1),
    "a change of slots": lambda machine: machine.vm.set_user_memory_region(1, 0, HOLE, 0x1000, 0),
    "a read of memory": lambda machine: machine.vm.read_guest_memory(DATA, 8),
    "a new vCPU": lambda machine: machine.vm.create_vcpu(5),
    "registers": lambda machine: machine.vm.vcpu(0).set_regs({"a0": 1}),
    "mp_state": lambda machine: machine.vm.vcpu(0).set_mp_state(0),
    "debugging": lambda machine: machine.vm.vcpu(0).set_guest_debug(0),
    "a raw kick": lambda machine: machine.vm.kick_all_running_vcpus(),
    "a raw resume": lambda machine: machine.vm.resume_all_kicked_vcpus(),
    "a reset of rings": lambda machine: machine.vm.reset_dirty_rings(),
}


@pytest.mark.parametrize("call", _REFUSED)
async def test_calls_that_change_something_are_refused_during_an_advance(machine: Machine, call: str) -> None:
    await load(machine, SPIN, 2)
    async with advancing(machine):
        with refusal(errno.EBUSY) as refused:
            await _REFUSED[call](machine)
        assert "advance" in refused.value.message


async def test_interrupts_and_immediate_exit_are_refused_during_an_advance(machine: Machine) -> None:
    await load(machine, SPIN, 1)
    async with advancing(machine):
        with refusal(errno.EBUSY):
            machine.vm.vcpu(0).interrupt()
        with refusal(errno.EBUSY):
            machine.vm.vcpu(0).set_immediate_exit(1)
        assert (await machine.vm.vcpu(0).get_regs())["pc"] >= CODE


async def test_a_kick_waits_for_the_end_of_an_advance_and_times_out(machine: Machine) -> None:
    await load(machine, SPIN, 1)
    async with advancing(machine) as advance:
        with refusal(errno.ETIMEDOUT):
            await machine.vm.kick_all_running_vcpus("late", wait_ms=1)
        kick = asyncio.create_task(machine.vm.kick_all_running_vcpus("late", wait_ms=20_000))
        await asyncio.sleep(0)
        assert not kick.done()
        await machine.stop()
        assert (await kick).hold == "late"
        assert (await advance).ended_by is End.STOP  # type: ignore[attr-defined]
    await machine.vm.resume_all_kicked_vcpus("late")


async def test_a_held_vm_is_not_advanced_unless_the_call_waits_for_the_resume(machine: Machine) -> None:
    await load(machine, SPIN, 1)
    await machine.vm.kick_all_running_vcpus("mine")
    with refusal(errno.EBUSY):
        await machine.advance(10)
    waiting = asyncio.create_task(machine.advance(10, wait_ms=20_000))
    await asyncio.sleep(0)
    assert machine.vm.stats().instructions == 0
    await machine.vm.resume_all_kicked_vcpus("mine")
    assert (await waiting).instructions == 10


async def test_an_advance_for_another_slot_table_is_stale(machine: Machine) -> None:
    await load(machine, SPIN, 1)
    with refusal(errno.ESTALE):
        await machine.advance(10, if_generation=machine.vm.generation + 1)
    assert (await machine.advance(10, if_generation=machine.vm.generation)).instructions == 10


async def test_stop_ends_an_advance_which_tells_how_far_it_came(machine: Machine) -> None:
    await load(machine, SPIN, 2)
    async with advancing(machine) as advance:
        await machine.stop()
        advanced = await advance
    assert advanced.ended_by is End.STOP  # type: ignore[attr-defined]
    assert advanced.instructions == machine.vm.stats().instructions  # type: ignore[attr-defined]
    assert machine.state is MachineState.STOPPED


async def test_destroying_a_vm_ends_its_advance_with_ecanceled(machine: Machine, machines: Machines) -> None:
    await load(machine, SPIN, 2)
    async with advancing(machine) as advance:
        await machines.destroy(machine.vm.id)
        assert await errno_of(advance) == errno.ECANCELED


async def test_an_advance_whose_caller_goes_away_ends_and_leaves_the_vm_usable(machine: Machine) -> None:
    await load(machine, SPIN, 2)
    async with advancing(machine) as advance:
        advance.cancel()
        with pytest.raises(asyncio.CancelledError):
            await advance
    before = machine.vm.stats().instructions
    assert (await machine.advance(1000)).instructions == 1000
    assert machine.vm.stats().instructions == before + 1000


async def test_a_long_advance_leaves_the_event_loop_and_other_vms_alone(machine: Machine, machines: Machines) -> None:
    await load(machine, SPIN, 2)
    other = machines.create("other", 2)
    await load(other, SPIN, 1)
    async with advancing(machine):
        for _ in range(20):
            assert (await other.advance(100)).instructions == 100


async def test_a_raw_kick_between_advances_keeps_every_vcpu_out_until_the_raw_resume(machine: Machine) -> None:
    await load(machine, SPIN, 2)
    await machine.advance(100)
    await machine.vm.kick_all_running_vcpus()
    advanced = await machine.advance(100)
    assert (advanced.instructions, advanced.ended_by) == (0, End.IDLE)
    await machine.vm.resume_all_kicked_vcpus()
    assert (await machine.advance(100)).instructions == 100
    assert machine.ended == {}


async def test_immediate_exit_ends_the_loop_of_its_vcpu(machine: Machine) -> None:
    await load(machine, SPIN, 2)
    machine.vm.vcpu(0).set_immediate_exit(1)
    await machine.advance(50_000)
    ending = machine.ended[0]
    assert isinstance(ending, KvmError)
    assert ending.errno == errno.EINTR
    assert list(machine.ended) == [0]


async def test_a_stop_begins_the_loops_anew(machine: Machine) -> None:
    await load(machine, "ld a1, 0(a0)\n" + SPIN, 1)
    await machine.vm.vcpu(0).set_regs({"a0": HOLE})
    assert (await machine.advance(100)).instructions == 0
    assert isinstance(machine.ended[0], MmioExit)
    assert (await machine.advance(100)).instructions == 0
    await machine.stop()
    assert machine.ended == {}
    assert (await machine.advance(100)).instructions == 100


async def test_a_vcpu_made_between_advances_has_its_turns_from_the_next_on(machine: Machine) -> None:
    await load(machine, SPIN, 1)
    await machine.advance(100)
    made = await vcpu_at(machine.vm, 7)
    await machine.advance(50_000)
    assert made.stats().instructions > 0


async def test_a_single_step_ends_its_loop_with_the_instruction_done(machine: Machine) -> None:
    await load(machine, SPIN, 1)
    await machine.vm.vcpu(0).set_guest_debug(3)
    advanced = await machine.advance(100)
    assert (advanced.instructions, advanced.ended_by) == (1, End.IDLE)
    assert machine.ended[0].reason == "KVM_EXIT_DEBUG"  # type: ignore[union-attr]


async def test_memory_goes_back_when_a_vm_that_was_advanced_is_destroyed(machines: Machines) -> None:
    machine = machines.create("box", 1)
    await load(machine, SPIN, 2)
    await machine.advance(1000)
    vm: Vm = machine.vm
    assert vm.stats().instructions == 1000
    await machines.destroy(vm.id)
    assert machines._system.guest_memory_bytes == 0
