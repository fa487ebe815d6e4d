"""What a change of slots costs at 100 and at 32,700 slots, beside the kernel's own in the same run; in process."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Awaitable
from pathlib import Path

from rich.table import Table

from tests.benchmarks.kernel import ask_kernel
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

COUNTS = (100, 32_700)
ROUNDS = 2_000
STRIDE = 2 * PAGE_SIZE
COLUMNS = ("fill", "empty", "delete", "create", "move")


async def took_us(call: Awaitable[object]) -> float:
    start = time.perf_counter_ns()
    await call
    return (time.perf_counter_ns() - start) / 1000


async def costs(vm: Vm, count: int) -> list[float]:
    """Microseconds a call: fill and empty as means, delete, create and move as medians."""
    base = await vm.map_host_memory(count * PAGE_SIZE)

    async def change(slot: int, gpa: int, size: int) -> float:
        return await took_us(vm.set_user_memory_region(slot, 0, gpa, size, base + slot * PAGE_SIZE))

    fill = [await change(slot, slot * STRIDE, PAGE_SIZE) for slot in range(count)]
    draw = random.Random(1)
    changes: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        slot = draw.randrange(count)
        gpa = slot * STRIDE
        changes[0].append(await change(slot, gpa, 0))
        changes[1].append(await change(slot, gpa, PAGE_SIZE))
        changes[2].append(await change(slot, gpa + PAGE_SIZE, PAGE_SIZE))
        await change(slot, gpa, PAGE_SIZE)
    empty = [await change(slot, 0, 0) for slot in range(count)]
    return [statistics.mean(fill), statistics.mean(empty), *(statistics.median(times) for times in changes)]


async def measure() -> Table:
    """Measure both, and the ratio."""
    kernel = ask_kernel("kernel_memslots.c", *(str(count) for count in COUNTS))
    note = kernel if isinstance(kernel, str) else "vmmd / kernel"
    table = Table("slots", *COLUMNS, title=f"KVM_SET_USER_MEMORY_REGION, microseconds a call: {note}")
    limits = Limits(guest_memory_bytes=1 << 34, vms=1, vcpus_per_vm=1)
    for index, count in enumerate(COUNTS):
        system = System(engine="compiled", cache_dir=Path.home() / ".cache" / "vmmd", workers=1, limits=limits)
        ours = await costs(system.create_vm(), count)
        await system.close()
        theirs = [float(word) for word in kernel[index][1:]] if not isinstance(kernel, str) else [0.0] * len(COLUMNS)
        cells = [
            f"{our:.1f} / {their:.1f} = {our / their:.2f}" if their else f"{our:.1f}"
            for our, their in zip(ours, theirs, strict=True)
        ]
        table.add_row(f"{count:,}", *cells)
    return table
