"""What a replay shows: the table of both modes, the picture of one update, and the one line for machines.

Text out of values that others measured; it measures nothing and knows no daemon.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from .replay import Mode, Tally
from .timeline import Column, Doing, Picture

_NAME_WIDTH = 21
_WIDEST_COLUMN = 8


def percentile(values: Sequence[int], share: float) -> int:
    """Give the smallest of the values that at least that share of them does not exceed (the nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def microseconds(nanoseconds: float) -> float:
    """Give the time in microseconds, to a tenth."""
    return round(nanoseconds / 1_000, 1)


def guest_mips(*tallies: Tally) -> float:
    """Give the million guest instructions a second over the whole of the modes' rounds, of all vCPUs together."""
    elapsed_ns = sum(tally.elapsed_ns for tally in tallies)
    return round(sum(tally.instructions for tally in tallies) * 1_000 / elapsed_ns, 1)


def table(plain: Tally, atomic: Tally) -> Table:
    """Give both modes side by side."""
    out = Table(title="The same recorded updates, made in two ways", title_justify="left")
    out.add_column("")
    out.add_column("plain: one ioctl a call", justify="right")
    out.add_column("atomic: kick, change, resume", justify="right")

    def row(name: str, *cells: object, bad: bool = False) -> None:
        texts = [Text(f"{cell:,}" if isinstance(cell, int | float) else str(cell)) for cell in cells]
        if bad:
            for cell, text in zip(cells, texts, strict=True):
                text.stylize("bold red" if cell else "bold green")
        out.add_row(name, *texts)

    row("memory map updates", plain.updates, atomic.updates)
    row("slot calls", plain.slot_calls, atomic.slot_calls)
    for name, share in (("hole open, p50 (µs)", 0.5), ("hole open, longest (µs)", 1.0)):
        opened = microseconds(percentile(plain.hole_open_ns, share)) if plain.hole_open_ns else "none"
        row(name, opened, "none is seen")
    row("stray exits", plain.stray_exits, atomic.stray_exits, bad=True)
    row("lost or wrong values", plain.wrong_values, atomic.wrong_values, bad=True)
    for name, share in (("pause, p50 (µs)", 0.5), ("pause, p99 (µs)", 0.99)):
        row(name, "none", microseconds(percentile(atomic.pause_ns, share)))
    row("million guest instructions a second", guest_mips(plain), guest_mips(atomic))
    return out


def machine_line(plain: Tally, atomic: Tally, trace: str | None = None) -> str:
    """Give the one line for machines: a JSON object, which names the recording where the user gave one."""
    named = {} if trace is None else {"trace": trace}
    return json.dumps(
        named
        | {
            "updates": min(plain.updates, atomic.updates),
            "plain": {"stray_exits": plain.stray_exits, "wrong_values": plain.wrong_values},
            "atomic": {
                "stray_exits": atomic.stray_exits,
                "wrong_values": atomic.wrong_values,
                "pause_us_p50": microseconds(percentile(atomic.pause_ns, 0.5)),
                "pause_us_p99": microseconds(percentile(atomic.pause_ns, 0.99)),
            },
            "guest_mips": guest_mips(plain, atomic),
        }
    )


def picture(taken: Picture, width: int) -> Text:
    """Draw one update on a time line: a row for each vCPU, then one for each range that was missing for a time.

    Args:
        taken: the update.
        width: how many characters a line may have; narrow columns cut their words short.
    """
    column_width = min(_WIDEST_COLUMN, (width - _NAME_WIDTH) // len(taken.columns))
    out = Text(no_wrap=True, overflow="crop")

    def row(name: str, cells: Iterable[tuple[str, str]]) -> None:
        out.append(f"{name:<{_NAME_WIDTH}}")
        for text, style in cells:
            out.append(f"{text[: column_width - 1]:<{column_width}}", style=style)
        out.append("\n")

    out.append(f"{_TITLES[taken.mode]}\n", style="bold")
    row("step", ((column.label, "") for column in taken.columns))
    row("took (µs)", ((f"{column.duration_ns // 1_000}", "dim") for column in taken.columns))
    for vcpu in range(len(taken.columns[0].doings)):
        row(f"vCPU {vcpu}", (_doing(column, column.doings[vcpu]) for column in taken.columns))
    for number, span in enumerate(taken.ranges):
        cells = (("░" * _WIDEST_COLUMN if column.missing[number] else "", "yellow") for column in taken.columns)
        row(f"{span.start:#x}-{span.end:#x}", cells)
    return out


def legend() -> Text:
    """Say what the picture's signs mean."""
    return Text(
        "-n +n slot n deleted, created   ━ ran   ▼n fell through n times   · held\n"
        "(blank) waited for a core or for its exit   ░ range is missing\n",
        style="dim",
    )


_TITLES: Mapping[Mode, str] = {
    "plain": "One update, plain: vCPUs run while ranges are missing",
    "atomic": "The same update, atomic: ranges are missing while no vCPU runs",
}


def _doing(column: Column, doing: Doing) -> tuple[str, str]:
    if doing.stray_exits:
        return f"▼{doing.stray_exits}", "bold red"
    if doing.instructions:
        return "━" * _WIDEST_COLUMN, "green"
    return ("·" * _WIDEST_COLUMN, "cyan") if column.held else ("", "")
