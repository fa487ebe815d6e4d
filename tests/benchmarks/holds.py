"""How long a kick takes, and how long the pause of an atomic merge is, by the number of running vCPUs; in process."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

from rich.table import Table

from vmmd.isa.assembler import assemble
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

ROUNDS = 300
VCPUS = (1, 2, 4, 16, 64, 256)
DATA = 0x100_0000


async def running_vm(system: System, vcpus: int) -> tuple[Vm, int, list[asyncio.Task[object]]]:
    """A VM whose vCPUs all count in a page of their own, the userspace address of these pages, and the runs."""
    vm = system.create_vm()
    code = await vm.map_host_memory(PAGE_SIZE)
    await vm.set_user_memory_region(100, 0, 0, PAGE_SIZE, code)
    pages = await vm.map_host_memory(2 * vcpus * PAGE_SIZE)
    await vm.set_user_memory_region(0, 0, DATA, vcpus * PAGE_SIZE, pages)
    await vm.set_user_memory_region(1, 0, DATA + vcpus * PAGE_SIZE, vcpus * PAGE_SIZE, pages + vcpus * PAGE_SIZE)
    await vm.write_guest_memory(0, assemble("1: ld a1, 0(a0)\n addi a1, a1, 1\n sd a1, 0(a0)\n j 1b").code)
    runs: list[asyncio.Task[object]] = []
    for index in range(vcpus):
        vcpu = await vm.create_vcpu(index)
        await vcpu.set_regs({"pc": 0, "a0": DATA + index * PAGE_SIZE})
        runs.append(asyncio.create_task(vcpu.run()))
    while not vm.stats().instructions:
        await asyncio.sleep(0)
    return vm, pages, runs


async def merge_and_split(vm: Vm, pages: int, size: int, name: str) -> tuple[int, int]:
    """Merge the two slots of data inside a hold, and split them in another; return the merge's kick and pause."""
    kick = await vm.kick_all_running_vcpus(name, wait_ms=60_000)
    await vm.set_user_memory_region(0, 0, 0, 0, 0, hold=name)
    await vm.set_user_memory_region(1, 0, 0, 0, 0, hold=name)
    await vm.set_user_memory_region(0, 0, DATA, 2 * size, pages, hold=name)
    resume = await vm.resume_all_kicked_vcpus(name)
    back = f"{name} back"
    await vm.kick_all_running_vcpus(back, wait_ms=60_000)
    await vm.set_user_memory_region(0, 0, 0, 0, 0, hold=back)
    await vm.set_user_memory_region(0, 0, DATA, size, pages, hold=back)
    await vm.set_user_memory_region(1, 0, DATA + size, size, pages + size, hold=back)
    await vm.resume_all_kicked_vcpus(back)
    return kick.kick_ns, resume.pause_ns


async def measure() -> Table:
    """Measure kicks and pauses under 1 to 256 running vCPUs."""
    table = Table("vCPUs", "kick p50", "kick p99", "pause of a merge p50", "p99", title="microseconds, in process")
    limits = Limits(guest_memory_bytes=1 << 30, vms=1, vcpus_per_vm=256)
    cache = Path.home() / ".cache" / "vmmd"
    for vcpus in VCPUS:
        system = System(engine="compiled", cache_dir=cache, workers=None, limits=limits)
        vm, pages, runs = await running_vm(system, vcpus)
        figures = []
        for turn in range(ROUNDS):
            figures.append(await merge_and_split(vm, pages, vcpus * PAGE_SIZE, f"{turn}"))
            # The vCPUs run a while between two updates, as they would.
            await asyncio.sleep(0.001)
        await system.close()
        await asyncio.gather(*runs, return_exceptions=True)
        columns = [sorted(figure[index] / 1000 for figure in figures) for index in (0, 1)]
        cells = [f"{value:.0f}" for column in columns for value in (statistics.median(column), column[-ROUNDS // 100])]
        table.add_row(str(vcpus), *cells)
    return table
