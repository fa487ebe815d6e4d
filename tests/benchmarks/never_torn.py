"""100,000 atomic updates under eight vCPUs that check every value: how long they take, and that nothing was torn."""

from __future__ import annotations

import time
from pathlib import Path

from rich.table import Table

from tests.selftests.never_torn import VCPUS, Outcome, never_torn
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System

UPDATES, ROUNDS = 10_000, 10


async def measure() -> Table:
    """Make them all, in ten VMs with ten seeds."""
    limits = Limits(guest_memory_bytes=1 << 30, vms=4, vcpus_per_vm=VCPUS)
    system = System(engine="translated", cache_dir=Path.home() / ".cache" / "vmmd", workers=2, limits=limits)
    total, start = Outcome(), time.perf_counter()
    for seed in range(ROUNDS):
        outcome = await never_torn(system, UPDATES, seed)
        total.updates += outcome.updates
        total.bits += outcome.bits
        total.plain_changes += outcome.plain_changes
    seconds = time.perf_counter() - start
    await system.close()
    table = Table("atomic updates", "plain changes between", "dirty bits compared", "seconds", "stray, wrong or lost")
    table.title = f"never torn: {VCPUS} vCPUs on two host threads"
    table.add_row(
        f"{total.updates:,}", f"{total.plain_changes:,}", f"{total.bits:,}", f"{seconds:.0f}", "0: any ends it"
    )
    return table
