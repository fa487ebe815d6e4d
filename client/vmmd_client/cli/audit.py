"""`vmmctl audit`: which windows a VMM left open while it changed its guest's memory map, from a recording."""

import contextlib
import gc
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..audit import ci, document, page, text
from ..audit.audit import DEFAULT_GAP_US
from ..audit.events import TraceError
from ..audit.recording import STANDARD_INPUT, Audited, audit_file, size_of
from .screen import console

CLEAN, EXPOSED, UNREADABLE = 0, 1, 2
"""The exit statuses: 1 says that an update is exposed and nothing else, whatever else may go wrong."""

_INTERRUPTED = 130


class _UnreadableError(click.ClickException):
    """What keeps a verdict from being given."""

    exit_code = UNREADABLE


def a_number(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse what is no number: click's own ranges let it through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number that can be meant; give one in the range")
    return value


@click.command()
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...")
@click.option(
    "--tracepoints",
    type=click.Path(),
    metavar="FILE",
    help="perf's or trace-cmd's text of the same run: tells guest mode from sleep.",
)
@click.option(
    "--gap-ms",
    type=click.FloatRange(0, 60_000),
    default=DEFAULT_GAP_US / 1_000,
    callback=a_number,
    show_default=True,
    help="The longest gap between two slot calls of one update.",
)
@click.option("--all", "every", is_flag=True, help="Show every update in the table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the report.")
@click.option("--html", type=click.Path(), metavar="FILE", help="Write one self-contained page.")
@click.option("--junit", type=click.Path(), metavar="FILE", help="Write JUnit's XML.")
@click.option("--sarif", type=click.Path(), metavar="FILE", help="Write a SARIF 2.1.0 log.")
@click.option("--strict", is_flag=True, help="End with status 2 if anything could not be read or is not known.")
def audit(  # noqa: PLR0913, PLR0917  # one parameter for each option of the command line
    traces: tuple[str, ...],
    tracepoints: str | None,
    gap_ms: float,
    every: bool,
    as_json: bool,
    html: str | None,
    junit: str | None,
    sarif: str | None,
    strict: bool,
) -> None:
    """Find the windows that a VMM left open, in recordings of its ioctls.

    TRACE is what `strace -f -ttt -e trace=ioctl -o TRACE VMM…` wrote (-tt and -r, -y and -T are read too), plain or
    gzipped; - is standard input. Exit status: 0 no update was exposed, 1 one was, 2 a recording cannot be read or the
    report cannot be written.
    """
    if tracepoints is not None and len(traces) > 1:
        raise click.UsageError("--tracepoints belongs to one TRACE, and there are several")
    with _no_verdict_by_accident(), _no_search_for_cycles():
        audits = list(_read(traces, tracepoints, round(gap_ms * 1_000)))
        as_json = as_json or bool(click.get_current_context().find_root().params.get("as_json"))
        _show(audits, every=every, as_json=as_json)
        written = _write(audits, html=html, junit=junit, sarif=sarif)
        sys.stdout.flush()
    failed = not written or len(audits) < len(traces)
    click.get_current_context().exit(_status(audits, failed=failed, strict=strict))


@contextlib.contextmanager
def _no_verdict_by_accident() -> Iterator[None]:
    """End with the status for "no verdict" whatever goes wrong: Python's own for it would mean "exposed"."""
    try:
        yield
    except OSError as error:
        # Standard output cannot take any more; what is left in its buffer goes nowhere, or the end would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise _UnreadableError(f"standard output cannot be written: {error.strerror}; nothing was judged") from error
    except KeyboardInterrupt:
        click.get_current_context().exit(_INTERRUPTED)
    except Exception:
        traceback.print_exc()
        raise _UnreadableError("this is a failure of vmmctl itself; please report it with the lines above") from None


@contextlib.contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Keep Python's collector off: an audit keeps much and makes no cycles, and it would look for some in all of it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(traces: tuple[str, ...], tracepoints: str | None, gap_us: int) -> Iterator[Audited]:
    """Audit each recording that can be read, and name the others."""
    for name in traces:
        try:
            with _progress(name) as progress:
                yield audit_file(name, tracepoints=tracepoints, gap_us=gap_us, progress=progress)
        except TraceError as error:
            sys.stderr.write(f"audit: {error}\n")


def _show(audits: list[Audited], *, every: bool, as_json: bool) -> None:
    if as_json:
        for piece in document.pieces(audits):
            sys.stdout.write(piece)
        return
    screen = console()
    for audited in audits:
        screen.print(text.report(audited, every=every))


def _status(audits: list[Audited], *, failed: bool, strict: bool) -> int:
    """What could not be read outweighs what was found: a gate must not pass on half a recording."""
    if failed or (strict and any(audited.is_doubtful for audited in audits)):
        return UNREADABLE
    return EXPOSED if any(found.exposed for audited in audits for found in audited.findings.vms) else CLEAN


def _write(audits: list[Audited], *, html: str | None, junit: str | None, sarif: str | None) -> bool:
    """Write the files that were asked for; names those that cannot be written, and tells whether all were."""
    written = True
    for name, render in ((html, page.page), (junit, ci.junit), (sarif, ci.sarif)):
        if name == STANDARD_INPUT:
            sys.stdout.write(render(audits))
        elif name is not None:
            try:
                Path(name).write_text(render(audits), encoding="utf-8")
            except OSError as error:
                written = False
                sys.stderr.write(f"audit: {name} cannot be written: {error.strerror}\n")
    return written


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int], None] | None]:
    """Show a bar on standard error while a file is read, where somebody watches and its size is known."""
    size = size_of(name)
    screen = console(stderr=True)
    if size is None or not screen.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as bars:
        task = bars.add_task(text.printable(Path(name).name), total=size)
        yield lambda done: bars.update(task, completed=done)
