"""KVM_RUN: what makes it return, and how the next one goes on."""

from __future__ import annotations

import errno

import pytest

from tests.kvm.guest import CODE, DATA, HOLE, boot, refusal, vcpu_at
from vmmd.isa.engine import ENGINES
from vmmd.kvm.exits import (
    HltExit,
    HypercallExit,
    InternalErrorExit,
    IoExit,
    MmioExit,
    ShutdownExit,
)
from vmmd.kvm.uapi import KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_INTERNAL_ERROR_EMULATION
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_READONLY

pytestmark = pytest.mark.parametrize("engine_name", ENGINES, indirect=True)

BREAKPOINT, ILLEGAL_INSTRUCTION, MISALIGNED_FETCH = 3, 2, 0


@pytest.mark.parametrize(
    ("load", "size", "answer", "register"),
    [
        ("ld", 8, "0102030405060788", 0x8807060504030201),
        ("lw", 4, "ffffff80", 0xFFFF_FFFF_80FF_FFFF),
        ("lwu", 4, "ffffff80", 0x80FF_FFFF),
        ("lh", 2, "0080", 0xFFFF_FFFF_FFFF_8000),
        ("lbu", 1, "80", 0x80),
    ],
)
async def test_a_load_from_a_hole_waits_for_its_data(vm: Vm, load: str, size: int, answer: str, register: int) -> None:
    await boot(vm, f"{load} a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE)
    assert await vcpu.run() == MmioExit(HOLE, size, is_write=False, data=None)
    regs = await vcpu.get_regs()
    assert (regs["pc"], regs["x11"]) == (CODE, 0)
    assert await vcpu.run(bytes.fromhex(answer)) == HltExit()
    assert (await vcpu.get_regs())["x11"] == register


async def test_a_load_that_is_answered_with_nothing_reads_zeroes(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE, a1=7)
    await vcpu.run()
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x11"] == 0


@pytest.mark.parametrize(("store", "size"), [("sd", 8), ("sw", 4), ("sh", 2), ("sb", 1)])
async def test_a_store_to_a_hole_brings_its_data_along(vm: Vm, store: str, size: int) -> None:
    await boot(vm, f"{store} a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE, a1=0x8877665544332211)
    data = bytes.fromhex("1122334455667788")[:size]
    assert await vcpu.run() == MmioExit(HOLE, size, is_write=True, data=data)
    assert (await vcpu.get_regs())["pc"] == CODE
    assert await vcpu.run() == HltExit()


async def test_read_only_memory_is_read_and_a_store_to_it_is_an_mmio_exit(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n sd a0, 0(a0)\n wfi")
    rom = await vm.map_host_memory(PAGE_SIZE)
    await vm.write_host_memory(rom, b"\x2a")
    await vm.set_user_memory_region(1, KVM_MEM_READONLY, HOLE, PAGE_SIZE, rom)
    vcpu = await vcpu_at(vm, a0=HOLE)
    assert await vcpu.run() == MmioExit(HOLE, 8, is_write=True, data=HOLE.to_bytes(8, "little"))
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x11"] == 0x2A
    assert await vm.read_host_memory(rom, 8) == b"\x2a" + bytes(7)


async def test_a_load_across_two_pages_without_memory_is_two_exits(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE + PAGE_SIZE - 3)
    assert await vcpu.run() == MmioExit(HOLE + PAGE_SIZE - 3, 3, is_write=False, data=None)
    assert await vcpu.run(b"\x01\x02\x03") == MmioExit(HOLE + PAGE_SIZE, 5, is_write=False, data=None)
    assert await vcpu.run(b"\x04\x05\x06\x07\x08") == HltExit()
    assert (await vcpu.get_regs())["x11"] == 0x0807060504030201


async def test_a_store_across_two_pages_without_memory_is_two_exits(vm: Vm) -> None:
    await boot(vm, "sd a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE + PAGE_SIZE - 6, a1=0x0807060504030201)
    assert await vcpu.run() == MmioExit(HOLE + PAGE_SIZE - 6, 6, is_write=True, data=bytes(range(1, 7)))
    assert await vcpu.run() == MmioExit(HOLE + PAGE_SIZE, 2, is_write=True, data=b"\x07\x08")
    assert await vcpu.run() == HltExit()


async def test_of_a_store_into_a_hole_the_memory_piece_is_written_first(vm: Vm) -> None:
    await boot(vm, "sd a1, 0(a0)\n wfi")
    end = 8 * PAGE_SIZE
    vcpu = await vcpu_at(vm, a0=end - 2, a1=0x0807060504030201)
    assert await vcpu.run() == MmioExit(end, 6, is_write=True, data=bytes(range(3, 9)))
    assert await vm.read_guest_memory(end - 2, 2) == b"\x01\x02"
    await vm.write_guest_memory(end - 2, b"\xee\xee")
    assert await vcpu.run() == HltExit()
    assert await vm.read_guest_memory(end - 2, 2) == b"\xee\xee"


async def test_of_a_load_from_a_hole_the_memory_piece_is_read_when_it_completes(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n wfi")
    end = 8 * PAGE_SIZE
    vcpu = await vcpu_at(vm, a0=end - 2)
    assert await vcpu.run() == MmioExit(end, 6, is_write=False, data=None)
    await vm.write_guest_memory(end - 2, b"\x01\x02")
    assert await vcpu.run(bytes(range(3, 9))) == HltExit()
    assert (await vcpu.get_regs())["x11"] == 0x0807060504030201


async def test_a_lost_piece_is_efault_before_the_other_piece_is_asked_for(vm: Vm) -> None:
    base = await boot(vm, "sd a1, 0(a0)\n wfi")
    await vm.unmap_host_memory(base + 7 * PAGE_SIZE, PAGE_SIZE)
    await vm.set_user_memory_region(1, 0, 9 * PAGE_SIZE, PAGE_SIZE, base + 7 * PAGE_SIZE)
    vcpu = await vcpu_at(vm, a0=9 * PAGE_SIZE - 4)
    with refusal(errno.EFAULT):
        await vcpu.run()


@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("h", 2), ("w", 4)])
async def test_a_port_is_written_with_the_registers_low_bytes(vm: Vm, suffix: str, size: int) -> None:
    await boot(vm, f"out{suffix} a1, 8(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=0x1_03F0, a1=0x8877665544332211)
    data = bytes.fromhex("11223344")[:size]
    assert await vcpu.run() == IoExit(KVM_EXIT_IO_OUT, size, 0x3F8, 1, data)
    assert await vcpu.run() == HltExit()


@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("h", 2), ("w", 4)])
async def test_a_port_is_read_by_the_next_runs_data(vm: Vm, suffix: str, size: int) -> None:
    await boot(vm, f"in{suffix} a1, -1(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=0, a1=7)
    assert await vcpu.run() == IoExit(KVM_EXIT_IO_IN, size, 0xFFFF, 1, None)
    answer = bytes(range(1, size + 1))
    assert await vcpu.run(answer) == HltExit()
    assert (await vcpu.get_regs())["x11"] == int.from_bytes(answer, "little")


async def test_a_hypercall_has_number_and_arguments_and_its_answer_goes_to_a0(vm: Vm) -> None:
    await boot(vm, "ecall\n wfi")
    arguments = {f"a{index}": 100 + index for index in range(6)}
    vcpu = await vcpu_at(vm, a7=9, **arguments)
    assert await vcpu.run() == HypercallExit(9, (100, 101, 102, 103, 104, 105))
    assert await vcpu.run((0xFFFF_FFFF_FFFF_FFFE).to_bytes(8, "little")) == HltExit()
    assert (await vcpu.get_regs())["x10"] == 0xFFFF_FFFF_FFFF_FFFE


async def test_wfi_has_retired_when_it_halts_and_the_next_run_goes_on_behind_it(vm: Vm) -> None:
    await boot(vm, "wfi\n wfi")
    vcpu = await vcpu_at(vm)
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["pc"] == CODE + 4
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["pc"] == CODE + 8
    assert vcpu.stats().instructions == 2


@pytest.mark.parametrize(
    ("source", "cause", "value"),
    [("ebreak", BREAKPOINT, CODE), (".word 0xffffffff", ILLEGAL_INSTRUCTION, 0xFFFF_FFFF)],
)
async def test_a_trap_that_the_guest_does_not_take_is_a_shutdown_and_retires_nothing(
    vm: Vm, source: str, cause: int, value: int
) -> None:
    await boot(vm, source)
    vcpu = await vcpu_at(vm)
    for _ in range(2):
        assert await vcpu.run() == ShutdownExit(cause, value)
    assert (await vcpu.get_regs())["pc"] == CODE
    assert vcpu.stats().instructions == 0


async def test_a_misaligned_jump_is_a_shutdown_at_the_jump(vm: Vm) -> None:
    await boot(vm, "jr a0")
    vcpu = await vcpu_at(vm, a0=CODE + 2)
    assert await vcpu.run() == ShutdownExit(MISALIGNED_FETCH, CODE + 2)
    assert (await vcpu.get_regs())["pc"] == CODE


async def test_a_vm_without_memslots_ends_in_an_internal_error(vm: Vm) -> None:
    vcpu = await vm.create_vcpu(0)
    assert await vcpu.run() == InternalErrorExit(KVM_INTERNAL_ERROR_EMULATION, 0)


async def test_a_jump_to_where_no_memslot_is_is_an_internal_error_and_goes_on_once_there_is_code(vm: Vm) -> None:
    base = await boot(vm, "jr a0")
    vcpu = await vcpu_at(vm, a0=HOLE + CODE)
    assert await vcpu.run() == InternalErrorExit(KVM_INTERNAL_ERROR_EMULATION, HOLE + CODE)
    assert (await vcpu.get_regs())["pc"] == HOLE + CODE
    assert vcpu.stats().instructions == 1
    await vm.set_user_memory_region(1, 0, HOLE, 8 * PAGE_SIZE, base)
    await vm.write_guest_memory(CODE, bytes.fromhex("73005010"))
    assert await vcpu.run() == HltExit()


async def test_a_lost_host_page_is_efault_until_a_slot_gives_other_memory(vm: Vm) -> None:
    base = await boot(vm, "ld a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=DATA)
    await vm.unmap_host_memory(base + DATA, PAGE_SIZE)
    for _ in range(2):
        with refusal(errno.EFAULT) as lost:
            await vcpu.run()
        assert lost.value.ioctl == "KVM_RUN"
        assert f"{DATA:#x}" in lost.value.message
        assert (await vcpu.get_regs())["pc"] == CODE
    assert vcpu.stats().instructions == 0
    other = await vm.map_host_memory(8 * PAGE_SIZE)
    await vm.write_host_memory(other + DATA, b"\x2a")
    await vm.write_host_memory(other + CODE, await vm.read_host_memory(base + CODE, 8))
    await vm.set_user_memory_region(0, 0, 0, 0, 0)
    await vm.set_user_memory_region(0, 0, 0, 8 * PAGE_SIZE, other)
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x11"] == 0x2A


async def test_lost_code_is_efault_and_no_internal_error(vm: Vm) -> None:
    base = await boot(vm, "wfi")
    vcpu = await vcpu_at(vm)
    await vm.unmap_host_memory(base + CODE, PAGE_SIZE)
    with refusal(errno.EFAULT):
        await vcpu.run()


async def test_a_slot_over_a_pending_reads_address_does_not_answer_it(vm: Vm) -> None:
    base = await boot(vm, "ld a1, 0(a0)\n ld a2, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE)
    await vcpu.run()
    await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base + DATA)
    await vm.write_guest_memory(HOLE, b"\x01")
    assert await vcpu.run(b"\x02" + bytes(7)) == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["x11"], regs["x12"]) == (2, 1)


async def test_every_exit_and_every_retired_instruction_is_counted(vm: Vm) -> None:
    await boot(vm, "nop\n ld a1, 0(a0)\n outb a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE)
    for _ in range(3):
        await vcpu.run()
    stats = vm.stats()
    assert stats == vcpu.stats()
    assert stats.exits == {"KVM_EXIT_MMIO": 1, "KVM_EXIT_IO": 1, "KVM_EXIT_HLT": 1}
    assert stats.instructions == 4
