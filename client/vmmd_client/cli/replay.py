"""`vmmctl replay`: a recorded VMM's memory map updates under running vCPUs, as it made them and atomic.

It starts a daemon of its own, or goes to one that is there, lays out the recorded map under vCPUs that check every
value they read, and replays the updates round after round: plain, one call after another, then atomic. Without a
recording it replays the one that comes with the package, QEMU 7.2 booting. The last line for each recording is one JSON
object; the exit status is 0 only if atomic shows nothing and plain shows something.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..audit.events import TraceError
from ..audit.recording import audit_file
from ..connection import Client, connect
from ..errors import TransportError, VmmdError
from ..local_daemon import local_daemon
from ..replay import report
from ..replay.layout import LayoutError
from ..replay.replay import Mode, Pace, Replay, ReplayError, Score, Tally
from ..replay.timeline import trace_update
from .audit import a_number
from .session import run

if TYPE_CHECKING:
    from ..audit.audit import VmFindings
    from ..audit.updates import Update
    from ..vm import Vm

SHIPPED_TRACE = "qemu-7.2-pc-boot.strace.gz"
"""The recording that comes with the package: QEMU 7.2 boots a `pc` machine with 256 MiB and two vCPUs."""

MAX_VCPUS = 64
"""More walkers than this have too few pages each to themselves."""

_PLAIN_WIDTH = 110
_MODES: tuple[Mode, ...] = ("plain", "atomic")


@dataclass(frozen=True, slots=True)
class _Options:
    """How a recording is to be replayed."""

    updates: int
    vcpus: int
    vm: int | None
    url: str | None
    pace: Pace


@click.command()
@click.argument("traces", nargs=-1, metavar="[TRACE]...")
@click.option("--updates", type=click.IntRange(1, 1_000_000), help="Updates to count each way (1000, or one round).")
@click.option("--vcpus", type=click.IntRange(1, MAX_VCPUS), default=4, show_default=True, help="vCPUs that hammer.")
@click.option("--vm", type=click.IntRange(0), help="Which VM of the recording, from 0 (the one with most to replay).")
@click.option(
    "--pace",
    type=click.Choice(["fast", "recorded"]),
    default="fast",
    show_default=True,
    help="As fast as it goes, or with the recorded times between calls; then one round is the default.",
)
@click.option(
    "--stretch",
    type=click.FloatRange(0, 1000),
    callback=a_number,
    help="Multiply the recorded times between an update's calls: its holes grow or shrink. Needs --pace recorded.",
)
@click.option("--url", help="A daemon that is there, unix:///path or http://… with VMMD_TOKEN (one of its own).")
@click.option("--json", "--json-only", "json_only", is_flag=True, help="Print the last line alone: a JSON object.")
def replay(
    traces: tuple[str, ...],
    updates: int | None,
    vcpus: int,
    vm: int | None,
    pace: str,
    stretch: float | None,
    url: str | None,
    json_only: bool,
) -> None:
    """Replay a recorded VMM's memory map updates under running vCPUs, plain and atomic.

    TRACE is what `vmmctl audit` reads; without one, QEMU 7.2 booting is replayed. Exit status: 0 if plain updates were
    noticed and atomic ones were not, 1 if not so or if it cannot be replayed, 2 if a recording cannot be read.
    """
    if stretch is not None and pace != "recorded":
        raise click.UsageError("--stretch multiplies recorded times: add --pace recorded")
    console = Console(highlight=False, markup=False, quiet=json_only)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    recorded = pace == "recorded"
    options = _Options(
        updates=updates or (1 if recorded else 1000),
        vcpus=vcpus,
        vm=vm,
        url=url,
        pace=Pace(recorded=recorded, stretch=1.0 if stretch is None else stretch),
    )
    click.get_current_context().exit(max(_replay_one(name, options, console) for name in traces or (None,)))


def _replay_one(name: str | None, options: _Options, console: Console) -> int:
    """Replay one recording and give its exit status."""
    try:
        found = _updates(name, options.vm)
        plain, atomic = run(_replay(found, options, console))
    except TraceError as error:
        sys.stderr.write(f"replay: {error}\n")
        return 2
    except (VmmdError, ReplayError, LayoutError) as error:
        sys.stderr.write(f"replay: {name or SHIPPED_TRACE}: {error}\n")
        return 1
    complaints = _complaints(plain, atomic)
    for complaint in complaints:
        sys.stderr.write(f"replay: {complaint}\n")
    sys.stdout.write(report.machine_line(plain, atomic, name) + "\n")
    return 1 if complaints else 0


def _updates(name: str | None, number: int | None) -> Sequence[Update]:
    """Read a recording and give the updates of the VM that is to be replayed."""
    if name is None:
        with resources.as_file(resources.files("vmmd_client") / "data" / SHIPPED_TRACE) as path:
            return audit_file(str(path)).findings.vms[0].updates
    vms = audit_file(name).findings.vms
    if not vms:
        raise TraceError(f"{name} holds no VM")
    if number is not None and number >= len(vms):
        raise TraceError(f"{name} holds {len(vms)} VMs, numbered from 0, and --vm asks for number {number}")

    def weight(found: VmFindings) -> int:
        return found.needs_hold

    return (max(vms, key=weight) if number is None else vms[number]).updates


async def _replay(found: Sequence[Update], options: _Options, console: Console) -> tuple[Tally, Tally]:
    async with _client(options.url) as vmmd, _a_vm(vmmd) as vm:
        info = await vmmd.daemon.get_info()
        replay = await Replay.set_up(vmmd, vm, found, vcpus=options.vcpus)
        console.print(
            f"vmmd {info.version}, engine {info.engine}: {options.vcpus} vCPUs walk over a recorded map; "
            f"{replay.counted_per_round} of its {len(found)} updates delete and create memory at the same place."
        )
        if not replay.counted_per_round:
            raise LayoutError("no update deletes and creates memory at the same place; there is nothing to compare")
        tallies: dict[Mode, Tally] = {}
        # Rounds are replayed as a whole, so more may count than were asked for.
        total = -(-options.updates // replay.counted_per_round) * replay.counted_per_round
        with _progress(console, total) as advance:
            for mode in _MODES:
                tallies[mode] = await replay.run(mode, options.updates, partial(advance, mode), options.pace)
        number, score = _worth_a_picture(found, replay.scores)
        pictures = []
        for mode in _MODES:
            await replay.go_on_to(score)
            picture = await trace_update(vmmd, vm, range(replay.vcpus), score.regions, score.holes, mode)
            pictures.append(picture)
            await replay.wind_back()
    exposed = ", the first that was exposed" if found[number - 1].exposed else ", the first that needs a hold"
    console.print(f"Update {number} of the recording's {len(found)}{exposed}, step by step:")
    for picture in pictures:
        console.print(report.picture(picture, console.width))
    console.print(report.legend())
    console.print(report.table(tallies["plain"], tallies["atomic"]))
    return tallies["plain"], tallies["atomic"]


@contextlib.asynccontextmanager
async def _client(url: str | None) -> AsyncIterator[Client]:
    """Give a client of the daemon that was named, or of one that lives as long as the block."""
    async with contextlib.AsyncExitStack() as stack:
        there = await stack.enter_async_context(local_daemon()) if url is None else url
        yield await stack.enter_async_context(connect(there, token=os.environ.get("VMMD_TOKEN")))


@contextlib.asynccontextmanager
async def _a_vm(vmmd: Client) -> AsyncIterator[Vm]:
    """Give a VM that is gone behind the block, however that ends: the daemon may be others' too."""
    vm = await vmmd.kvm.create_vm("replay")
    try:
        yield vm
    finally:
        with contextlib.suppress(TransportError):
            await vm.destroy()


