"""Traps, control and status registers, `mret`: what the guest takes itself, and what ends its run."""

from __future__ import annotations

import pytest

from tests.kvm.guest import CODE, DATA, HOLE, boot, until, vcpu_at
from vmmd.isa.assembler import assemble
from vmmd.isa.engine import ENGINES
from vmmd.kvm.exits import HltExit, HypercallExit, ShutdownExit
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm

pytestmark = pytest.mark.parametrize("engine_name", ENGINES, indirect=True)

HANDLER = CODE + 0x100

REPORT = """
    csrr a1, mcause
    csrr a2, mepc
    csrr a3, mtval
    csrr a4, mstatus
    wfi
"""
"""A handler that shows what it was told."""


async def guest(vm: Vm, source: str, handler: str = REPORT, **regs: int) -> Vcpu:
    """Boot `source` with a trap handler, and mtvec on it."""
    base = await boot(vm, source)
    await vm.write_host_memory(base + HANDLER, assemble(handler, HANDLER).code)
    return await vcpu_at(vm, mtvec=HANDLER, **regs)


@pytest.mark.parametrize(
    ("source", "cause", "at", "value"),
    [
        (".word 0xffffffff", 2, CODE, 0xFFFF_FFFF),
        ("nop\n.word 0", 2, CODE + 4, 0),
        ("ebreak", 3, CODE, CODE),
        ("ecall", 11, CODE, 0),
        ("li a5, 0x4001\n lr.w a6, (a5)", 4, CODE + 8, 0x4001),
        ("li a5, 0x4004\n sc.d a6, a6, (a5)", 6, CODE + 8, 0x4004),
        ("li a5, 0x4002\n amoadd.w a6, a6, (a5)", 6, CODE + 8, 0x4002),
        ("li a5, 0x1002\n jr a5", 0, CODE + 8, 0x1002),
        ("csrr a5, 0x7c0", 2, CODE, 0x7C0027F3),
        ("csrw mhartid, a5", 2, CODE, 0xF1479073),
        ("csrsi cycle, 1", 2, CODE, 0xC000E073),
        ("csrc instret, a5", 2, CODE, 0xC027B073),
    ],
)
async def test_a_guest_with_a_handler_takes_the_trap(vm: Vm, source: str, cause: int, at: int, value: int) -> None:
    vcpu = await guest(vm, source, mstatus=8)
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["x11"], regs["x12"], regs["x13"]) == (cause, at, value)
    assert regs["x14"] == 0x80, "interrupts are off in the handler, and were on"


async def test_without_a_handler_a_trap_is_a_shutdown_and_nothing_retires(vm: Vm) -> None:
    await boot(vm, "nop\n csrr a0, 0x300\n csrr a0, 0x123")
    vcpu = await vcpu_at(vm)
    for _ in range(2):
        assert await vcpu.run() == ShutdownExit(2, 0x12302573)
        regs = await vcpu.get_regs()
        assert (regs["pc"], regs["instret"], regs["mcause"]) == (CODE + 8, 2, 0)


async def test_ecall_is_a_hypercall_as_long_as_there_is_no_handler(vm: Vm) -> None:
    vcpu = await guest(vm, f"ecall\n li a1, {HANDLER}\n csrw mtvec, a1\n ecall")
    await vcpu.set_regs({"mtvec": 0, "a7": 9})
    assert isinstance(await vcpu.run(), HypercallExit)
    await vcpu.run((7).to_bytes(8, "little"))
    regs = await vcpu.get_regs()
    assert (regs["x10"], regs["mcause"], regs["mepc"]) == (7, 11, CODE + 16)


async def test_mret_goes_back_and_interrupts_are_as_they_were(vm: Vm) -> None:
    vcpu = await guest(
        vm,
        "csrsi mstatus, 8\n ecall\n csrr a5, mstatus\n wfi",
        "csrr a4, mstatus\n csrr a6, mepc\n addi a6, a6, 4\n csrw mepc, a6\n mret",
    )
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["x14"], regs["x15"]) == (0x80, 0x88)
    assert regs["pc"] == CODE + 16


