"""Interrupts without an in-kernel controller: `vcpu.interrupt`, what takes them, and what wakes a `wfi`."""

from __future__ import annotations

import asyncio

from tests.kvm.guest import CODE, SPIN, boot, progress, running, vcpu_at
from vmmd.isa.assembler import assemble
from vmmd.kvm.exits import HltExit, MmioExit
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm

HANDLER = CODE + 0x100
ON = 8
EXTERNAL = 1 << 11

COUNT = """
    addi s1, s1, 1
    csrr s2, mcause
    csrr s3, mepc
    mret
"""


async def guest(vm: Vm, source: str, handler: str = COUNT, **regs: int) -> Vcpu:
    """Boot `source` with an interrupt handler, and interrupts on."""
    base = await boot(vm, source)
    await vm.write_host_memory(base + HANDLER, assemble(handler, HANDLER).code)
    return await vcpu_at(vm, mtvec=HANDLER, **({"mstatus": ON, "mie": EXTERNAL} | regs))


async def test_a_running_guest_takes_the_interrupt_once_and_goes_on(vm: Vm) -> None:
    vcpu = await guest(vm, SPIN)
    async with running(vcpu) as (run,):
        await progress(vcpu)
        for count in (1, 2, 3):
            vcpu.interrupt()
            while (await vcpu.get_regs())["x9"] != count:
                await asyncio.sleep(0)
        await progress(vcpu)
        regs = await vcpu.get_regs()
        assert regs["x9"] == 3
        assert regs["x18"] == 1 << 63 | 11
        assert regs["x19"] in {CODE, CODE + 4}
        assert regs["mip"] == 0
        assert not run.done()


async def test_it_stays_pending_until_the_guest_lets_it_in(vm: Vm) -> None:
    source = "ld a1, 0(a0)\n csrw mie, a2\n ld a1, 0(a0)\n csrsi mstatus, 8\n nop\n wfi"
    vcpu = await guest(vm, source, mstatus=0, mie=0, a0=0x10_0000, a2=EXTERNAL)
    vcpu.interrupt()
    assert isinstance(await vcpu.run(), MmioExit)
    assert (await vcpu.get_regs())["mip"] == EXTERNAL
    assert isinstance(await vcpu.run(), MmioExit)
    assert (await vcpu.get_regs())["x9"] == 0
    await vcpu.run()
    regs = await vcpu.get_regs()
    assert (regs["x9"], regs["mip"]) == (1, 0)
    assert regs["x19"] == CODE + 16, "it is taken before the instruction behind the one that lets it in"


async def test_a_pending_exit_is_completed_before_an_interrupt_is_taken(vm: Vm) -> None:
    vcpu = await guest(vm, "ld a1, 0(a0)\n wfi", a0=0x100000)
    assert isinstance(await vcpu.run(), MmioExit)
    vcpu.interrupt()
    assert await vcpu.run((7).to_bytes(8, "little")) == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["x11"], regs["x9"], regs["x19"]) == (7, 1, CODE + 4)


async def test_two_interrupts_before_one_is_taken_are_one(vm: Vm) -> None:
    vcpu = await guest(vm, "nop\n wfi")
    vcpu.interrupt()
    vcpu.interrupt()
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x9"] == 1


async def test_wfi_goes_on_where_an_interrupt_is_pending_and_enabled_though_interrupts_are_off(vm: Vm) -> None:
    vcpu = await guest(vm, "wfi\n li a1, 1\n csrw mie, zero\n wfi", mstatus=0, mip=EXTERNAL)
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["x11"], regs["x9"]) == (1, 0)


async def test_without_a_handler_an_interrupt_stays_pending_and_ends_nothing(vm: Vm) -> None:
    await boot(vm, "csrsi mstatus, 8\n nop\n wfi\n li a1, 1\n csrw mie, zero\n wfi")
    vcpu = await vcpu_at(vm, mie=EXTERNAL)
    vcpu.interrupt()
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["x11"], regs["mip"]) == (1, EXTERNAL)


async def test_external_comes_before_software_and_software_before_timer(vm: Vm) -> None:
    handler = "csrr a1, mcause\n slli a2, a2, 8\n or a2, a2, a1\n li a3, 1\n sll a3, a3, a1\n csrc mie, a3\n mret"
    vcpu = await guest(vm, "nop\n wfi", handler, mie=0x888, mip=0x888)
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x12"] == 0x0B0307 | 1 << 63


async def test_a_held_vcpu_takes_the_interrupt_after_the_resume(vm: Vm) -> None:
    vcpu = await guest(vm, SPIN)
    async with running(vcpu):
        await progress(vcpu)
        await vm.kick_all_running_vcpus("hold")
        vcpu.interrupt()
        regs = await vcpu.get_regs()
        assert (regs["x9"], regs["mip"]) == (0, EXTERNAL)
        await vm.resume_all_kicked_vcpus("hold")
        while (await vcpu.get_regs())["x9"] != 1:
            await asyncio.sleep(0)
