"""The main job, as anybody can run it: `python -m vmmd_client.demo`.

It starts a daemon of its own, lays out the memory map of a recorded QEMU under running vCPUs, and replays its memory
map updates round after round: plain, as QEMU 7.2 made them, then atomic. It asks for everything through the client
library. The last line is one JSON object; the exit status is 0 only if atomic shows nothing and plain shows something.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import report
from .connection import connect
from .errors import VmmdError
from .layout import LayoutError
from .local_daemon import local_daemon
from .replay import Mode, Replay, ReplayError, Tally
from .timeline import Picture, trace_update
from .traces import TraceError, read_trace, shipped_trace, updates

_PLAIN_WIDTH = 110

MAX_VCPUS = 64
"""More walkers than this have too few pages each to themselves."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and give its exit status: 0 only if atomic shows nothing and plain shows something."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, quiet=options.json_only)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    try:
        plain, atomic = asyncio.run(_demo(options, console))
    except (VmmdError, ReplayError, LayoutError, TraceError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    complaints = _complaints(plain, atomic)
    for complaint in complaints:
        sys.stderr.write(f"demo: {complaint}\n")
    sys.stdout.write(report.machine_line(plain, atomic) + "\n")
    return 1 if complaints else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vmmd_client.demo",
        description="Replay a recorded VMM's memory map updates under running vCPUs, plain and atomic.",
    )
    parser.add_argument(
        "--updates", type=_count(1, 1_000_000), default=1000, metavar="N", help="updates to count each way (1000)"
    )
    parser.add_argument("--vcpus", type=_count(1, MAX_VCPUS), default=4, metavar="N", help="vCPUs that walk (4)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a recording of yours; left out: QEMU 7.2 booting")
    parser.add_argument("--json-only", action="store_true", help="print the last line alone")
    return parser


def _count(lowest: int, highest: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no integer") from None
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not between {lowest} and {highest}")
        return value

    return count


async def _demo(options: argparse.Namespace, console: Console) -> tuple[Tally, Tally]:
    trace = read_trace(options.trace) if options.trace else shipped_trace()
    recorded = updates(trace)
    async with local_daemon() as url, connect(url) as vmmd:
        info = await vmmd.daemon.get_info()
        vm = await vmmd.kvm.create_vm("demo")
        replay = await Replay.set_up(vmmd, vm, recorded, vcpus=options.vcpus)
        console.print(
            f"vmmd {info.version}, engine {info.engine}: {options.vcpus} vCPUs walk over a recorded map; "
            f"{replay.counted_per_round} of its {len(recorded)} updates delete and create memory at the same place."
        )
        pictures: list[Picture] = []
        tallies: dict[Mode, Tally] = {}
        modes: tuple[Mode, ...] = ("plain", "atomic")
        with _progress(console, options.updates) as advance:
            for mode in modes:
                tallies[mode] = await replay.run(mode, options.updates, partial(advance, mode))
        for mode in modes:
            score = next(score for score in replay.scores if score.counts)
            vcpus = range(replay.vcpus)
            pictures.append(await trace_update(vmmd, vm, vcpus, score.regions, score.holes, mode))
            await replay.wind_back()
        await vm.destroy()
    for picture in pictures:
        console.print(report.picture(picture, console.width))
    console.print(report.legend())
    console.print(report.table(tallies["plain"], tallies["atomic"]))
    return tallies["plain"], tallies["atomic"]


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
        tasks = {mode: bars.add_task(mode, total=total, start=False) for mode in ("plain", "atomic")}

        def advance(mode: Mode, done: int) -> None:
            bars.start_task(tasks[mode])
            bars.update(tasks[mode], completed=min(done, total))

        yield advance


if __name__ == "__main__":
    sys.exit(main())
