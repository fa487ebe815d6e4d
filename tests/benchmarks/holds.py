"""How long a kick takes by the number of running vCPUs, with a hold and raw, beside the kernel's own; in process.

The kernel's is a signal to each vCPU's thread and a wait until all are out of KVM_RUN, which is what a raw kick does. A
hold's kick is over when no vCPU is in guest mode. Each figure is the median of five runs, and behind it is their range.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.benchmarks.kernel import ask_kernel
from vmmd.isa.assembler import assemble
from vmmd.kvm.errors import KvmError
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

RUNS = 5
ROUNDS = 150
VCPUS = (1, 2, 4, 16, 64, 256)
KERNEL_VCPUS = (1, 2, 4, 16, 64)
"""With 256 threads on a few cores the kernel takes minutes."""

BETWEEN_S = 0.001
"""The vCPUs run for a while between two rounds, as they would."""

CODE = 0
DATA = 0x100_0000
DATA_SIZE = 4 * PAGE_SIZE
LINE = 64
"""A vCPU's line of memory: asked (8 bytes), the time at which it answered (8 bytes), a counter."""

SOURCE = """
    # Counts in its line at a0; where it is asked, it leaves the time in there, and takes the question back.
1:  ld a1, 16(a0)
    addi a1, a1, 1
    sd a1, 16(a0)
    ld a2, 0(a0)
    beqz a2, 1b
    rdtime a3
    sd a3, 8(a0)
    sd zero, 0(a0)
    j 1b
"""

Figures = dict[str, list[float]]
"""By what was measured: microseconds, a round each."""


@dataclass(frozen=True, slots=True)
class Running:
    """A VM whose vCPUs run until the system is closed. `data`: the userspace address of what slots 0 and 1 give."""

    vm: Vm
    data: int
    loops: Sequence[asyncio.Task[None]]


async def start(system: System, vcpus: int) -> Running:
    """Make a VM and let it run; slots 0 and 1 are the halves of its data, slot 2 its code."""
    vm = system.create_vm()
    code = await vm.map_host_memory(PAGE_SIZE)
    await vm.set_user_memory_region(2, 0, CODE, PAGE_SIZE, code)
    data, half = await vm.map_host_memory(DATA_SIZE), DATA_SIZE // 2
    await vm.set_user_memory_region(0, 0, DATA, half, data)
    await vm.set_user_memory_region(1, 0, DATA + half, half, data + half)
    await vm.write_guest_memory(CODE, assemble(SOURCE).code)
    loops = []
    for index in range(vcpus):
        vcpu = await vm.create_vcpu(index)
        await vcpu.set_regs({"pc": CODE, "a0": DATA + index * LINE})
        loops.append(asyncio.create_task(_keep_running(vcpu)))
    while not vm.stats().instructions:
        await asyncio.sleep(0)
    return Running(vm, data, loops)


async def _keep_running(vcpu: Vcpu) -> None:
    """Call KVM_RUN again behind every raw kick, until the VM goes."""
    while True:
        try:
            await vcpu.resumed()
            await vcpu.run()
        except KvmError as error:
            if not error.data.get("kicked"):
                return


async def in_a_run(vcpus: int, rounds: Callable[[Running], Coroutine[Any, Any, Figures]]) -> Figures:
    """Measure under so many vCPUs, in a system of its own."""
    limits = Limits(guest_memory_bytes=1 << 30, vms=1, vcpus_per_vm=max(VCPUS))
    system = System(engine="translated", cache_dir=Path.home() / ".cache" / "vmmd", workers=None, limits=limits)
    running = await start(system, vcpus)
    figures = await rounds(running)
    await system.close()
    await asyncio.gather(*running.loops)
    return figures


def p50_and_p99(runs: Sequence[Sequence[float]]) -> list[str]:
    """Return a cell for the medians of several runs and one for their 99th percentiles."""
    halves = [statistics.median(run) for run in runs]
    tails = [sorted(run)[-1 - len(run) // 100] for run in runs]
    return [cell(halves), cell(tails)]


def cell(figures: Sequence[float]) -> str:
    """Return the median, and the range behind it; nothing where there are no figures."""
    if not figures:
        return ""
    return f"{statistics.median(figures):.0f} ({min(figures):.0f}-{max(figures):.0f})"


def kernel_figures() -> dict[int, list[list[float]]] | str:
    """Return by the number of vCPUs, a list each: kick p50, p99, next p50, p99 of each run; or why there are none."""
    figures: dict[int, list[list[float]]] = {}
    for _ in range(RUNS):
        lines = ask_kernel("kernel_kick.c", *(str(vcpus) for vcpus in KERNEL_VCPUS))
        if isinstance(lines, str):
            return lines
        for vcpus, *words in lines:
            columns = figures.setdefault(int(vcpus), [[] for _ in words])
            for column, word in zip(columns, words, strict=True):
                column.append(float(word))
    return figures


def kernel_cells(kernel: dict[int, list[list[float]]] | str, vcpus: int, first: int) -> list[str]:
    """Return the two cells from column `first` on, empty where the kernel was not asked."""
    if isinstance(kernel, str) or vcpus not in kernel:
        return ["", ""]
    return [cell(column) for column in kernel[vcpus][first : first + 2]]


async def _kicks(running: Running) -> Figures:
    vm = running.vm
    figures: Figures = {"hold": [], "raw": []}
    for turn in range(ROUNDS):
        name = str(turn)
        figures["hold"].append((await vm.kick_all_running_vcpus(name, wait_ms=60_000)).kick_ns / 1000)
        await vm.resume_all_kicked_vcpus(name)
        await asyncio.sleep(BETWEEN_S)
        figures["raw"].append((await vm.kick_all_running_vcpus()).kick_ns / 1000)
        await vm.resume_all_kicked_vcpus()
        await asyncio.sleep(BETWEEN_S)
    return figures


async def measure() -> Table:
    """Measure kicks under 1 to 256 running vCPUs after those of the kernel."""
    kernel = kernel_figures()
    note = f"the kernel was {kernel}" if isinstance(kernel, str) else f"median of {RUNS} runs, and their range"
    columns = ("vCPUs", "hold p50", "p99", "raw kick p50", "p99", "kernel p50", "p99")
    table = Table(*columns, title="a kick, microseconds, in process", caption=note)
    for column in table.columns:
        column.no_wrap = True
    for vcpus in VCPUS:
        runs = [await in_a_run(vcpus, _kicks) for _ in range(RUNS)]
        cells = [text for kind in ("hold", "raw") for text in p50_and_p99([run[kind] for run in runs])]
        table.add_row(str(vcpus), *cells, *kernel_cells(kernel, vcpus, 0))
    return table
