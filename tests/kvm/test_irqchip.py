"""The in-kernel interrupt controller: interrupts between vCPUs, timers, and sleep inside KVM_RUN."""

from __future__ import annotations

import asyncio
import errno
import time

import pytest

from tests.kvm.guest import CODE, SPIN, boot, progress, refusal, running, until, vcpu_at
from vmmd.isa.assembler import assemble
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import DebugExit, HltExit, HypercallExit, MmioExit
from vmmd.kvm.irqchip import CLINT_ADDRESS
from vmmd.kvm.system import System
from vmmd.kvm.uapi import (
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE,
)
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm

HANDLER = CODE + 0x100
ON = 8
SOFTWARE, TIMER, EXTERNAL = 1 << 3, 1 << 7, 1 << 11
MSIP, MTIMECMP, MTIME = CLINT_ADDRESS, CLINT_ADDRESS + 0x4000, CLINT_ADDRESS + 0xBFF8

ANSWER = f"""
    addi s1, s1, 1
    li t0, {MSIP}
    csrr t1, mhartid
    slli t1, t1, 2
    add t0, t0, t1
    sw zero, 0(t0)
    mret
"""
"""A handler of software interrupts."""

SLEEP = "1: wfi\n addi s2, s2, 1\n j 1b"


async def chip(vm: Vm, source: str, handler: str = ANSWER) -> None:
    """Boot `source` in a VM with the controller."""
    await vm.create_irqchip()
    base = await boot(vm, source)
    await vm.write_host_memory(base + HANDLER, assemble(handler, HANDLER).code)


async def hart(vm: Vm, vcpu_id: int = 0, **regs: int) -> Vcpu:
    """Create a vCPU with interrupts on."""
    return await vcpu_at(vm, vcpu_id, **({"mtvec": HANDLER, "mstatus": ON, "mie": SOFTWARE} | regs))


async def asleep(vcpu: Vcpu) -> None:
    """Wait until the vCPU sleeps."""
    while await vcpu.get_mp_state() != KVM_MP_STATE_HALTED:
        await asyncio.sleep(0)


async def register(vcpu: Vcpu, name: str, value: int) -> None:
    """Wait until a register has a value."""
    while (await vcpu.get_regs())[name] != value:
        await asyncio.sleep(0)


async def test_the_controller_comes_once_and_before_the_first_vcpu(system: System) -> None:
    one, other = system.create_vm(), system.create_vm()
    await one.create_irqchip()
    with refusal(errno.EEXIST):
        await one.create_irqchip()
    await other.create_vcpu(0)
    with refusal(errno.EINVAL) as wrong:
        await other.create_irqchip()
    assert wrong.value.ioctl == "KVM_CREATE_IRQCHIP"


async def test_wfi_sleeps_inside_kvm_run_until_an_interrupt(vm: Vm) -> None:
    await chip(vm, SLEEP)
    vcpu = await hart(vm, mie=EXTERNAL, mstatus=0)
    async with running(vcpu) as (run,):
        await asleep(vcpu)
        retired = vcpu.stats().instructions
        assert not run.done()
        vcpu.interrupt()
        await until(lambda: vcpu.stats().instructions > retired)
        assert vcpu.stats().exits == {}


async def test_a_sleeper_wakes_for_what_mie_enables_and_for_nothing_else(vm: Vm) -> None:
    await chip(vm, SLEEP)
    vcpu = await hart(vm, mie=SOFTWARE)
    async with running(vcpu):
        await asleep(vcpu)
        vcpu.interrupt()
        await asleep(vcpu)
        assert (await vcpu.get_regs())["x18"] == 0
        await vcpu.set_regs({"mie": EXTERNAL, "mstatus": 0})
        while not (await vcpu.get_regs())["x18"]:
            await asyncio.sleep(0)


async def test_vcpus_interrupt_each_other(vm: Vm) -> None:
    # Each wakes the other and sleeps until it is woken itself. Interrupts are off, so none is taken before the wfi.
    source = """
        1:  sw a1, 0(a0)
        2:  wfi
            sw zero, 0(a3)
            addi s2, s2, 1
            blt s2, a2, 1b
        3:  wfi
            j 3b
        """
    await chip(vm, source)
    rounds = 200
    one = await hart(vm, 0, mstatus=0, a0=MSIP + 4, a3=MSIP, a1=1, a2=rounds)
    other = await hart(vm, 1, mstatus=0, a0=MSIP, a3=MSIP + 4, a1=1, a2=rounds, pc=CODE + 4)
    async with running(one, other):
        await register(other, "x18", rounds)
        await register(one, "x18", rounds - 1)


