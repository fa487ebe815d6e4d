"""What many slots and dirty logging cost a guest, and how long a log takes to fetch: ratios within one run."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

from rich.table import Table

from vmmd.isa.assembler import assemble
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

RUNS = 5
DATA = 1 << 32
CODE = 0x1000

FEW_SLOTS = """
    # Loads from three slots by turns.
1:  ld a3, 0(a0)
    ld a4, 0(a1)
    ld a5, 0(a2)
    addi s0, s0, -1
    bnez s0, 1b
    wfi
"""

ALL_SLOTS = """
    # A load from every slot, one after another; a1 from one to the next, a2 the end.
2:  mv a3, a0
1:  ld a4, 0(a3)
    add a3, a3, a1
    addi s0, s0, -1
    beqz s0, 3f
    bltu a3, a2, 1b
    j 2b
3:  wfi
"""

SORT = """
    # Fills a1 words at a0 with a linear congruence, and sorts them by insertion into runs of 64.
    li t6, 0x5851f42d4c957f2d
    mv t0, a0
    mv t1, a1
1:  mul t5, t5, t6
    addi t5, t5, 1023
    sd t5, 0(t0)
    addi t0, t0, 8
    addi t1, t1, -1
    bnez t1, 1b
    mv s1, a0
    srli s2, a1, 6
2:  addi t0, s1, 8
    addi t4, s1, 512
3:  ld t1, 0(t0)
    mv t2, t0
4:  beq t2, s1, 5f
    ld t3, -8(t2)
    bgeu t1, t3, 5f
    sd t3, 0(t2)
    addi t2, t2, -8
    j 4b
5:  sd t1, 0(t2)
    addi t0, t0, 8
    bltu t0, t4, 3b
    mv s1, t4
    addi s2, s2, -1
    bnez s2, 2b
    addi s0, s0, -1
    bnez s0, 2f
    wfi
2:  mv t0, a0
    mv t1, a1
    j 1b
"""

STORES = """
    # Nothing but stores, over a1 words at a0.
2:  mv t0, a0
    slli t1, a1, 3
    add t1, t1, a0
1:  sd t0, 0(t0)
    sd t0, 8(t0)
    sd t0, 16(t0)
    sd t0, 24(t0)
    addi t0, t0, 32
    bltu t0, t1, 1b
    addi s0, s0, -1
    bnez s0, 2b
    wfi
"""


async def machine(system: System, source: str, slots: int, *, pages: int = 1, flags: int = 0) -> tuple[Vm, Vcpu]:
    """A VM with code, and `slots` data slots of so many pages each, with a page's hole between them."""
    vm = system.create_vm()
    code = await vm.map_host_memory(PAGE_SIZE)
    await vm.set_user_memory_region(32_763, 0, CODE, PAGE_SIZE, code)
    await vm.write_guest_memory(CODE, assemble(source, CODE).code)
    memory = await vm.map_host_memory(slots * pages * PAGE_SIZE)
    for slot in range(slots):
        gpa = DATA + slot * (pages + 1) * PAGE_SIZE
        await vm.set_user_memory_region(slot, flags, gpa, pages * PAGE_SIZE, memory + slot * pages * PAGE_SIZE)
    return vm, await vm.create_vcpu(0)


async def speed(vcpu: Vcpu, regs: dict[str, int]) -> float:
    """Million instructions a second of a program that ends in wfi, at the median."""
    speeds = []
    for _ in range(RUNS):
        await vcpu.set_regs({"pc": CODE, **regs})
        before, start = vcpu.stats().instructions, time.perf_counter()
        await vcpu.run()
        speeds.append((vcpu.stats().instructions - before) / (time.perf_counter() - start) / 1e6)
    return statistics.median(speeds)


async def slots_rows(system: System, table: Table) -> None:
    """How fast a guest is with 10 and with 32,000 slots: in a few of them, and jumping among all."""
    figures: dict[int, tuple[float, float]] = {}
    for count in (10, 32_000):
        stride = 2 * PAGE_SIZE
        regs = {"a0": DATA, "a1": DATA + count // 2 * stride, "a2": DATA + (count - 1) * stride, "s0": 5_000_000}
        vm, vcpu = await machine(system, FEW_SLOTS, count)
        few = await speed(vcpu, regs)
        await vm.write_guest_memory(CODE, assemble(ALL_SLOTS, CODE).code)
        every = await speed(vcpu, {"a0": DATA, "a1": stride, "a2": DATA + count * stride, "s0": 2_000_000})
        await system.destroy_vm(vm.id)
        figures[count] = (few, every)
    for row, name in enumerate(("loads from three slots", "a load from each slot in turn")):
        small, large = figures[10][row], figures[32_000][row]
        table.add_row(f"{name}: 10 slots, 32,000", f"{small:.0f}, {large:.0f} MIPS", f"{large / small:.2f}")


async def logging_rows(system: System, table: Table) -> None:
    """How fast a guest is in a slot that is not logged, and in one that is."""
    for name, source, words, rounds in (("a sort", SORT, 8192, 20), ("stores alone", STORES, 65_536, 200)):
        speeds = []
        for flags in (0, KVM_MEM_LOG_DIRTY_PAGES):
            vm, vcpu = await machine(system, source, 1, pages=words * 8 // PAGE_SIZE, flags=flags)
            speeds.append(await speed(vcpu, {"a0": DATA, "a1": words, "s0": rounds}))
            await system.destroy_vm(vm.id)
        cell = f"{speeds[0]:.0f}, {speeds[1]:.0f} MIPS"
        table.add_row(f"{name}: not logged, logged", cell, f"{speeds[1] / speeds[0]:.2f}")


async def fetch_row(system: System, table: Table) -> None:
    """How long KVM_GET_DIRTY_LOG of a slot of 1 GiB takes while a vCPU stores to it, the wait for it included."""
    pages = (1 << 30) // PAGE_SIZE
    vm, vcpu = await machine(system, STORES, 1, pages=pages, flags=KVM_MEM_LOG_DIRTY_PAGES)
    await vcpu.set_regs({"pc": CODE, "a0": DATA, "a1": 4096, "s0": 1 << 40})
    run = asyncio.create_task(vcpu.run())
    while not vcpu.stats().instructions:
        await asyncio.sleep(0)
    times = []
    for _ in range(500):
        start = time.perf_counter_ns()
        await vm.get_dirty_log(0)
        times.append((time.perf_counter_ns() - start) / 1000)
        await asyncio.sleep(0)
    vcpu.signal()
    await asyncio.gather(run, return_exceptions=True)
    times.sort()
    median, late = times[len(times) // 2], times[-len(times) // 100]
    table.add_row("GET_DIRTY_LOG of 1 GiB under a storing vCPU", f"p50 {median:.0f}, p99 {late:.0f} µs", "")


async def measure() -> Table:
    """Measure all of it."""
    table = Table("what", "figures", "ratio", title="many slots, and logging")
    limits = Limits(guest_memory_bytes=1 << 34, vms=2, vcpus_per_vm=1)
    system = System(engine="compiled", cache_dir=Path.home() / ".cache" / "vmmd", workers=1, limits=limits)
    for rows in (slots_rows, logging_rows, fetch_row):
        await rows(system, table)
    await system.close()
    return table
