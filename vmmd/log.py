"""The log: one structured line an event, to the standard error; what the standard library logs comes out likewise.

Names, errors and headers that others made up are in it, so nothing in a line can end it, move the cursor or hide: JSON
escapes all of that, and for people it is escaped here.
"""

import logging
import re
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TextIO, cast

import structlog
from aiohttp.http_exceptions import HttpProcessingError

from vmmd.log_writer import LogWriter

# Control characters, line and paragraph separators, marks that turn the direction of writing, lone surrogates.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Stream(Protocol):
    """What lines are written to."""

    def write(self, text: str, /) -> int:
        """Take a line."""

    def flush(self) -> None:
        """Let go of what was taken."""

    def isatty(self) -> bool:
        """Tell whether a terminal is at the other end."""


@contextmanager
def to_stderr(level: str, form: Literal["auto", "console", "json"]) -> Iterator[None]:
    """Log to the standard error, and never wait for who reads it; at the end write what is left."""
    dropped = structlog.get_logger()
    writer = LogWriter(sys.stderr.fileno(), lambda lines: dropped.warning("log.lines_dropped", lines=lines))
    configure(level, form, writer)
    try:
        yield
    finally:
        writer.close()


def configure(level: str, form: Literal["auto", "console", "json"], stream: Stream | None = None) -> None:
    """Set up the log of this process.

    Args:
        level: The least level that is written: "debug", "info", "warning" or "error".
        form: "console" for people, "json" for machines, "auto": console where the stream is a terminal.
        stream: Where the lines go; None: to the standard error, at once.
    """
    stream = stream or sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    pretty = form == "console" or (form == "auto" and stream.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Without local variables: they hold guests' memory and callers' tokens.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    rendering: list[Any] = (
        [_escape, structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=_write_traceback)]
        if pretty
        else [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", stream)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(level=number, handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("aiohttp.server").addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    """Tell whether a line is of what went wrong here: what is no HTTP was answered, and peers could fill the log."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


def printable(text: str) -> str:
    r"""Write what is unfit for a line as Python would escape it, "\n" and "\x1b"; the rest stays."""
    return _UNFIT.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _escape(_logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make every text of a line printable, those in lists and mappings too."""
    return {key: value if key == "exc_info" else _escaped(value) for key, value in line.items()}


def _escaped(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case dict():
            return {_escaped(key): _escaped(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_escaped(inner) for inner in value]
        case _:
            return value


def _write_traceback(stream: TextIO, exc_info: Any) -> None:
    """Write a traceback behind its line; each of its lines has a bar before it, so that none passes for a line."""
    text = "".join(traceback.format_exception(*exc_info))
    stream.writelines(f"\n  | {printable(line)}" for line in text.rstrip("\n").split("\n"))
