"""Changes of memslots under running vCPUs without a hold: what no vCPU may notice, 100,000 changes long.

`python -m tests.benchmarks.stress_without_a_hold [CHANGES]` makes them all and prints a table; a scenario that notices
something ends it with an AssertionError.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.selftests.old_places import VCPUS, code_replaced, moved, replaced, slid
from tests.selftests.unnoticed import dirty_bits, unrelated
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm

CHANGES = 100_000
LIMITS = Limits(guest_memory_bytes=1 << 30, vms=8, vcpus_per_vm=8)

Scenario = Callable[[System, int], Awaitable[Vm]]

SCENARIOS: dict[str, tuple[Scenario, float]] = {
    "memory is replaced": (replaced, 0.30),
    "slots exchange places": (moved, 0.21),
    "a slot moves over itself": (slid, 0.08),
    "code is replaced": (code_replaced, 0.09),
    "slots change beside": (unrelated, 0.20),
    "dirty bits": (dirty_bits, 0.12),
}
"""Each scenario, and its share of the changes."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a scenario came to. `instructions`: that the guests retired meanwhile."""

    changes: int
    seconds: float
    instructions: int
    exits: int


async def stress(system: System, scenario: Scenario, changes: int) -> Figures:
    """Run a scenario in a VM of its own."""
    start = time.perf_counter()
    vm = await scenario(system, changes)
    seconds, stats = time.perf_counter() - start, vm.stats()
    made = vm.generation
    await system.destroy_vm(vm.id)
    return Figures(made, seconds, stats.instructions, stats.exits.total())


async def measure(changes: int = CHANGES) -> Table:
    """Make so many changes in all, and tell how long they took and what the guests did meanwhile."""
    columns = ("scenario", "changes", "seconds", "µs a change", "million guest instructions", "exits")
    table = Table(*columns, title=f"changes without a hold under {VCPUS} vCPUs on two host threads")
    system = System(engine="compiled", cache_dir=Path.home() / ".cache" / "vmmd", workers=2, limits=LIMITS)
    total = 0
    for name, (scenario, part) in SCENARIOS.items():
        made = await stress(system, scenario, round(changes * part))
        total += made.changes
        per_change = made.seconds / made.changes * 1e6
        cells = (f"{made.changes:,}", f"{made.seconds:.1f}", f"{per_change:.0f}", f"{made.instructions / 1e6:,.0f}")
        table.add_row(name, *cells, f"{made.exits:,}")
    await system.close()
    table.caption = f"{total:,} changes; no old place was read, written or executed, no bit lost or invented"
    return table


def main() -> None:
    """Make as many changes as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stress_without_a_hold", description=__doc__)
    parser.add_argument("changes", nargs="?", type=int, default=CHANGES, help=f"how many; by default {CHANGES:,}")
    Console().print(asyncio.run(measure(parser.parse_args().changes)))


if __name__ == "__main__":
    main()
