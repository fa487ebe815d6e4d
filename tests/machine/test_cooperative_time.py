"""Budgets and time of a cooperative VM: exact by the instruction, standing still in between, skipped while asleep."""

from __future__ import annotations

import pytest

from tests.kvm.guest import DATA, SPIN, boot, vcpu_at
from tests.machine.advancing import load, word
from vmmd.kvm.exits import ShutdownExit
from vmmd.kvm.turns import WASTED_INSTRUCTIONS, End
from vmmd.machine.machine import Machine, Machines
from vmmd.machine.run_loop import StrayPolicy

TIMER_AT = 1234
TAKEN_AT = DATA

# Sets a timer, goes on as the rest of it says, and stores the time at which the interrupt was taken.
TIMER = f"""
    la t1, timer
    csrw mtvec, t1
    li t1, 0x80
    csrw mie, t1
    li s0, 0x02004000
    li t2, {TIMER_AT}
    sd t2, 0(s0)
    csrsi mstatus, 8
1:  {{rest}}
    j 1b
timer:
    csrr a2, time
    li t2, -1
    sd t2, 0(s0)
    sd a2, 0(s1)
    mret
"""


@pytest.fixture
def machine(machines: Machines) -> Machine:
    return machines.create("box", 1)


async def sleepy(machine: Machine, rest: str) -> None:
    await boot(machine.vm, TIMER.format(rest=rest))
    await machine.vm.create_irqchip()
    await vcpu_at(machine.vm, 0, s1=TAKEN_AT)


async def test_as_many_instructions_retire_as_were_asked_for_of_any_kind(machine: Machine) -> None:
    source = """
        la t1, trapped
        csrw mtvec, t1
        li s0, 0x100000
    1:  ld a1, 0xff(s0)
        sd a1, -3(s0)
        ecall
        inb a2, 0(s0)
        .word 0
        j 1b
    trapped:
        csrr t0, mepc
        addi t0, t0, 4
        csrw mepc, t0
        mret
    """
    await load(machine, source, 2)
    asked = 0
    for instructions in (1, 2, 3, 5, 0, 100, 1, 999):
        advanced = await machine.advance(instructions, StrayPolicy.ONES)
        asked += instructions
        assert (advanced.instructions, advanced.ended_by) == (instructions, End.INSTRUCTIONS)
        assert sum(vcpu.stats().instructions for vcpu in machine.vm.vcpus.values()) == asked
    assert machine.ended == {}


async def test_time_is_made_of_the_instructions_of_all_vcpus(machine: Machine) -> None:
    await load(machine, SPIN, 3)
    await machine.advance(4321)
    for vcpu in machine.vm.vcpus.values():
        assert (await vcpu.get_regs())["time"] == 4321


@pytest.mark.parametrize("spinning", ["addi a1, a1, 1", "sw a1, 0x40(s1)", "csrr a3, time"])
@pytest.mark.parametrize("others", [0, 2])
async def test_a_timer_goes_off_at_its_instruction(machine: Machine, spinning: str, others: int) -> None:
    await sleepy(machine, spinning)
    await machine.advance(20)
    for vcpu_id in range(1, 1 + others):
        await vcpu_at(machine.vm, vcpu_id, pc=0x2000)
    await machine.vm.write_guest_memory(0x2000, 0x0000006F.to_bytes(4, "little"))  # j .
    await machine.advance(TIMER_AT - 21)
    assert (await machine.vm.vcpu(0).get_regs())["mip"] == 0
    await machine.advance(1)
    assert (await machine.vm.vcpu(0).get_regs())["mip"] == 0x80
    await machine.advance(50_000)
    taken_at = await word(machine, TAKEN_AT)
    # With others it may be their turn when it goes off; the vCPU takes it at its next.
    assert taken_at == TIMER_AT if not others else taken_at >= TIMER_AT


