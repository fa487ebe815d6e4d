"""How late the event loop comes while guests run code that becomes hot all the time, and regions are made of it.

Two vCPUs run through hundreds of different loops, so that the translating process has always something to do. Beside
it stands the interpreter's loop alone, on the same guests.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from pathlib import Path

from rich.table import Table

from vmmd.isa.assembler import assemble
from vmmd.isa.engine import EngineName
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System

RUNS = 5
LOOPS, ROUNDS = 300, 120_000
TICK_S = 0.002
ORIGIN, GUEST_BYTES = 0x8000_0000, 1 << 20


def guest(seed: int) -> bytes:
    """Return a guest of so many loops, none like another."""
    draw = random.Random(seed)
    lines = []
    for loop in range(LOOPS):
        body = [f"addi a{draw.randrange(1, 6)}, a{draw.randrange(1, 6)}, {draw.randrange(1, 2000)}" for _ in range(12)]
        lines += [f"li a0, {ROUNDS}", f"loop{loop}:", *body, "ld a6, 0(s0)", "addi a0, a0, -1", f"bnez a0, loop{loop}"]
    return assemble("\n".join([*lines, "wfi"]), ORIGIN).code


async def measure() -> Table:
    """Measure both engines, in turns."""
    table = Table("engine", "late p50 ms", "p99 ms", "regions made", "guests' seconds")
    table.title = f"the event loop while regions are made: median of {RUNS} runs, and their range"
    engines: tuple[EngineName, ...] = ("compiled", "translated")
    found: dict[str, list[tuple[float, float, int, float]]] = {name: [] for name in engines}
    for run in range(RUNS):
        for name in engines:
            found[name].append(await _run(name, run))
    for shown, runs in found.items():
        p50, p99, regions, seconds = (list(column) for column in zip(*runs, strict=True))
        table.add_row(
            shown,
            *(f"{statistics.median(lags):.2f} ({min(lags):.2f}-{max(lags):.2f})" for lags in (p50, p99)),
            f"{statistics.median(regions):.0f}",
            f"{statistics.median(seconds):.1f}",
        )
    return table


async def _run(engine: EngineName, seed: int) -> tuple[float, float, int, float]:
    limits = Limits(guest_memory_bytes=1 << 30, vms=4, vcpus_per_vm=1)
    system = System(engine=engine, cache_dir=Path.home() / ".cache" / "vmmd", workers=2, limits=limits)
    runs = []
    start = time.perf_counter()
    for number in range(2):
        vm = system.create_vm()
        base = await vm.map_host_memory(GUEST_BYTES)
        await vm.set_user_memory_region(0, 0, ORIGIN, GUEST_BYTES, base)
        await vm.write_guest_memory(ORIGIN, guest(2 * seed + number))
        vcpu = await vm.create_vcpu(0)
        await vcpu.set_regs({"pc": ORIGIN, "s0": ORIGIN})
        runs.append(asyncio.create_task(vcpu.run()))
    lags = []
    while not all(run.done() for run in runs):
        due = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        lags.append((time.perf_counter() - due) * 1e3)
    seconds = time.perf_counter() - start
    made = system.translations.translated
    await system.close()
    cuts = statistics.quantiles(lags, n=100)
    return cuts[49], cuts[98], made, seconds
