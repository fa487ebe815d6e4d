"""How much work several vCPUs do together, by their number: 1, 2 and 256 on two worker threads."""

from __future__ import annotations

import asyncio
import statistics
from contextlib import suppress
from pathlib import Path

from rich.table import Table

from vmmd.isa.assembler import assemble
from vmmd.isa.engine import EngineName
from vmmd.kvm.errors import KvmError
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.memory.limits import PAGE_SIZE

ROUNDS = 7
WINDOW_S = 0.5
VCPUS = (1, 2, 256)
ENGINES: tuple[EngineName, ...] = ("compiled", "translated")
WARM_INSTRUCTIONS = 1_000_000
WORK = "1: ld a1, 0(a0)\n add a2, a2, a1\n addi a1, a1, 1\n sd a1, 0(a0)\n j 1b"


async def measure() -> Table:
    """Measure each number of vCPUs, in turns, interpreted and translated."""
    table = Table(
        "engine", "vCPUs", "million instructions a second", "ratio", title=f"work together; medians of {ROUNDS}"
    )
    for engine in ENGINES:
        one, two, many = await _speeds(engine)
        table.add_row(engine, "1", f"{one:.0f}", "")
        table.add_row("", "2", f"{two:.0f}", f"{two / one:.2f} of 1")
        table.add_row("", "256", f"{many:.0f}", f"{many / two:.2f} of 2", end_section=True)
    return table


async def _speeds(engine: EngineName) -> list[float]:
    """Give the median speed of each number of vCPUs."""
    limits = Limits(guest_memory_bytes=1 << 30, vms=1 << 10, vcpus_per_vm=max(VCPUS))
    system = System(engine=engine, cache_dir=Path.home() / ".cache" / "vmmd", workers=2, limits=limits)
    speeds: dict[int, list[float]] = {vcpus: [] for vcpus in VCPUS}
    for _ in range(ROUNDS):
        for vcpus in VCPUS:
            speeds[vcpus].append(await _speed(system, vcpus))
    await system.close()
    return [statistics.median(speeds[vcpus]) for vcpus in VCPUS]


async def _speed(system: System, vcpus: int) -> float:
    """Return how many million instructions a second so many vCPUs retire, each on a page of its own."""
    vm = system.create_vm()
    size = (1 + vcpus) * PAGE_SIZE
    base = await vm.map_host_memory(size)
    await vm.set_user_memory_region(0, 0, 0, size, base)
    await vm.write_guest_memory(0, assemble(WORK).code)
    runs = []
    for index in range(vcpus):
        vcpu = await vm.create_vcpu(index)
        await vcpu.set_regs({"a0": (1 + index) * PAGE_SIZE})
        runs.append(asyncio.create_task(vcpu.run()))
    while not all(vcpu.stats().instructions > WARM_INSTRUCTIONS for vcpu in vm.vcpus.values()):
        await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()
    before, start = vm.stats().instructions, loop.time()
    await asyncio.sleep(WINDOW_S)
    speed = (vm.stats().instructions - before) / (loop.time() - start) / 1e6
    await system.destroy_vm(vm.id)
    for run in runs:
        with suppress(KvmError):
            await run
    return speed
