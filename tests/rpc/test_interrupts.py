"""Interrupts, the in-kernel controller, states and debugging over the wire."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.rpc.wire import PAGE, Failed, Wire, is_failed, request, set_region
from vmmd.api.codes import INVALID_PARAMS
from vmmd.rpc.caller import Caller

SLEEP = "1: wfi\n addi a1, a1, 1\n j 1b"


async def guest(wire: Wire, vm: str, source: str) -> None:
    """Put code at address 0, and a vCPU on it that lets external interrupts wake it."""
    base = (await wire.call("vm.map_host_memory", vm=vm, size=PAGE))["userspace_addr"]
    code = (await wire.call("isa.assemble", source=source))["code"]
    await wire.send(set_region(vm, 0, 0, PAGE, base))
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=code)
    await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
    await wire.call("vcpu.set_regs", vm=vm, vcpu=0, regs={"mie": "0x800"})


async def test_a_sleeper_is_seen_halted_and_an_interrupt_wakes_it(wire: Wire, vm: str) -> None:
    assert await wire.call("vm.create_irqchip", vm=vm) is None
    await guest(wire, vm, SLEEP)
    assert await wire.call("vcpu.get_mp_state", vm=vm, vcpu=0) == "KVM_MP_STATE_RUNNABLE"
    run = asyncio.create_task(wire.send(request("vcpu.run", vm=vm, vcpu=0)))
    while await wire.call("vcpu.get_mp_state", vm=vm, vcpu=0) != "KVM_MP_STATE_HALTED":
        await asyncio.sleep(0)
    assert await wire.call("vcpu.interrupt", vm=vm, vcpu=0) is None
    while (await wire.call("vcpu.get_regs", vm=vm, vcpu=0))["x11"] == "0x0":
        await asyncio.sleep(0)
    assert (await wire.call("vcpu.get_regs", vm=vm, vcpu=0))["mip"] == "0x800"
    await wire.call("vm.stop", vm=vm)
    assert is_failed(_failed(await run), "EINTR")


async def test_the_run_loop_waits_at_hlt_for_an_interrupt(wire: Wire, vm: str) -> None:
    await guest(wire, vm, SLEEP)
    await wire.call("vm.start", vm=vm)
    while not (await wire.call("vm.get_stats", vm=vm))["exits"]:
        await asyncio.sleep(0)
    assert (await wire.call("vcpu.get_regs", vm=vm, vcpu=0))["x11"] == "0x0"
    await wire.call("vcpu.interrupt", vm=vm, vcpu=0)
    while (await wire.call("vcpu.get_regs", vm=vm, vcpu=0))["x11"] == "0x0":
        await asyncio.sleep(0)
    await wire.call("vm.stop", vm=vm)


async def test_mp_state_is_set_by_its_name(wire: Wire, vm: str) -> None:
    await wire.call("vm.create_irqchip", vm=vm)
    await guest(wire, vm, SLEEP)
    await wire.call("vcpu.set_mp_state", vm=vm, vcpu=0, mp_state="KVM_MP_STATE_HALTED")
    assert await wire.call("vcpu.get_mp_state", vm=vm, vcpu=0) == "KVM_MP_STATE_HALTED"
    with pytest.raises(Failed) as lacking:
        await wire.call("vcpu.set_mp_state", vm=vm, vcpu=0, mp_state="KVM_MP_STATE_STOPPED")
    assert lacking.value.data == {"errno": "EINVAL", "ioctl": "KVM_SET_MP_STATE"}
    with pytest.raises(Failed) as unknown:
        await wire.call("vcpu.set_mp_state", vm=vm, vcpu=0, mp_state="RUNNABLE")
    assert unknown.value.code == INVALID_PARAMS
    assert "KVM_MP_STATE_RUNNABLE" in str(unknown.value)


@pytest.mark.parametrize("control", [["KVM_GUESTDBG_ENABLE", "KVM_GUESTDBG_SINGLESTEP"], 3])
async def test_a_single_step_says_where_the_guest_is(wire: Wire, vm: str, control: Any) -> None:
    await guest(wire, vm, "nop\n nop")
    await wire.call("vcpu.set_guest_debug", vm=vm, vcpu=0, control=control)
    result = await wire.call("vcpu.run", vm=vm, vcpu=0)
    assert result == {"exit_reason": "KVM_EXIT_DEBUG", "debug": {"pc": "0x4", "exception": None}}


async def test_a_breakpoint_is_told_from_a_step(wire: Wire, vm: str) -> None:
    await guest(wire, vm, "nop\n ebreak")
    await wire.call("vcpu.set_guest_debug", vm=vm, vcpu=0, control=["KVM_GUESTDBG_ENABLE", "KVM_GUESTDBG_USE_SW_BP"])
    result = await wire.call("vcpu.run", vm=vm, vcpu=0)
    assert result == {"exit_reason": "KVM_EXIT_DEBUG", "debug": {"pc": "0x4", "exception": 3}}


async def test_debug_flags_that_are_not_known_are_refused(wire: Wire, vm: str) -> None:
    await guest(wire, vm, "nop")
    with pytest.raises(Failed) as named:
        await wire.call("vcpu.set_guest_debug", vm=vm, vcpu=0, control=["KVM_GUESTDBG_USE_HW_BP"])
    assert named.value.code == INVALID_PARAMS
    with pytest.raises(Failed) as numbered:
        await wire.call("vcpu.set_guest_debug", vm=vm, vcpu=0, control=1 << 17)
    assert numbered.value.data == {"errno": "EINVAL", "ioctl": "KVM_SET_GUEST_DEBUG"}


async def test_a_second_controller_is_eexist_and_one_behind_a_vcpu_is_einval(wire: Wire, vm: str) -> None:
    await wire.call("vm.create_irqchip", vm=vm)
    assert is_failed(_failed(await wire.send(request("vm.create_irqchip", vm=vm))), "EEXIST")
    other = (await wire.call("kvm.create_vm"))["vm"]
    await wire.call("vm.create_vcpu", vm=other, vcpu=0)
    assert is_failed(_failed(await wire.send(request("vm.create_irqchip", vm=other))), "EINVAL")


def _failed(answer: Any) -> Failed:
    return Failed(answer["error"])


async def test_a_run_whose_caller_has_gone_is_interrupted_and_the_vcpu_is_free(wire: Wire, vm: str) -> None:
    await guest(wire, vm, "1: j 1b")
    caller = Caller()
    run = asyncio.create_task(wire.send(request("vcpu.run", vm=vm, vcpu=0), caller))
    while not (await wire.call("vm.get_stats", vm=vm))["instructions"]:
        await asyncio.sleep(0)
    caller.leave()
    assert is_failed(_failed(await run), "ECANCELED")
    assert is_failed(_failed(await wire.send(request("vcpu.run", vm=vm, vcpu=0, timeout_ms=1))), "EINTR")