def _worth_a_picture(found: Sequence[Update], scores: Sequence[Score]) -> tuple[int, Score]:
    """Choose the update to draw, with its number in the recording: an exposed one, or else any that counts."""
    number_of = {step.call.line: number for number, update in enumerate(found, 1) for step in update.changes}
    counted = [(number_of[score.line], score) for score in scores if score.counts]
    return next((one for one in counted if found[one[0] - 1].exposed), counted[0])


def _complaints(plain: Tally, atomic: Tally) -> list[str]:
    """Say what is not as it has to be."""
    complaints = []
    if atomic.stray_exits or atomic.wrong_values:
        complaints.append(
            f"atomic updates were noticed: {atomic.stray_exits} stray exits, {atomic.wrong_values} wrong values"
        )
    if not plain.stray_exits and not plain.wrong_values:
        complaints.append("plain updates were not noticed: the guests met no hole, so nothing was shown")
    return complaints


@contextlib.contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[Mode, int], None]]:
    """Show how far each mode is: bars on a terminal, else a line for every tenth."""
    if not console.is_terminal:
        shown: dict[Mode, int] = {}

        def tell(mode: Mode, done: int) -> None:
            tenth = min(done, total) * 10 // total
            if tenth > shown.get(mode, 0):
                shown[mode] = tenth
                console.print(f"{mode}: {min(done, total)} of {total} updates")

        yield tell
        return
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=console.quiet) as bars:
        tasks = {mode: bars.add_task(mode, total=total, start=False) for mode in _MODES}

        def advance(mode: Mode, done: int) -> None:
            bars.start_task(tasks[mode])
            bars.update(tasks[mode], completed=min(done, total))

        yield advance
