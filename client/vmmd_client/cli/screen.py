"""What a command writes, and where: results to stdout, everything said beside them to stderr.

With --json stdout gets JSON alone and stderr no progress. Colours and styles are for terminals where NO_COLOR is not
set. Text goes in as text: no markup is looked for in it, and what came from others is made safe by whoever puts it in
(`cell` does).
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .text import one_line

PLAIN_WIDTH = 200
"""Columns where nobody looks: wide enough that a table is as wide as it wants to be."""


def console(*, stderr: bool = False) -> Console:
    """Make a console that reads no markup, and colours nothing where stdout is no terminal or NO_COLOR is set."""
    file = sys.stderr if stderr else sys.stdout
    colourless = bool(os.environ.get("NO_COLOR")) or not file.isatty()
    made = Console(
        file=file,
        markup=False,
        emoji=False,
        highlight=False,
        color_system=None if colourless else "auto",
        soft_wrap=False,
    )
    if not file.isatty() and "COLUMNS" not in os.environ:
        made.width = PLAIN_WIDTH
    return made


class Screen:
    """Where one command writes."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = console()

    def give(self, value: Any, *shown: RenderableType) -> None:
        """Write a result: the value as JSON, or what is shown of it to people."""
        if self.as_json:
            self.json(value)
        else:
            for each in shown:
                self.console.print(each)

    def json(self, value: Any) -> None:
        """Write one JSON value, on a line of its own."""
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Say something beside the result, on stderr."""
        if not self.as_json:
            sys.stderr.write(f"{one_line(text)}\n")

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar on stderr where that is a terminal; the function that is given takes how much more is done."""
        bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=console(stderr=True),
            transient=True,
            disable=self.as_json or not sys.stderr.isatty(),
        )
        with bars:
            task = bars.add_task(what, total=total)
            yield lambda done: bars.advance(task, done)


def cell(value: object) -> Text:
    """Give a table's cell: text as it is, safe for the terminal, and numbers with commas."""
    return Text(f"{value:,}" if type(value) is int else one_line(str(value)))


def table(columns: Sequence[str], rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]) -> Table:
    """Make a table of cells. A column whose name begins with > stands to the right; Text cells stay as they are."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(name.strip(">") for name in columns))
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*(each if isinstance(each, Text) else cell(each) for each in row))
    return made


def size(size_bytes: int) -> str:
    """Write a size with the largest unit that leaves a whole number, "640 KiB"."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift:,} {unit}"
    return f"{size_bytes:,} B"


def byte_count(count: int) -> str:
    """Write a number of bytes, "1 byte" or "1,024 bytes"."""
    return f"{count:,} byte{'' if count == 1 else 's'}"


def duration(time_ns: int | None) -> str:
    """Write a time in microseconds, "142.3 µs"; "none" for None."""
    return "none" if time_ns is None else f"{time_ns / 1_000:,.1f} µs"
