"""Recordings as files: plain or gzipped, or standard input, read line by line in bounded memory.

What recorded a file is told by its first lines. A gzip stream that ends too early (a tracer that was killed) is read as
far as it goes, and `Recording.cut_off` says so. `audit_files` is the way from files to findings.
"""

import gzip
import heapq
import io
import itertools
import statistics
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .audit import DEFAULT_GAP_US, Audit, Findings
from .events import Event, FdMade, GuestMode, RunBegins, RunEnds, SlotCallBegins, SlotCallEnds, TraceError, Woken
from .strace import StraceReader
from .tracepoints import TracepointReader

STANDARD_INPUT = "-"

_GZIP_MAGIC = b"\x1f\x8b"
_FIRST_LINES = 400
_PROGRESS_LINES = 20_000
_LONGEST_LINE = 1 << 20

Progress = Callable[[int], None]
"""Called now and then with how many bytes of the file have been read."""


class Recording:
    """One file that is read once, from its beginning to its end.

    Args:
        name: the file's path, or "-" for standard input.
        progress: told now and then how many bytes of the file have been read.

    Attributes:
        name: as given.
        cut_off: whether a gzip stream ended before its end.
        reader: what makes events of its lines, once they are read; its counts tell what could not be read.
    """

    def __init__(self, name: str, progress: Progress | None = None) -> None:
        self.name = name
        self.cut_off = False
        self.reader: StraceReader | TracepointReader = StraceReader()
        self._progress = progress

    def events(self) -> Iterator[Event]:
        """Read the file and give its events.

        Raises:
            TraceError: the file cannot be read, or holds no call and no tracepoint of KVM at all.
        """
        lines = self._lines()
        first = list(itertools.islice(lines, _FIRST_LINES))
        self.reader = _reader_of(first)
        yield from self.reader.read(itertools.chain(first, lines))
        if not self.reader.ioctls:
            raise TraceError(
                f"{self.name} holds no ioctl that can be read; record one with: "
                "strace -f -ttt -e trace=ioctl -o FILE COMMAND"
            )
        if not self.reader.kvm_calls:
            raise TraceError(
                f"{self.name} holds {self.reader.ioctls:,} calls and none of them is KVM's: record the VMM itself, and "
                "all of its threads (strace -f), not what started it or talks to it"
            )

    def _lines(self) -> Iterator[str]:
        try:
            if self.name == STANDARD_INPUT:
                yield from self._read(sys.stdin.buffer)
            else:
                with Path(self.name).open("rb") as file:
                    yield from self._read(file)
        except (EOFError, zlib.error):
            self.cut_off = True
        except OSError as error:
            raise TraceError(f"{self.name} cannot be read as a recording: {error}") from error

    def _read(self, raw: BinaryIO) -> Iterator[str]:
        stream = gzip.GzipFile(fileobj=raw) if _peek(raw) == _GZIP_MAGIC else raw
        for number in itertools.count():
            line = stream.readline(_LONGEST_LINE)
            if not line:
                return
            if self._progress is not None and number % _PROGRESS_LINES == 0 and raw.seekable():
                self._progress(raw.tell())
            yield line.decode("utf-8", errors="replace")


def _peek(stream: BinaryIO) -> bytes:
    """Look at the first two bytes and leave them there."""
    if isinstance(stream, io.BufferedReader):
        return stream.peek(2)[:2]
    first = stream.read(2)
    stream.seek(0)
    return first


def _reader_of(first: list[str]) -> StraceReader | TracepointReader:
    """Choose the reader that makes more of a recording's first lines."""
    strace, tracer = StraceReader(), TracepointReader()
    for line in first:
        strace.feed(line)
        tracer.feed(line)
    return TracepointReader() if tracer.ioctls > strace.ioctls else StraceReader()


@dataclass(frozen=True, slots=True)
class Matched:
    """How well two recorders' clocks were brought together.

    Attributes:
        calls: how many slot calls both recorded.
        spread_us: by how much the distances between the two clocks at these calls differ, at most, from the median.
    """

    calls: int
    spread_us: int


@dataclass(frozen=True, slots=True)
class Audited:
    """A file's findings, with what could not be read of it.

    Attributes:
        name: the file's path, or "-".
        findings: what it holds.
        lines: how many lines it has.
        unread_lines: how many of them are, or may have been, a slot call, a KVM_RUN or a tracepoint that matters but
            could not be read; a tracer's file counts too.
        cut_off: whether its gzip stream ended before its end.
        matched: where tracepoints were read from a file of their own, how well the clocks were matched.
        has_untimed_runs: whether it shows several threads, none of their calls unfinished, and KVM_RUNs without the
            time that they took, as merged files of `strace -ff` do: how long these lasted is not known.
    """

    name: str
    findings: Findings
    lines: int
    unread_lines: int
    cut_off: bool
    matched: Matched | None = None
    has_untimed_runs: bool = False

    @property
    def is_doubtful(self) -> bool:
        """Whether something could not be read, or was not known of a map, so that an update may have been missed."""
        unsure = self.unread_lines or self.cut_off or self.has_untimed_runs or self.findings.guesses
        return bool(unsure) or any(found.vm.unseen_calls or found.vm.unseen_slots for found in self.findings.vms)