async def test_a_software_interrupt_stays_pending_until_msip_is_cleared(vm: Vm) -> None:
    await chip(vm, "sw a1, 0(a0)\n lw a2, 0(a0)\n csrr a3, mip\n sw zero, 0(a0)\n lw a4, 0(a0)\n csrr a5, mip\n ecall")
    vcpu = await hart(vm, mtvec=0, a0=MSIP, a1=3)
    assert isinstance(await vcpu.run(), HypercallExit)
    regs = await vcpu.get_regs()
    assert (regs["x12"], regs["x13"]) == (1, SOFTWARE)
    assert (regs["x14"], regs["x15"]) == (0, 0)


async def test_the_timer_wakes_a_sleeper_when_its_time_has_come(vm: Vm) -> None:
    source = f"""
        li a0, {MTIME}
        li a1, {MTIMECMP}
        ld a2, 0(a0)
        li a3, 20000000
        add a2, a2, a3
        sd a2, 0(a1)
        wfi
        ld a4, 0(a0)
        csrr a5, mip
        ecall
    """
    await chip(vm, source)
    vcpu = await hart(vm, mtvec=0, mie=TIMER)
    assert isinstance(await vcpu.run(timeout_ms=20_000), HypercallExit)
    regs = await vcpu.get_regs()
    assert regs["x14"] >= regs["x12"]
    assert regs["x15"] == TIMER


async def test_the_timer_interrupts_a_guest_that_does_not_wait(vm: Vm) -> None:
    handler = f"li t0, {MTIMECMP}\n li t1, -1\n sd t1, 0(t0)\n addi s1, s1, 1\n mret"
    await chip(
        vm, f"li a0, {MTIMECMP}\n csrr a1, time\n li a2, 1000000\n add a1, a1, a2\n sd a1, 0(a0)\n" + SPIN, handler
    )
    vcpu = await hart(vm, mie=TIMER)
    async with running(vcpu):
        await register(vcpu, "x9", 1)
        assert (await vcpu.get_regs())["mip"] == 0


async def test_a_time_that_has_passed_is_due_at_once_and_a_later_one_takes_it_back(vm: Vm) -> None:
    await chip(
        vm, f"li a0, {MTIMECMP}\n sd zero, 0(a0)\n csrr a1, mip\n li a2, -1\n sd a2, 0(a0)\n csrr a3, mip\n ecall"
    )
    vcpu = await hart(vm, mtvec=0, mie=0)
    assert isinstance(await vcpu.run(), HypercallExit)
    regs = await vcpu.get_regs()
    assert (regs["x11"], regs["x13"]) == (TIMER, 0)


async def test_registers_are_reached_by_any_part(vm: Vm) -> None:
    source = """
        lwu a1, 0(a0)
        li a2, 0x12345678
        sw a2, 4(a0)
        ld a3, 0(a0)
        lbu a4, 7(a0)
        lhu a5, 5(a0)
        sb zero, 0(a0)
        ld a6, 0(a0)
        ecall
    """
    await chip(vm, source)
    vcpu = await hart(vm, mtvec=0, mie=0, a0=MTIMECMP)
    assert isinstance(await vcpu.run(), HypercallExit)
    regs = await vcpu.get_regs()
    assert regs["x11"] == 0xFFFF_FFFF
    assert regs["x13"] == 0x12345678_FFFFFFFF
    assert (regs["x14"], regs["x15"]) == (0x12, 0x3456)
    assert regs["x16"] == 0x12345678_FFFFFF00


async def test_where_no_register_is_zeroes_are_read_and_nothing_is_written(vm: Vm) -> None:
    await chip(vm, "sd a1, 0(a0)\n ld a2, 0(a0)\n sd a1, 0(a3)\n ld a4, 0(a3)\n ld a5, 0(a6)\n ecall")
    vcpu = await hart(vm, mtvec=0, a0=MSIP + 4 * 100, a1=2**64 - 1, a2=1, a3=MTIMECMP + 8 * 5, a6=MTIME - 8, a5=1)
    assert isinstance(await vcpu.run(), HypercallExit)
    regs = await vcpu.get_regs()
    assert (regs["x12"], regs["x14"], regs["x15"]) == (0, 0, 0)