@pytest.mark.parametrize(
    ("change", "before", "value", "after"),
    [
        ("csrrw a0, mscratch, a1", 0b0110, 0b0011, 0b0011),
        ("csrrs a0, mscratch, a1", 0b0110, 0b0011, 0b0111),
        ("csrrc a0, mscratch, a1", 0b0110, 0b0011, 0b0100),
        ("csrrwi a0, mscratch, 17", 0b0110, 0, 17),
        ("csrrsi a0, mscratch, 17", 0b0110, 0, 0b10111),
        ("csrrci a0, mscratch, 18", 0b0110, 0, 0b00100),
        ("csrrw a0, mscratch, zero", 0b0110, 0, 0),
        ("csrrs a0, mscratch, zero", 0b0110, 0, 0b0110),
    ],
)
async def test_a_register_is_written_set_and_cleared_and_its_old_value_given(
    vm: Vm, change: str, before: int, value: int, after: int
) -> None:
    await boot(vm, f"{change}\n wfi")
    vcpu = await vcpu_at(vm, mscratch=before, a1=value)
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["x10"], regs["mscratch"]) == (before, after)


async def test_bits_that_a_register_lacks_stay_zero(vm: Vm) -> None:
    names = ("mstatus", "mie", "mip", "mtvec", "mepc")
    await boot(vm, "li a0, -1\n" + "".join(f"csrw {name}, a0\n" for name in names) + "wfi")
    vcpu = await vcpu_at(vm)
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert [regs[name] for name in names] == [0x88, 0x888, 0, 2**64 - 4, 2**64 - 4]


async def test_a_read_only_register_is_read_by_a_set_of_nothing(vm: Vm) -> None:
    await boot(vm, "nop\n csrrs a0, instret, zero\n csrrci a1, cycle, 0\n csrr a2, mhartid\n rdtime a3\n wfi")
    vcpu = await vcpu_at(vm, 2)
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["x10"], regs["x11"], regs["x12"]) == (1, 2, 2)
    assert 0 < regs["x13"] <= regs["time"]


async def test_a_trap_ends_a_reservation_and_so_does_mret(vm: Vm) -> None:
    vcpu = await guest(
        vm,
        f"li a0, {DATA}\n lr.d a1, (a0)\n ecall\n sc.d a2, a1, (a0)\n lr.d a1, (a0)\n csrw mepc, a3\n mret",
        "csrr a6, mepc\n addi a6, a6, 4\n csrw mepc, a6\n mret",
        a3=CODE + 0x40,
    )
    await vm.write_guest_memory(CODE + 0x40, assemble("sc.d a4, a1, (a0)\n wfi").code)
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["x12"], regs["x14"]) == (1, 1)


async def test_a_guest_that_does_nothing_but_trap_can_be_stopped(vm: Vm) -> None:
    vcpu = await guest(vm, ".word 0", ".word 0")
    with pytest.raises(Exception, match="interrupted"):
        await vcpu.run(timeout_ms=20)
    assert (await vcpu.get_regs())["instret"] == 0


async def test_a_handler_may_fix_what_trapped_and_go_back_to_it(vm: Vm) -> None:
    vcpu = await guest(
        vm,
        f"li a0, {DATA + 1}\n amoadd.d a1, a2, (a0)\n wfi",
        "csrr a0, mtval\n addi a0, a0, -1\n mret",
        a2=5,
    )
    await vm.write_guest_memory(DATA, (3).to_bytes(8, "little"))
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x11"] == 3
    assert await vm.read_guest_memory(DATA, 8) == (8).to_bytes(8, "little")


async def test_a_fetch_outside_memory_is_no_trap(vm: Vm) -> None:
    vcpu = await guest(vm, f"li a0, {HOLE}\n jr a0")
    exit_ = await vcpu.run()
    assert exit_.reason == "KVM_EXIT_INTERNAL_ERROR"


async def test_traps_are_taken_at_speed_and_counted_right(vm: Vm) -> None:
    vcpu = await guest(
        vm,
        "li a1, 2000\n 1: ecall\n addi a1, a1, -1\n bnez a1, 1b\n wfi",
        "addi a2, a2, 1\n csrr a6, mepc\n addi a6, a6, 4\n csrw mepc, a6\n mret",
    )
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert regs["x12"] == 2000
    # An ecall that traps does not retire.
    assert regs["instret"] == 1 + 2000 * 2 + 2000 * 5 + 1
    await until(lambda: vcpu.stats().instructions == regs["instret"])


async def test_a_trap_remembers_that_interrupts_were_off(vm: Vm) -> None:
    vcpu = await guest(vm, "ecall", mstatus=0x80)
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x14"] == 0


async def test_mepc_is_a_value_that_can_be_given_back(vm: Vm) -> None:
    vcpu = await guest(vm, "nop")
    await vcpu.set_regs({"pc": CODE + 2})
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["mepc"], regs["mtval"]) == (CODE, CODE + 2)
    for name in ("cycle", "instret", "time", "mhartid"):
        del regs[name]
    await vcpu.set_regs(regs)
