"""Faults at every place of an atomic update, as a table: `python -m tests.faults`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.inject import FAULTS
from tests.faults.updates import UPDATES, at_every_wait, behind_every_call
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System


async def _measure() -> Table:
    limits = Limits(guest_memory_bytes=1 << 26, vms=4, vcpus_per_vm=4)
    table = Table("update", "fault", "places", "old map after it", "new map after it", title="faults in an update")
    for engine in ("compiled", "evaluated"):
        system = System(engine=engine, cache_dir=Path.home() / ".cache" / "vmmd", workers=2, limits=limits)
        rows = [await at_every_wait(system, update, fault) for update in UPDATES for fault in FAULTS]
        for row in [*rows, await behind_every_call(system)]:
            table.add_row(f"{row.update}, {engine}", row.fault, *map(str, (row.positions, row.old, row.new)))
        await system.close()
    return table


if __name__ == "__main__":
    Console().print(asyncio.run(_measure()))
