"""KVM_GET_REGS and KVM_SET_REGS, also of a vCPU that runs."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from tests.kvm.guest import CODE, SPIN, boot, progress, refusal, running, vcpu_at
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import U64

ABI_NAMES = [
    *("zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1"),
    *(f"a{index}" for index in range(8)),
    *(f"s{index}" for index in range(2, 12)),
    *(f"t{index}" for index in range(3, 7)),
]


CSRS = [
    *("mstatus", "mie", "mtvec", "mscratch", "mepc", "mcause", "mtval", "mip"),
    *("cycle", "instret", "mhartid"),
]


async def test_a_new_vcpus_registers_are_all_zero(vm: Vm) -> None:
    vcpu = await vm.create_vcpu(0)
    regs = await vcpu.get_regs()
    assert regs.pop("time") > 0
    assert regs == dict.fromkeys(["pc", *(f"x{index}" for index in range(32)), *CSRS], 0)


async def test_every_abi_name_is_its_number(vm: Vm) -> None:
    vcpu = await vm.create_vcpu(0)
    await vcpu.set_regs({name: index for index, name in enumerate(ABI_NAMES)})
    regs = await vcpu.get_regs()
    assert [regs[f"x{index}"] for index in range(32)] == list(range(32))
    await vcpu.set_regs({"fp": U64})
    assert (await vcpu.get_regs())["x8"] == U64


async def test_only_those_that_are_named_are_set(vm: Vm) -> None:
    vcpu = await vm.create_vcpu(0)
    await vcpu.set_regs({"pc": 0x1000, "x1": 1})
    await vcpu.set_regs({"x2": 2})
    regs = await vcpu.get_regs()
    assert (regs["pc"], regs["x1"], regs["x2"]) == (0x1000, 1, 2)


@pytest.mark.parametrize(
    ("regs", "said"),
    [
        ({"x1": 9, "x32": 1}, "no register 'x32'"),
        ({"x1": 9, "PC": 1}, "no register 'PC'"),
        ({"x1": 9, "ra": 9}, "'ra' is given twice"),
        ({"x1": 9, "s0": 1, "fp": 1}, "'fp' is given twice"),
        ({"x1": 9, "x0": 1}, "x0 is always 0 and cannot become 0x1"),
        ({"x1": 9, "pc": -1}, "pc = -1 is no unsigned 64-bit number"),
        ({"x1": 9, "a0": U64 + 1}, "a0 = 18446744073709551616 is no unsigned 64-bit number"),
        ({"x1": 9, "mhartid": 1}, "mhartid is read-only"),
        ({"x1": 9, "instret": 0}, "instret is read-only"),
        ({"x1": 9, "mtvec": 0x1001}, "mtvec = 0x1001: of its bits only 0xfffffffffffffffc can be set"),
        ({"x1": 9, "mstatus": 1}, "mstatus = 0x1: of its bits only 0x88 can be set"),
        ({"x1": 9, "mip": 1}, "mip = 0x1: of its bits only 0x888 can be set"),
    ],
)
async def test_registers_that_cannot_be_set_are_einval_and_none_is_set(vm: Vm, regs: dict[str, Any], said: str) -> None:
    vcpu = await vm.create_vcpu(0)
    with refusal(errno.EINVAL) as wrong:
        await vcpu.set_regs(regs)
    assert wrong.value.ioctl == "KVM_SET_REGS"
    assert said in wrong.value.message
    assert not any(value for name, value in (await vcpu.get_regs()).items() if name != "time")


async def test_control_and_status_registers_are_set_and_read_by_their_names(vm: Vm) -> None:
    vcpu = await vm.create_vcpu(3)
    values = {
        "mstatus": 0x88,
        "mie": 0x888,
        "mtvec": 0x1000,
        "mscratch": U64,
        "mepc": 0x2004,
        "mcause": 1 << 63 | 7,
        "mtval": 5,
        "mip": 0x80,
    }
    await vcpu.set_regs(values)
    regs = await vcpu.get_regs()
    assert {name: regs[name] for name in values} == values
    assert regs["mhartid"] == 3


async def test_x0_may_be_set_to_zero(vm: Vm) -> None:
    vcpu = await vm.create_vcpu(0)
    await vcpu.set_regs({"x0": 0, "a0": 1})
    assert (await vcpu.get_regs())["x10"] == 1


async def test_a_running_vcpus_registers_are_read_and_it_goes_on(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu) as (run,):
        first = await vcpu.get_regs()
        await progress(vcpu)
        second = await vcpu.get_regs()
        assert second["x11"] >= first["x11"]
        assert first["pc"] in {CODE, CODE + 4}
        assert not run.done()


async def test_a_running_vcpus_registers_are_set_between_two_instructions(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu):
        await vcpu.set_regs({"a1": 1 << 60})
        await progress(vcpu)
        assert (await vcpu.get_regs())["x11"] >= 1 << 60


async def test_calls_side_by_side_leave_the_vcpu_running(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu) as (run,):
        await asyncio.gather(*(vcpu.get_regs() for _ in range(8)), *(vcpu.set_regs({"a1": 0}) for _ in range(8)))
        await progress(vcpu)
        assert not run.done()


async def test_a_held_vcpus_registers_are_read_and_set_and_it_stays_held(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu):
        await vm.kick_all_running_vcpus("hold")
        retired = vcpu.stats().instructions
        await vcpu.set_regs({"a1": 1 << 60})
        assert (await vcpu.get_regs())["x11"] == 1 << 60
        assert vcpu.stats().instructions == retired
        await vm.resume_all_kicked_vcpus("hold")
        await progress(vcpu)


async def test_another_pc_abandons_an_instruction_that_waits_and_the_same_pc_does_not(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n wfi\n addi a1, a1, 1\n wfi")
    vcpu = await vcpu_at(vm, a0=1 << 40)
    await vcpu.run()
    await vcpu.set_regs({"pc": CODE})
    assert (await vcpu.run(b"\5" + bytes(7))).reason == "KVM_EXIT_HLT"
    assert (await vcpu.get_regs())["x11"] == 5
    await vcpu.set_regs({"pc": CODE})
    await vcpu.run()
    await vcpu.set_regs({"pc": CODE + 8})
    assert (await vcpu.run()).reason == "KVM_EXIT_HLT"
    assert (await vcpu.get_regs())["x11"] == 6