async def test_a_memslot_over_the_controller_wins(vm: Vm) -> None:
    await chip(vm, "sw a1, 0(a0)\n lw a2, 0(a0)\n csrr a3, mip\n ecall")
    base = await vm.map_host_memory(0x1000)
    await vm.set_user_memory_region(1, 0, CLINT_ADDRESS, 0x1000, base)
    vcpu = await hart(vm, mtvec=0, a0=MSIP, a1=0x55)
    assert isinstance(await vcpu.run(), HypercallExit)
    regs = await vcpu.get_regs()
    assert (regs["x12"], regs["x13"]) == (0x55, 0)


async def test_without_a_controller_its_addresses_are_mmio(vm: Vm) -> None:
    await boot(vm, "sw a1, 0(a0)\n wfi")
    vcpu = await hart(vm, a0=MSIP, a1=1)
    assert await vcpu.run() == MmioExit(MSIP, 4, is_write=True, data=b"\1\0\0\0")
    assert await vcpu.run() == HltExit()


async def test_a_signal_ends_the_sleep_and_the_next_run_sleeps_on(vm: Vm) -> None:
    await chip(vm, SLEEP)
    vcpu = await hart(vm)
    for _ in range(2):
        with refusal(errno.EINTR) as interrupted:
            await vcpu.run(timeout_ms=10)
        assert interrupted.value.data["exit_reason"] == "KVM_EXIT_INTR"
        assert await vcpu.get_mp_state() == KVM_MP_STATE_HALTED
    assert (await vcpu.get_regs())["instret"] == 1


async def test_a_kick_leaves_sleepers_asleep(vm: Vm) -> None:
    await chip(vm, SLEEP)
    vcpu = await hart(vm)
    async with running(vcpu):
        await asleep(vcpu)
        await vm.kick_all_running_vcpus("hold")
        assert await vcpu.get_mp_state() == KVM_MP_STATE_HALTED
        await vm.resume_all_kicked_vcpus("hold")
        assert await vcpu.get_mp_state() == KVM_MP_STATE_HALTED
        assert vcpu.stats().instructions == 1


async def test_a_sleeper_that_is_interrupted_while_held_wakes_after_the_resume(vm: Vm) -> None:
    await chip(vm, SLEEP)
    vcpu = await hart(vm, mie=EXTERNAL)
    async with running(vcpu):
        await asleep(vcpu)
        await vm.kick_all_running_vcpus("hold")
        vcpu.interrupt()
        await vcpu.get_regs()
        assert vcpu.stats().instructions == 1
        await vm.resume_all_kicked_vcpus("hold")
        await until(lambda: vcpu.stats().instructions > 1)


async def test_the_clock_and_its_timers_stand_still_while_held(vm: Vm) -> None:
    await chip(vm, f"li a0, {MTIMECMP}\n csrr a1, time\n li a2, 30000000\n add a1, a1, a2\n sd a1, 0(a0)\n" + SLEEP)
    vcpu = await hart(vm, mie=TIMER, mstatus=0)
    async with running(vcpu):
        await asleep(vcpu)
        await vm.kick_all_running_vcpus("hold")
        before = (await vcpu.get_regs())["time"]
        # The host's clock goes on, past when the timer would have been due.
        due_ns = time.monotonic_ns() + 30_000_000
        await until(lambda: time.monotonic_ns() > due_ns)
        regs = await vcpu.get_regs()
        assert regs["time"] == before
        assert regs["mip"] == 0
        resumed_ns = time.monotonic_ns()
        await vm.resume_all_kicked_vcpus("hold")
        assert (await vcpu.get_regs())["time"] - before <= time.monotonic_ns() - resumed_ns, "it goes on where it stood"
        while not (await vcpu.get_regs())["x18"]:
            await asyncio.sleep(0)
        regs = await vcpu.get_regs()
        assert regs["time"] >= regs["x11"]


async def test_mp_state_halts_and_wakes_a_vcpu(vm: Vm) -> None:
    await chip(vm, SPIN)
    vcpu = await hart(vm)
    assert await vcpu.get_mp_state() == KVM_MP_STATE_RUNNABLE
    async with running(vcpu):
        await vcpu.set_mp_state(KVM_MP_STATE_HALTED)
        retired = vcpu.stats().instructions
        assert (await vcpu.get_regs())["instret"] == retired
        assert await vcpu.get_mp_state() == KVM_MP_STATE_HALTED
        await vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE)
        await progress(vcpu)


