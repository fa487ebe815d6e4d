"""Reads kernel tracers' text: `perf trace`, `perf script`, `trace-cmd report` and ftrace's own; lines in, events out.

Of KVM's tracepoints it takes kvm_entry and kvm_exit (between them a thread is in guest mode) and kvm_vcpu_wakeup (it
slept inside KVM_RUN). Of the ioctls, as perf trace prints them or as the tracepoints sys_enter_ioctl and
sys_exit_ioctl do, it takes who was inside KVM_RUN, and that there was a slot call: tracers print the address of its
arguments and not the arguments. It does no I/O.
"""

import errno as errno_names
import re
from collections.abc import Iterable, Iterator

from .clock import Clock, microseconds
from .events import Event, FdMade, Run, RunBegins, RunEnds, SlotCall, SlotCallBegins, SlotCallEnds
from .requests import MAKERS, SLOT_CALLS, name_of
from .strace import MOST_OF_A_LINE, tracepoint

# perf trace: "  43.273 ( 0.259 ms): comm/tid ioctl(fd: 11, cmd: KVM_RUN) = 0". The time is in ms since its first event,
# and a command's name may hold anything, a slash too.
_PERF_TRACE = re.compile(
    r"\s*(\d{1,12})\.(\d{3}) (?:\( {0,8}(?:(\d{1,9})\.(\d{3}) ms)?\s*\): )?(.{0,40}?)/(\d{1,9})\s+(?=\S)"
)
# It leaves out a file descriptor that is 0.
_PERF_IOCTL = re.compile(r"ioctl\((?:fd: (\d{1,9})(?:<[^>]*>)?, )?cmd: (\w+|\([^)]{1,80}\))")
_PERF_RESULT = re.compile(r"\)\s+= (-?\d{1,18})(?: (E\w+))?")
# perf script: "comm tid [cpu] 22435.691115: kvm:kvm_entry: vcpu 0"; trace-cmd: "comm-tid [001] d..1. 18.4: …".
_EVENT = re.compile(
    r"\s*.{0,40}?[ -](\d{1,9})(?:/\d{1,9})?\s+(?:\(\s*[\d-]+\)\s+)?\[\d+\]\s+"
    r"(?:[\w.#]{1,8}\s+)?(\d{1,12})\.(\d{6,9}):\s+(?=\S)"
)
# trace-cmd pads names with spaces, perf and ftrace do not.
_ENTER = re.compile(
    r"(?:syscalls:)?sys_(?:enter_)?ioctl(?::\s+|\()fd: (?:0x)?([0-9a-f]{1,16}), cmd: (?:0x)?([0-9a-f]{1,16})"
)
_EXIT = re.compile(r"(?:syscalls:)?sys_(?:exit_)?ioctl(?::\s+| -> )(?:0x)?([0-9a-f]{1,16})\b")
_CALL = re.compile(r"(?:syscalls:)?sys_(?:enter_|exit_)?ioctl\b")


class TracepointReader:
    """Makes events of lines.

    Attributes:
        lines: how many lines it has read.
        unread_lines: how many of them name a KVM tracepoint or an ioctl but could not be read.
        ioctls: how many calls and tracepoints it has read.
        kvm_calls: how many of them are KVM's.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.unread_lines = 0
        self.ioctls = 0
        self.kvm_calls = 0
        self._clock = Clock(relative=False)
        self._begun: dict[int, Run | SlotCall | tuple[str, int]] = {}

    def read(self, lines: Iterable[str]) -> Iterator[Event]:
        """Read all lines."""
        for line in lines:
            yield from self.feed(line)

    def feed(self, line: str) -> Iterable[Event]:
        """Read one line; lines of other events give none."""
        self.lines += 1
        line = line[:MOST_OF_A_LINE].rstrip()
        if (match := _PERF_TRACE.match(line)) is not None:
            return self._perf_trace(match, line[match.end() :])
        if (match := _EVENT.match(line)) is not None:
            at_us = self._clock.seconds(int(match[2]), microseconds(match[3]))
            return self._event(int(match[1]), at_us, line[match.end() :])
        self.unread_lines += "ioctl" in line or "kvm_e" in line or "kvm_vcpu_wakeup" in line
        return ()

    def _perf_trace(self, match: re.Match[str], rest: str) -> Iterable[Event]:
        at_us = int(match[1]) * 1_000 + int(match[2])
        thread = int(match[6])
        if rest.startswith("kvm:"):
            return self._tracepoint(thread, at_us, rest)
        result = _PERF_RESULT.search(rest)
        end_us = None if match[3] is None else at_us + int(match[3]) * 1_000 + int(match[4])
        if rest.startswith("... [continued]: ioctl("):
            return () if result is None else self._end(thread, end_us, int(result[1]), result[2])
        if (ioctl := _PERF_IOCTL.match(rest)) is None:
            self.unread_lines += rest.startswith("ioctl(")
            return ()
        self.ioctls += 1
        events = self._begin(thread, at_us, ioctl[2], int(ioctl[1] or 0))
        if result is None:
            return events
        return [*events, *self._end(thread, end_us, int(result[1]), result[2])]

    def _event(self, thread: int, at_us: int, rest: str) -> Iterable[Event]:
        if rest.startswith(("kvm_", "kvm:kvm_")):
            return self._tracepoint(thread, at_us, rest)
        if (enter := _ENTER.match(rest)) is not None:
            self.ioctls += 1
            return self._begin(thread, at_us, f"0x{enter[2]}", int(enter[1], 16))
        if (end := _EXIT.match(rest)) is not None:
            value = int(end[1], 16)
            value -= (value >> 63) << 64
            return self._end(thread, at_us, value, errno_names.errorcode.get(-value) if value < 0 else None)
        self.unread_lines += _CALL.match(rest) is not None
        return ()

    def _tracepoint(self, thread: int, at_us: int, rest: str) -> Iterable[Event]:
        self.ioctls += 1
        self.kvm_calls += 1
        events = tracepoint(thread, at_us, rest.removeprefix("kvm:"))
        self.unread_lines += events is None
        return events or ()

    def _begin(self, thread: int, at_us: int, printed: str, fd: int) -> list[Event]:
        self._begun.pop(thread, None)
        request = name_of(printed)
        self.kvm_calls += request.startswith("KVM_")
        if request == "KVM_RUN":
            run = self._begun[thread] = Run(thread, fd, at_us)
            return [RunBegins(run)]
        if request in SLOT_CALLS:
            call = self._begun[thread] = SlotCall(thread, fd, at_us, None, self.lines)
            return [SlotCallBegins(call)]
        if request in MAKERS:
            self._begun[thread] = (MAKERS[request], fd)
        return []

    def _end(self, thread: int, end_us: int | None, value: int, errno: str | None) -> list[Event]:
        begun = self._begun.pop(thread, None)
        if begun is None:
            return []
        if isinstance(begun, tuple):
            kind, parent_fd = begun
            return [] if errno or value < 0 else [FdMade(thread, end_us or 0, kind, parent_fd, value)]
        begun.end_us, begun.errno = end_us, errno
        return [RunEnds(begun)] if isinstance(begun, Run) else [SlotCallEnds(begun)]
