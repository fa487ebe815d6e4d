"""`vmmctl top`: what every VM is doing, as rates over an interval."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType
from rich.live import Live

from ..errors import BadVm
from ..wire import calls
from .screen import Screen, table
from .session import asks

if TYPE_CHECKING:
    from vmmd.api.system import VmInfo
    from vmmd.api.vcpus import StatsResult

    from ..connection import Client


@dataclass(frozen=True, slots=True)
class Sample:
    """All VMs at one moment.

    Attributes:
        time_ns: when, by a clock that only goes forward.
        vms: what was listed, by the VMs' ids.
        stats: their counters; without those of VMs that went meanwhile.
    """

    time_ns: int
    vms: dict[str, VmInfo]
    stats: dict[str, StatsResult]


@click.command()
@click.option("--once", is_flag=True, help="Show one interval, and end.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.01),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long each interval is.",
)
@asks
async def top(vmmd: Client, screen: Screen, once: bool, interval_s: float) -> None:
    """Show what every VM does: instructions, exits, stray exits and kicks a second. Ctrl-C ends it.

    JSON: a line an interval, {"interval_ns", "vms": [{"vm", "name", "state", "vcpus", "generation",
    "million_instructions_per_s", "exits_per_s", "stray_exits_per_s", "kicks_per_s"}]}
    """
    before = await _sample(vmmd)
    with contextlib.ExitStack() as stack:
        live = None
        if not once and not screen.as_json and sys.stdout.isatty():
            live = stack.enter_context(Live(console=screen.console, auto_refresh=False))
        while True:
            await asyncio.sleep(interval_s)
            now = await _sample(vmmd)
            value = rates(before, now)
            if live is not None:
                live.update(_table(value), refresh=True)
            else:
                screen.give(value, _table(value))
                sys.stdout.flush()
            if once:
                return
            before = now


def rates(before: Sample, now: Sample) -> dict[str, Any]:
    """Give what each VM did between two samples, in JSON's types; a VM that is new counts from its creation."""
    elapsed_s = (now.time_ns - before.time_ns) / 1e9
    rows = []
    for vm, stats in now.stats.items():
        old = before.stats.get(vm)
        info = now.vms[vm]
        exits = sum(stats.exits.values()) - (sum(old.exits.values()) if old else 0)
        rows.append(
            {
                "vm": vm,
                "name": info.name,
                "state": info.state,
                "vcpus": len(info.vcpus),
                "generation": info.generation,
                "million_instructions_per_s": round(
                    (stats.instructions - (old.instructions if old else 0)) / elapsed_s / 1e6, 3
                ),
                "exits_per_s": round(exits / elapsed_s, 1),
                "stray_exits_per_s": round((stats.stray_exits - (old.stray_exits if old else 0)) / elapsed_s, 1),
                "kicks_per_s": round((stats.kicks - (old.kicks if old else 0)) / elapsed_s, 1),
            }
        )
    return {"interval_ns": now.time_ns - before.time_ns, "vms": rows}


async def _sample(vmmd: Client) -> Sample:
    vms = {info.vm: info for info in await vmmd.kvm.list_vms()}
    async with vmmd.batch() as batch:
        replies = {vm: batch.add(calls.get_vm_stats(vm)) for vm in vms}
    stats = {vm: reply.result() for vm, reply in replies.items() if not isinstance(reply.error, BadVm)}
    return Sample(time.monotonic_ns(), vms, stats)


def _table(value: dict[str, Any]) -> RenderableType:
    columns = ("vm", "name", "state", ">vcpus", ">generation", ">MIPS", ">exits/s", ">stray/s", ">kicks/s")
    return table(
        columns,
        [
            (
                row["vm"],
                row["name"] or "",
                row["state"],
                row["vcpus"],
                row["generation"],
                f"{row['million_instructions_per_s']:,.1f}",
                f"{row['exits_per_s']:,.1f}",
                f"{row['stray_exits_per_s']:,.1f}",
                f"{row['kicks_per_s']:,.1f}",
            )
            for row in value["vms"]
        ],
    )