@pytest.mark.parametrize("mp_state", [1, 2, 4, 5, 10, 11])
async def test_states_that_a_t64_lacks_are_einval(vm: Vm, mp_state: int) -> None:
    vcpu = await vm.create_vcpu(0)
    with refusal(errno.EINVAL):
        await vcpu.set_mp_state(mp_state)


async def test_halted_without_a_controller_is_einval(vm: Vm) -> None:
    vcpu = await vm.create_vcpu(0)
    with refusal(errno.EINVAL):
        await vcpu.set_mp_state(KVM_MP_STATE_HALTED)
    await vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE)


async def test_destroying_a_vm_ends_its_sleepers_and_timers(system: System) -> None:
    vm = system.create_vm()
    await chip(vm, f"li a0, {MTIMECMP}\n csrr a1, time\n addi a1, a1, 2047\n sd a1, 0(a0)\n" + SLEEP)
    vcpu = await hart(vm, mie=SOFTWARE)
    run = asyncio.create_task(vcpu.run())
    await asleep(vcpu)
    await system.destroy_vm(vm.id)
    with pytest.raises(KvmError, match="destroyed"):
        await run


async def test_more_sleepers_than_workers_leave_the_workers_to_others(system: System) -> None:
    vm = system.create_vm()
    await chip(vm, SLEEP)
    vcpus = [await hart(vm, vcpu_id) for vcpu_id in range(7)]
    await vm.write_guest_memory(CODE + 0x80, assemble(SPIN).code)
    async with running(*vcpus):
        for vcpu in vcpus:
            await asleep(vcpu)
        spinner = await vcpu_at(vm, 7, CODE + 0x80)
        async with running(spinner):
            await progress(spinner)
        assert sum(vcpu.stats().instructions for vcpu in vcpus) == 7


@pytest.mark.parametrize(
    "storm",
    [
        f"li a0, {MTIME}\n 1: ld a1, 0(a0)\n j 1b",
        f"li a0, {MTIMECMP}\n li a1, -1\n 1: sd a1, 0(a0)\n j 1b",
        f"li a0, {MSIP}\n 1: sw zero, 0(a0)\n j 1b",
        "1: csrr a0, mscratch\n j 1b",
        "1: .word 0",
    ],
    ids=["mtime", "mtimecmp", "msip", "csr", "traps"],
)
async def test_vcpus_whose_every_instruction_is_evaluated_leave_the_workers_to_others(
    system: System, storm: str
) -> None:
    busy, other = system.create_vm(), system.create_vm()
    await chip(busy, storm, storm)
    stormy = [await hart(busy, index, mie=0) for index in range(4)]
    await boot(other, SPIN)
    spinner = await vcpu_at(other)
    async with running(*(vcpu for vcpu in stormy if ".word" not in storm)):
        runs = [asyncio.create_task(vcpu.run()) for vcpu in stormy if ".word" in storm]
        async with running(spinner):
            await progress(spinner)
            with refusal(errno.EBUSY):
                await spinner.run()
        await system.destroy_vm(other.id)
        await busy.destroy()
        await asyncio.gather(*runs, return_exceptions=True)


async def test_a_vcpu_that_is_halted_with_a_pending_exit_completes_it_and_then_sleeps(vm: Vm) -> None:
    await chip(vm, "ld a1, 0(a0)\n 1: addi a2, a2, 1\n j 1b")
    vcpu = await hart(vm, a0=0x8000_0000)
    assert isinstance(await vcpu.run(), MmioExit)
    await vcpu.set_mp_state(KVM_MP_STATE_HALTED)
    async with running(vcpu):
        await asleep(vcpu)
        regs = await vcpu.get_regs()
        assert (regs["instret"], regs["x12"]) == (1, 0)


async def test_a_single_step_over_wfi_is_reported_and_the_next_run_sleeps(vm: Vm) -> None:
    await chip(vm, "wfi\n addi a1, a1, 1\n j .")
    vcpu = await hart(vm, mie=EXTERNAL, mstatus=0)
    await vcpu.set_guest_debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)
    assert await vcpu.run() == DebugExit(CODE + 4, None)
    assert await vcpu.get_mp_state() == KVM_MP_STATE_HALTED
    with refusal(errno.EINTR):
        await vcpu.run(timeout_ms=10)
    run = asyncio.create_task(vcpu.run())
    vcpu.interrupt()
    assert await run == DebugExit(CODE + 8, None)
