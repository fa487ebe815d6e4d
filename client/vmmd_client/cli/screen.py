"""What a command writes, and where: results to stdout, everything said beside them to stderr.

With --json stdout gets JSON alone and stderr no progress. Colours and styles are for terminals where NO_COLOR is not
set. Text goes in as text: no markup is looked for in it, and what came from others is made safe by whoever puts it in
(`cell` does).
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .text import one_line

PLAIN_WIDTH = 200
"""Columns where nobody looks: wide enough that a table is as wide as it wants to be."""

_GAP = 2
_WORD_WIDTH = 24


class _Console(Console):
    """A console that leaves it to `group` what becomes of a command whose reader has gone."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 -- rich calls this where it has caught the BrokenPipeError.


def console(*, stderr: bool = False) -> Console:
    """Make a console that reads no markup, and colours nothing where stdout is no terminal or NO_COLOR is set."""
    file = sys.stderr if stderr else sys.stdout
    colourless = bool(os.environ.get("NO_COLOR")) or not file.isatty()
    made = _Console(
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


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """Make a table of cells. A column whose name begins with > stands to the right; Text cells stay as they are.

    A column to the right holds numbers and is never wrapped nor cut. The others are wrapped between words, and a word
    that is too long ends with an ellipsis. Where not even that fits, each row becomes lines, a cell a line.
    """
    return _Rows(columns, [[each if isinstance(each, Text) else cell(each) for each in row] for row in rows])


class _Rows:
    """Rows of cells as a table, or as lines where the terminal is too narrow for one."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
        self._names = [name.removeprefix(">") for name in columns]
        self._is_right = [name.startswith(">") for name in columns]
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        spare = options.max_width - _GAP * (len(self._names) - 1)
        widths = []
        for index, least in enumerate(leasts := [self._least_width(index) for index in range(len(self._names))]):
            most = max(cell_len(line) for text in self._column(index) for line in text.split("\n"))
            widths.append(max(least, min(most, spare - sum(leasts[index + 1 :]))))
            spare -= widths[-1]
        if spare < 0:
            yield from self._lines()
            return
        made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(self._names))
        for name, is_right, width in zip(self._names, self._is_right, widths, strict=True):
            justify: JustifyMethod = "right" if is_right else "left"
            made.add_column(name, justify=justify, no_wrap=is_right, overflow="ellipsis", width=width)
        for row in self._rows:
            made.add_row(*row)
        yield made

    def _column(self, index: int) -> list[str]:
        return [self._names[index], *(row[index].plain for row in self._rows)]

    def _least_width(self, index: int) -> int:
        """Give the columns that numbers take, or the longest word that is not to be cut."""
        if self._is_right[index]:
            return max(map(cell_len, self._column(index)))
        return min(
            _WORD_WIDTH, max((cell_len(word) for text in self._column(index) for word in text.split()), default=0)
        )

    def _lines(self) -> Iterator[Text]:
        for number, row in enumerate(self._rows):
            if any(self._names):
                if number:
                    yield Text()
                for name, each in zip(self._names, row, strict=True):
                    if each.plain:
                        yield Text.assemble((f"{name}: " if name else "", "bold"), each)
            else:
                yield Text("  ").join(each for each in row if each.plain)


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
