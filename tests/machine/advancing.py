"""Cooperative VMs for the tests: guests whose every result depends on the order of turns, and machines to run them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.isa.forced import engine_of
from tests.kvm.guest import CODE, DATA, boot, vcpu_at
from vmmd.isa.assembler import assemble
from vmmd.isa.engine import EngineName
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.machine.machine import Machine, Machines

COUNTER = DATA

# Increments of one word that are not atomic: how many are lost is for the order of turns to decide.
LOST_UPDATES = f"""
    li s0, {COUNTER:#x}
1:  ld a0, 0(s0)
    addi a0, a0, 1
    sd a0, 0(s0)
    addi a1, a1, 1
    j 1b
"""

# vCPU 0 sleeps between timer interrupts and sends an interrupt to vCPU 1 at each. vCPU 1 counts, takes them, and tells
# the console. vCPU 2 does port reads, stray loads, traps and atomics.
EVERYTHING = f"""
    li s0, 0x02004000
    li s1, 0x0200bff8
    li s2, 0x02000004
    li s3, {DATA:#x}
    csrr t0, mhartid
    li t1, 1
    beq t0, t1, one
    bgtu t0, t1, two

    la t1, timer
    csrw mtvec, t1
    li t1, 0x80
    csrw mie, t1
    ld t2, 0(s1)
    addi t2, t2, 700
    sd t2, 0(s0)
    csrsi mstatus, 8
1:  wfi
    addi a1, a1, 1
    j 1b
timer:
    csrr a2, time
    ld t2, 0(s1)
    addi t2, t2, 700
    sd t2, 0(s0)
    li t3, 1
    sw t3, 0(s2)
    mret

one:
    la t1, software
    csrw mtvec, t1
    csrwi mie, 8
    csrsi mstatus, 8
1:  addi a1, a1, 1
    sd a1, 8(s3)
    amoadd.d a4, a1, (s3)
    j 1b
software:
    sw zero, 0(s2)
    addi a2, a2, 1
    csrr a3, time
    li t3, 0x3f8
    outb a2, 0(t3)
    mret

two:
    la t1, trapped
    csrw mtvec, t1
    li s4, 0x100000
1:  inw a1, 0(s4)
    ld a2, 0xffc(s4)
    amoadd.d a3, a2, (s3)
    lr.d a5, (s3)
    sc.d a6, a1, (s3)
    ecall
    j 1b
trapped:
    csrr t0, mepc
    addi t0, t0, 4
    csrw mepc, t0
    mret
""".replace("0xffc(s4)", "0x7fc(s4)")


@asynccontextmanager
async def cooperative(engine: EngineName, cache_dir: Path, seed: int = 1) -> AsyncIterator[Machine]:
    """Give a cooperative machine of a system of its own."""
    limits = Limits(guest_memory_bytes=64 << 20, vms=3, vcpus_per_vm=8)
    system = System(engine=engine_of(engine, cache_dir), cache_dir=cache_dir, workers=2, limits=limits)
    machines = Machines(system)
    try:
        yield machines.create("box", seed)
    finally:
        await machines.close()
        await system.close()


async def load(machine: Machine, source: str, vcpus: int, *, irqchip: bool = False) -> int:
    """Give a machine RAM with a guest in it, and vCPUs that begin it; return the RAM's userspace address."""
    base = await boot(machine.vm, source)
    if irqchip:
        await machine.vm.create_irqchip()
    for vcpu_id in range(vcpus):
        await vcpu_at(machine.vm, vcpu_id)
    return base


async def word(machine: Machine, address: int) -> int:
    """Read eight bytes of guest memory."""
    return int.from_bytes(await machine.vm.read_guest_memory(address, 8), "little")


def address_of(source: str, label: str) -> int:
    """Return where a label of a guest lies."""
    return assemble(source, CODE).symbols[label]