def audit_file(
    name: str,
    *,
    tracepoints: str | None = None,
    gap_us: int = DEFAULT_GAP_US,
    progress: Progress | None = None,
) -> Audited:
    """Audit one recording.

    Args:
        name: the file's path, or "-" for standard input.
        tracepoints: the path of a kernel tracer's text of the same run, which tells guest mode from sleep.
        gap_us: the longest gap within an update, in microseconds.
        progress: told now and then how many bytes of the file have been read.

    Raises:
        TraceError: a file cannot be read, or the two are not of the same run.
    """
    matched = offset_us = None
    if tracepoints is not None:
        if STANDARD_INPUT in (name, tracepoints):
            raise TraceError("with --tracepoints both recordings are read twice: give files, not standard input")
        offset_us, matched = _match(name, tracepoints)
    recording = Recording(name, progress)
    auditor = Audit(gap_us=gap_us)
    events = recording.events()
    read = [recording]
    if tracepoints is not None and offset_us is not None:
        read.append(Recording(tracepoints))
        events = _merged(events, read[1].events(), offset_us)
    auditor.take(events)
    found = auditor.findings()
    reader = recording.reader
    return Audited(
        name,
        found,
        reader.lines,
        sum(one.reader.unread_lines for one in read),
        any(one.cut_off for one in read),
        matched,
        isinstance(reader, StraceReader) and reader.untimed_runs > 0 and not reader.unfinished and _has_threads(found),
    )


def _has_threads(found: Findings) -> bool:
    """Tell whether several threads used one VM."""
    return any(len(one.lanes.keys() | {update.thread for update in one.updates}) > 1 for one in found.vms)


def _slot_call_times(name: str) -> dict[int, list[int]]:
    times: dict[int, list[int]] = {}
    for event in Recording(name).events():
        if isinstance(event, SlotCallEnds):
            times.setdefault(event.call.thread, []).append(event.call.begin_us)
    return times


def _match(name: str, tracepoints: str) -> tuple[int, Matched]:
    """Find the distance between two recorders' clocks by the slot calls that both have seen."""
    ours, theirs = _slot_call_times(name), _slot_call_times(tracepoints)
    distances = [
        here - there
        for thread, begins in ours.items()
        if len(begins) == len(theirs.get(thread, ()))
        for here, there in zip(begins, theirs[thread], strict=True)
    ]
    if not distances:
        raise TraceError(
            f"{name} and {tracepoints} have no thread with the same number of slot calls, so their clocks cannot be "
            "matched; record both at once from the start, the tracer with the ioctls (perf trace -e ioctl,kvm:…)"
        )
    offset_us = int(statistics.median(distances))
    return offset_us, Matched(len(distances), max(abs(distance - offset_us) for distance in distances))


def _merged(events: Iterable[Event], tracer: Iterable[Event], offset_us: int) -> Iterator[Event]:
    """Give one recording's calls and the other's tracepoints in the order of time."""

    def of_calls() -> Iterator[tuple[int, int, Event]]:
        now_us = 0
        for event in events:
            now_us = max(now_us, _at_us(event, now_us))
            yield now_us, 0, event

    def of_tracer() -> Iterator[tuple[int, int, Event]]:
        for event in tracer:
            if isinstance(event, GuestMode | Woken):
                event.at_us += offset_us
                yield event.at_us, 1, event

    for _, _, event in heapq.merge(of_calls(), of_tracer(), key=lambda item: item[:2]):
        yield event


def _at_us(event: Event, otherwise_us: int) -> int:
    """Give when an event happened; what has no time of its own happened with the one before it."""
    if isinstance(event, SlotCallBegins):
        return event.call.begin_us
    if isinstance(event, SlotCallEnds):
        return event.call.answered_us
    if isinstance(event, RunBegins):
        return event.run.begin_us
    if isinstance(event, RunEnds):
        return otherwise_us if event.run.end_us is None else event.run.end_us
    return event.at_us if isinstance(event, FdMade | GuestMode | Woken) else otherwise_us


def size_of(name: str) -> int | None:
    """Give a file's size in bytes, for progress; None of standard input, or where there is no such file."""
    try:
        return None if name == STANDARD_INPUT else Path(name).stat().st_size
    except OSError:
        return None