async def test_a_timer_that_wakes_the_only_sleeper_comes_at_once_and_costs_no_instruction(machine: Machine) -> None:
    await sleepy(machine, "wfi")
    advanced = await machine.advance(100)
    # The time was skipped to the timer, and then nothing can wake the vCPU any more.
    assert advanced.ended_by is End.IDLE
    assert advanced.instructions < 40
    assert await word(machine, TAKEN_AT) == TIMER_AT


async def test_an_advance_that_ends_at_a_wfi_skips_no_time(machine: Machine) -> None:
    await sleepy(machine, "wfi")
    vcpu = machine.vm.vcpu(0)
    while (await vcpu.get_mp_state()) == 0:
        await machine.advance(1)
    retired = vcpu.stats().instructions
    assert (await vcpu.get_regs())["time"] == retired < TIMER_AT
    await machine.advance(1)
    assert (await vcpu.get_regs())["time"] == TIMER_AT + 1


async def test_time_stands_still_in_a_hold_and_between_advances(machine: Machine) -> None:
    await sleepy(machine, "addi a1, a1, 1")
    await machine.advance(TIMER_AT - 1)
    before = await machine.vm.vcpu(0).get_regs()
    await machine.vm.kick_all_running_vcpus("still")
    assert await machine.vm.vcpu(0).get_regs() == before
    await machine.vm.resume_all_kicked_vcpus("still")
    assert await machine.vm.vcpu(0).get_regs() == before
    await machine.advance(1)
    assert (await machine.vm.vcpu(0).get_regs())["mip"] == 0x80
    await machine.advance(10)
    assert await word(machine, TAKEN_AT) == TIMER_AT


@pytest.mark.parametrize("irqchip", [False, True])
async def test_a_vm_that_only_sleeps_ends_the_advance_and_goes_on_behind_an_interrupt(
    machine: Machine, irqchip: bool
) -> None:
    await load(machine, "1: wfi\n addi a1, a1, 1\n j 1b", 1, irqchip=irqchip)
    vcpu = machine.vm.vcpu(0)
    await vcpu.set_regs({"mie": 1 << 11})
    advanced = await machine.advance(1000)
    assert (advanced.instructions, advanced.ended_by) == (1, End.IDLE)
    assert (await machine.advance(1000)).instructions == 0
    vcpu.interrupt()
    assert (await machine.advance(1000)).ended_by is End.INSTRUCTIONS
    assert (await vcpu.get_regs())["x11"] == 334


async def test_a_guest_that_only_traps_ends_the_advance(machine: Machine) -> None:
    await load(machine, ".word 0", 2)
    for vcpu in machine.vm.vcpus.values():
        await vcpu.set_regs({"mtvec": 0x1000})
    advanced = await machine.advance(1_000_000_000)
    assert (advanced.instructions, advanced.ended_by) == (0, End.TRAPS)
    assert (await machine.vm.vcpu(0).get_regs())["mcause"] == 2


async def test_a_guest_that_only_traps_keeps_no_other_from_going_on(machine: Machine) -> None:
    await load(machine, ".word 0\n" + SPIN, 2)
    await machine.vm.vcpu(0).set_regs({"mtvec": 0x1000})
    await machine.vm.vcpu(1).set_regs({"pc": 0x1004})
    advanced = await machine.advance(5 * WASTED_INSTRUCTIONS)
    assert (advanced.instructions, advanced.ended_by) == (5 * WASTED_INSTRUCTIONS, End.INSTRUCTIONS)


async def test_an_advance_ends_when_every_loop_has_ended(machine: Machine) -> None:
    await load(machine, "nop\n ebreak", 2)
    advanced = await machine.advance(100)
    assert (advanced.instructions, advanced.ended_by) == (2, End.IDLE)
    assert [type(end) for end in machine.ended.values()] == [ShutdownExit] * 2


async def test_a_vm_without_vcpus_advances_by_nothing(machine: Machine) -> None:
    advanced = await machine.advance(100)
    assert (advanced.instructions, advanced.ended_by) == (0, End.IDLE)
    assert len(advanced.digest) == 64
