"""The run loop: what it serves, what it counts, and what ends it."""

from __future__ import annotations

import errno

import pytest

from tests.kvm.guest import CODE, DATA, HOLE, SPIN, boot, progress, until, vcpu_at
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import HypercallExit, InternalErrorExit, MmioExit, ShutdownExit
from vmmd.machine.machine import Machine, MachineState
from vmmd.machine.run_loop import StrayPolicy
from vmmd.memory.limits import PAGE_SIZE

HELLO = """
    li a0, 0x3f8
    li a1, 'h'
    outb a1, 0(a0)
    li a1, 'i'
    outb a1, 0(a0)
    outb a1, 1(a0)
    ebreak
"""


async def ended(machine: Machine, vcpu_id: int = 0) -> object:
    """Wait until a vCPU's loop has ended by itself, and return what ended it."""
    await until(lambda: vcpu_id in machine.ended)
    return machine.ended[vcpu_id]


async def test_bytes_to_the_serial_port_are_console_output_and_other_ports_are_not(machine: Machine) -> None:
    await boot(machine.vm, HELLO)
    await vcpu_at(machine.vm)
    machine.start()
    assert isinstance(await ended(machine), ShutdownExit)
    assert machine.read_console() == (b"hi", 2)
    assert machine.read_console(1) == (b"i", 2)
    assert machine.vm.stats().exits == {"KVM_EXIT_IO": 3, "KVM_EXIT_SHUTDOWN": 1}


async def test_a_word_to_the_serial_port_is_four_bytes_of_output(machine: Machine) -> None:
    await boot(machine.vm, "outw a1, 0(a0)\n ebreak")
    await vcpu_at(machine.vm, a0=0x3F8, a1=int.from_bytes(b"word", "little"))
    machine.start()
    await ended(machine)
    assert machine.read_console() == (b"word", 4)


@pytest.mark.parametrize(("suffix", "ones"), [("b", 0xFF), ("h", 0xFFFF), ("w", 0xFFFF_FFFF)])
@pytest.mark.parametrize("port", [0x3F8, 0x60])
async def test_every_port_reads_all_ones(machine: Machine, suffix: str, ones: int, port: int) -> None:
    await boot(machine.vm, f"in{suffix} a1, 0(a0)\n ebreak")
    vcpu = await vcpu_at(machine.vm, a0=port)
    machine.start()
    await ended(machine)
    assert (await vcpu.get_regs())["x11"] == ones


async def test_a_stray_exit_stops_its_vcpu_by_default_and_is_kept(machine: Machine) -> None:
    await boot(machine.vm, "sw a0, 0(a0)\n" + SPIN)
    vcpu = await vcpu_at(machine.vm, a0=HOLE)
    machine.start()
    assert await ended(machine) == MmioExit(HOLE, 4, is_write=True, data=HOLE.to_bytes(4, "little"))
    assert machine.vm.stats().stray_exits == 1
    assert (await vcpu.get_regs())["pc"] == CODE
    assert machine.state is MachineState.RUNNING


async def test_with_the_other_policy_stray_loads_read_ones_and_stray_stores_go_nowhere(machine: Machine) -> None:
    await boot(machine.vm, "ld a1, 0(a0)\n lbu a2, 0(a0)\n sd a1, 0(a0)\n ld a3, 0(a4)\n ebreak")
    vcpu = await vcpu_at(machine.vm, a0=HOLE, a4=HOLE - 3)
    machine.start(StrayPolicy.ONES)
    assert isinstance(await ended(machine), ShutdownExit)
    regs = await vcpu.get_regs()
    assert (regs["x11"], regs["x12"], regs["x13"]) == ((1 << 64) - 1, 0xFF, (1 << 64) - 1)
    assert machine.vm.stats().stray_exits == vcpu.stats().stray_exits == 5


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("ebreak", ShutdownExit),
        ("ecall", HypercallExit),
        ("jr a0", InternalErrorExit),
    ],
)
@pytest.mark.parametrize("policy", StrayPolicy)
async def test_any_other_exit_ends_the_loop_and_is_kept(
    machine: Machine, source: str, what: type, policy: StrayPolicy
) -> None:
    await boot(machine.vm, source)
    await vcpu_at(machine.vm, a0=HOLE)
    machine.start(policy)
    assert isinstance(await ended(machine), what)


async def test_an_error_ends_the_loop_and_is_kept(machine: Machine) -> None:
    base = await boot(machine.vm, "ld a1, 0(a0)")
    await vcpu_at(machine.vm, a0=DATA)
    await machine.vm.unmap_host_memory(base + DATA, PAGE_SIZE)
    machine.start()
    ending = await ended(machine)
    assert isinstance(ending, KvmError)
    assert ending.errno == errno.EFAULT


async def test_one_vcpus_end_leaves_the_others_running(machine: Machine) -> None:
    await boot(machine.vm, "beqz a0, 1f\n ebreak\n" + SPIN)
    spinning = await vcpu_at(machine.vm, 0, a0=0)
    await vcpu_at(machine.vm, 1, a0=1)
    machine.start()
    assert isinstance(await ended(machine, 1), ShutdownExit)
    retired = spinning.stats().instructions
    await until(lambda: spinning.stats().instructions > retired)
    assert list(machine.ended) == [1]
    await machine.stop()
    assert list(machine.ended) == [1]


async def test_hlt_waits_for_an_interrupt_and_goes_on_behind_the_wfi(machine: Machine) -> None:
    await boot(machine.vm, "wfi\n addi a1, a1, 1\n ebreak")
    vcpu = await vcpu_at(machine.vm, mie=1 << 11)
    machine.start()
    await until(lambda: machine.vm.stats().exits == {"KVM_EXIT_HLT": 1})
    assert machine.ended == {}
    vcpu.interrupt()
    assert isinstance(await ended(machine), ShutdownExit)
    assert (await vcpu.get_regs())["x11"] == 1


async def test_a_loop_that_waits_at_hlt_is_stopped_and_starts_again(machine: Machine) -> None:
    await boot(machine.vm, "wfi\n addi a1, a1, 1\n ebreak")
    vcpu = await vcpu_at(machine.vm)
    machine.start()
    await until(lambda: machine.vm.stats().exits == {"KVM_EXIT_HLT": 1})
    await machine.stop()
    assert machine.ended == {}
    assert (await vcpu.get_regs())["x11"] == 0


@pytest.mark.parametrize("read", ["inb a1, 0(a0)", "ld a1, 0(a0)"])
async def test_a_raw_kick_behind_a_read_ends_no_loop_and_the_read_has_its_answer(machine: Machine, read: str) -> None:
    await boot(machine.vm, f"{read}\n" + SPIN.replace("a1", "a2"))
    vcpu = await vcpu_at(machine.vm, a0=HOLE)
    machine.start(StrayPolicy.ONES)
    await progress(vcpu)
    await machine.vm.kick_all_running_vcpus()
    await machine.vm.resume_all_kicked_vcpus()
    await progress(vcpu)
    assert machine.ended == {}
    assert (await vcpu.get_regs())["x11"] in {0xFF, 2**64 - 1}
