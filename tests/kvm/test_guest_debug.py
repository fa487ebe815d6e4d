"""KVM_SET_GUEST_DEBUG: single steps and breakpoints."""

from __future__ import annotations

import errno

import pytest

from tests.kvm.guest import CODE, SPIN, boot, progress, refusal, running, vcpu_at
from vmmd.kvm.exits import DebugExit, HltExit, MmioExit, ShutdownExit
from vmmd.kvm.uapi import KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_SW_BP
from vmmd.kvm.vm import Vm

STEP = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
BREAKPOINTS = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP


async def test_a_single_step_is_one_instruction(vm: Vm) -> None:
    await boot(vm, "addi a1, a1, 1\n j 1f\n nop\n 1: addi a1, a1, 1\n wfi")
    vcpu = await vcpu_at(vm)
    await vcpu.set_guest_debug(STEP)
    for retired, pc in enumerate((CODE + 4, CODE + 12, CODE + 16), 1):
        assert await vcpu.run() == DebugExit(pc, None)
        assert vcpu.stats().instructions == retired
    assert await vcpu.run() == HltExit()


async def test_an_exit_comes_first_and_its_completion_is_the_step(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=0x10_0000)
    await vcpu.set_guest_debug(STEP)
    assert isinstance(await vcpu.run(), MmioExit)
    assert await vcpu.run(b"\7" + bytes(7)) == DebugExit(CODE + 4, None)
    assert (await vcpu.get_regs())["x11"] == 7


async def test_a_step_into_a_trap_ends_at_the_handler(vm: Vm) -> None:
    await boot(vm, "ecall")
    vcpu = await vcpu_at(vm, mtvec=CODE + 0x40)
    await vcpu.set_guest_debug(STEP)
    assert await vcpu.run() == DebugExit(CODE + 0x40, None)
    assert (await vcpu.get_regs())["mepc"] == CODE


async def test_a_breakpoint_leaves_before_it_retires_and_the_debugger_moves_on(vm: Vm) -> None:
    await boot(vm, "nop\n ebreak\n wfi")
    vcpu = await vcpu_at(vm, mtvec=CODE + 0x40)
    await vcpu.set_guest_debug(BREAKPOINTS)
    for _ in range(2):
        assert await vcpu.run() == DebugExit(CODE + 4, 3)
        assert vcpu.stats().instructions == 1
    await vcpu.set_regs({"pc": CODE + 8})
    assert await vcpu.run() == HltExit()


@pytest.mark.parametrize("control", [0, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_SW_BP, KVM_GUESTDBG_SINGLESTEP])
async def test_a_breakpoint_that_nobody_asked_for_is_the_guests(vm: Vm, control: int) -> None:
    await boot(vm, "nop\n ebreak")
    vcpu = await vcpu_at(vm)
    await vcpu.set_guest_debug(BREAKPOINTS)
    await vcpu.set_guest_debug(control)
    assert await vcpu.run() == ShutdownExit(3, CODE + 4)


async def test_a_running_vcpu_is_stepped_from_the_call_on(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu) as (run,):
        await progress(vcpu)
        await vcpu.set_guest_debug(STEP)
        exit_ = await run
        assert isinstance(exit_, DebugExit)
        assert exit_.pc == (await vcpu.get_regs())["pc"]


async def test_immediate_exit_comes_before_a_step(vm: Vm) -> None:
    await boot(vm, "nop\n wfi")
    vcpu = await vcpu_at(vm)
    await vcpu.set_guest_debug(STEP)
    vcpu.set_immediate_exit(1)
    with refusal(errno.EINTR):
        await vcpu.run()
    assert vcpu.stats().instructions == 0


async def test_control_bits_that_are_not_known_are_einval_and_nothing_is_set(vm: Vm) -> None:
    await boot(vm, "nop\n wfi")
    vcpu = await vcpu_at(vm)
    with refusal(errno.EINVAL) as wrong:
        await vcpu.set_guest_debug(STEP | 1 << 17)
    assert wrong.value.ioctl == "KVM_SET_GUEST_DEBUG"
    assert await vcpu.run() == HltExit()
