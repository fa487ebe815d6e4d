"""Once a kick has answered nothing of a held vCPU changes: no register, no interrupt line, no pending exit."""

from __future__ import annotations

import asyncio
import ctypes

import pytest

from tests.kvm.guest import CODE, DATA, let_the_loop_turn, progress, running, until, vcpu_at
from tests.kvm.test_irqchip import ANSWER, MSIP, SOFTWARE, chip, hart
from vmmd.isa.context import ContextRecord
from vmmd.isa.engine import ENGINES
from vmmd.kvm.exits import MmioExit
from vmmd.kvm.uapi import KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm

pytestmark = pytest.mark.parametrize("engine_name", ENGINES, indirect=True)

INTERRUPT_THE_OTHER = f"""
    li t3, {MSIP}
    csrr t4, mhartid
    xori t4, t4, 1
    slli t4, t4, 2
    add t3, t3, t4
    li t5, 1
1:  sw t5, 0(t3)
    addi s2, s2, 1
    j 1b
"""

_GUEST_STATE = ("x", "pc", "retired", "mstatus", "mie", "mip", "mepc", "mcause", "mtval")


def guest_state(vcpu: Vcpu) -> list[bytes]:
    """Give the bytes of everything that the guest has in its vCPU, as they are this moment."""
    address = vcpu.context.address
    fields = (getattr(ContextRecord, name) for name in _GUEST_STATE)
    return [ctypes.string_at(address + field.offset, field.size) for field in fields]


async def test_interrupts_that_vcpus_send_each_other_stand_still_once_a_kick_has_answered(vm: Vm) -> None:
    await chip(vm, INTERRUPT_THE_OTHER, ANSWER)
    vcpus = [await hart(vm, 0), await hart(vm, 1)]
    changed = 0
    async with running(*vcpus):
        for number in range(150):
            await progress(vcpus[number % 2])
            await vm.kick_all_running_vcpus(f"hold {number}")
            before = [guest_state(vcpu) for vcpu in vcpus]
            await let_the_loop_turn()
            changed += before != [guest_state(vcpu) for vcpu in vcpus]
            await vm.resume_all_kicked_vcpus(f"hold {number}")
    assert changed == 0
    for vcpu in vcpus:
        assert (await vcpu.get_regs())["x9"] > 0, "it was interrupted by the other"


async def test_an_exit_that_arrives_with_a_new_pc_is_not_completed_there(vm: Vm) -> None:
    await chip(vm, f"li a0, 0x800000\n 1: ld a1, 0(a0)\n j 1b\n .balign {DATA}\n 2: j 2b")
    vcpu = await vcpu_at(vm, mie=0, mtvec=0)
    for _ in range(100):
        await vcpu.set_regs({"pc": CODE, "a1": 0})
        run = asyncio.create_task(vcpu.run())
        await until(lambda: vcpu.is_running)
        await vcpu.set_regs({"pc": DATA, "a1": 7})
        if run.done():
            assert isinstance(run.result(), MmioExit)
        else:
            vcpu.signal()
            await asyncio.wait([run])
            run.exception()
        # Whichever came first, the load does not end at the new place.
        second = asyncio.create_task(vcpu.run())
        await until(lambda: vcpu.is_running)
        vcpu.signal()
        await asyncio.wait([second])
        second.exception()
        regs = await vcpu.get_regs()
        assert regs["x11"] in {0, 7}
        assert regs["pc"] == DATA


async def test_single_step_that_is_switched_on_while_the_guest_runs_ends_the_run_soon(vm: Vm) -> None:
    await chip(vm, "1: addi a1, a1, 1\n j 1b")
    vcpu = await vcpu_at(vm, mie=SOFTWARE)
    for _ in range(50):
        async with running(vcpu) as (run,):
            await vcpu.set_guest_debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)
            retired = vcpu.stats().instructions
            await until(run.done)
            assert vcpu.stats().instructions == retired + 1
        await vcpu.set_guest_debug(0)
