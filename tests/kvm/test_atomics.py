"""RV64A between vCPUs on two host threads: no update is lost, and what cannot be done atomically is not done."""

from __future__ import annotations

import asyncio
import ctypes
import struct
import threading

import pytest

from tests.isa.machine import bare_machine
from tests.isa.turns import run
from tests.kvm.guest import CODE, DATA, boot, vcpu_at
from vmmd.isa.assembler import assemble
from vmmd.isa.context import Context
from vmmd.isa.engine import CompiledEngine
from vmmd.isa.evaluate import evaluate
from vmmd.kvm.exits import HltExit, InternalErrorExit, ShutdownExit
from vmmd.kvm.vm import Vm
from vmmd.memory.access import read_guest
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY

VCPUS = 3

COUNT_BY_AMO = """
1:  amoadd.d.aqrl zero, a1, (a0)
    addi a2, a2, -1
    bnez a2, 1b
    wfi
"""

COUNT_BY_RESERVATION = """
1:  lr.w t0, (a0)
    add t0, t0, a1
    sc.w t1, t0, (a0)
    bnez t1, 1b
    addi a2, a2, -1
    bnez a2, 1b
    wfi
"""


@pytest.mark.parametrize("source", [COUNT_BY_AMO, COUNT_BY_RESERVATION], ids=["amoadd", "lr and sc"])
async def test_vcpus_that_count_together_lose_no_count(vm: Vm, engine_name: str, source: str) -> None:
    rounds = 200_000 if engine_name == "compiled" else 200
    await boot(vm, source)
    vcpus = [await vcpu_at(vm, index, a0=DATA, a1=index + 1, a2=rounds) for index in range(VCPUS)]
    assert await asyncio.gather(*(vcpu.run() for vcpu in vcpus)) == [HltExit()] * VCPUS
    (total,) = struct.unpack("<Q", await vm.read_guest_memory(DATA, 8))
    assert total == rounds * sum(range(1, VCPUS + 1))


async def test_a_store_between_lr_and_sc_makes_the_sc_fail(vm: Vm) -> None:
    await boot(vm, "lr.d t0, (a0)\nsd a1, 0(a0)\nsc.d t1, a2, (a0)\nwfi")
    vcpu = await vcpu_at(vm, a0=DATA, a1=5, a2=7)
    await vcpu.run()
    assert (await vcpu.get_regs())["x6"] == 1
    assert await vm.read_guest_memory(DATA, 8) == struct.pack("<Q", 5)


@pytest.mark.parametrize(
    "between",
    ["sc.d zero, a2, (a1)", "inb a3, 0(zero)"],
    ids=["any sc", "a return of KVM_RUN"],
)
async def test_a_reservation_ends_with(vm: Vm, between: str) -> None:
    await boot(vm, f"lr.d t0, (a0)\n{between}\nsc.d t1, a2, (a0)\nwfi")
    vcpu = await vcpu_at(vm, a0=DATA, a1=DATA + 8, a2=7)
    while await vcpu.run() != HltExit():
        pass
    assert (await vcpu.get_regs())["x6"] == 1


async def test_a_reservation_ends_with_a_change_of_slots(vm: Vm) -> None:
    base = await boot(vm, "lr.d t0, (a0)\n1: ld t2, 8(a0)\nbeqz t2, 1b\nsc.d t1, a2, (a0)\nwfi")
    vcpu = await vcpu_at(vm, a0=DATA, a2=7)
    run = asyncio.create_task(vcpu.run())
    while vcpu.stats().instructions < 10:
        await asyncio.sleep(0)
    await vm.set_user_memory_region(5, 0, 1 << 30, PAGE_SIZE, base)
    await vm.write_guest_memory(DATA + 8, b"\1")
    assert await run == HltExit()
    assert (await vcpu.get_regs())["x6"] == 1


@pytest.mark.parametrize("access", ["amoswap.d t0, a1, (a0)", "lr.d t0, (a0)", "sc.d t0, a1, (a0)"])
@pytest.mark.parametrize("place", ["a hole", "a read-only slot"])
async def test_an_atomic_without_writable_memory_ends_the_run(vm: Vm, access: str, place: str) -> None:
    base = await boot(vm, access)
    address = 1 << 30
    if place == "a read-only slot":
        await vm.set_user_memory_region(1, KVM_MEM_READONLY, address, PAGE_SIZE, base)
    vcpu = await vcpu_at(vm, a0=address)
    assert await vcpu.run() == InternalErrorExit(1, address)
    assert (await vcpu.get_regs())["pc"] == CODE


@pytest.mark.parametrize(
    ("access", "cause"), [("amoadd.w t0, a1, (a0)", 6), ("lr.w t0, (a0)", 4), ("sc.w t0, a1, (a0)", 6)]
)
async def test_a_misaligned_atomic_traps_before_any_slot_is_looked_up(vm: Vm, access: str, cause: int) -> None:
    await boot(vm, access)
    vcpu = await vcpu_at(vm, a0=(1 << 30) + 2)
    assert await vcpu.run() == ShutdownExit(cause, (1 << 30) + 2)


async def test_an_atomic_marks_its_page_where_it_stores(vm: Vm) -> None:
    await boot(
        vm,
        "lr.d t0, (a0)\nsc.d t1, a1, (a0)\namoor.w t2, a1, (a2)\nsc.d t1, a1, (a3)\nwfi",
        flags=KVM_MEM_LOG_DIRTY_PAGES,
    )
    await vm.get_dirty_log(0)
    vcpu = await vcpu_at(vm, a0=DATA, a1=1, a2=DATA + PAGE_SIZE, a3=DATA + 2 * PAGE_SIZE)
    await vcpu.run()
    pages = int.from_bytes(await vm.get_dirty_log(0), "little")
    assert pages == 0b11 << DATA // PAGE_SIZE


async def test_a_reservation_outlasts_what_is_no_change_of_slots(vm: Vm) -> None:
    base = await boot(vm, "lr.d a1, (a0)\n 1: bnez a5, 1b\n sc.d a2, a3, (a0)\n wfi", flags=KVM_MEM_LOG_DIRTY_PAGES)
    vcpu = await vcpu_at(vm, a0=DATA, a3=7, a5=1)
    run = asyncio.create_task(vcpu.run())
    while vcpu.stats().instructions < 2:
        await asyncio.sleep(0)
    await vm.map_host_memory(PAGE_SIZE)
    await vm.get_dirty_log(0)
    await vm.write_host_memory(base + 0x100, b"x")
    await vcpu.set_regs({"a5": 0})
    assert await run == HltExit()
    assert (await vcpu.get_regs())["x12"] == 0


async def test_atomics_of_the_evaluation_and_of_compiled_code_lose_no_count_between_them() -> None:
    engine = CompiledEngine(None)
    code = assemble(COUNT_BY_AMO).code
    machine = bare_machine(engine, code)
    other = Context(ctypes.c_uint64(machine.view.number), 1, lambda: 0)
    other.take_view(machine.view)
    for context, rounds in ((machine.context, 3_000_000), (other, 3_000)):
        context.record.x[10], context.record.x[11], context.record.x[12] = DATA, 1, rounds
        context.record.budget = 1 << 40
    thread = threading.Thread(target=run, args=(engine, machine.context, machine.view))
    thread.start()
    other.record.pc = 0
    while evaluate(other, machine.view, engine) is None:
        pass
    thread.join()
    assert read_guest(machine.view, DATA, 8) == (3_003_000).to_bytes(8, "little")
