"""Reads what `strace -f -e trace=ioctl` printed, with -ttt, -tt or -r, with or without -y and -T: lines in, events out.

A line that is, or may have been, a slot call or a KVM_RUN but cannot be read is counted, never guessed at. Calls that
other calls interrupt ("<unfinished ...>", "<... ioctl resumed>") are put together again by their thread; a call on one
line of which -T tells that it took longer than until the next line ends in its own time, as it does where the files of
`strace -ff` were merged. Beside the ioctls it understands close and the clone family where they were recorded too, and
lines of KVM's tracepoints behind strace's usual beginning, as `docs/audit/kvm-ioctls.bt` prints them. It does no I/O.
"""

import heapq
import re
from collections.abc import Callable, Iterable, Iterator

from .clock import Clock, microseconds
from .events import (
    Event,
    FdClosed,
    FdMade,
    GuestMode,
    LogCall,
    Run,
    RunBegins,
    RunEnds,
    SlotCall,
    SlotCallBegins,
    SlotCallEnds,
    ThreadMade,
    Woken,
)
from .requests import LOG_CALLS, MAKERS, SLOT_CALLS, WANTED
from .words import RESUMED, Ending, Words, may_matter, words_of

# The beginning of every line: who, and when. A number in front of a time is a thread; the time stands alone where
# strace followed one thread only.
_LEADER = re.compile(
    r"(?:\[pid\s+(\d+)\]\s+|\s*(\d+)\s+(?=[\d\s]))?\s*"
    r"(?:(\d{1,12})\.(\d{3,9})|(\d\d):(\d\d):(\d\d)\.(\d{3,9}))(?:\s+\(\+\s*\d+\.\d+\))?\s+(?=\S)"
)
# How `strace -f -ttt -o FILE` begins its lines, and so most recordings. These times count from 1970, so that the clock
# has nothing to add to them.
_USUAL_LEADER = re.compile(r"(\d+) ([1-9]\d{8,11})\.(\d{6}) (?=[^\s(])")
# What is left of such a beginning where a line was cut off in it.
_CUT_LEADER = re.compile(r"\[pid|(?:\[pid\s+\d+\]\s+)?\s*[\d.:+() ]*\d[\d.:+() ]*")
_DURATION = re.compile(r"<(\d{1,9})\.(\d{3,9})>$")
_CLOSE = re.compile(r"close\((\d{1,9})(?:<[^>]*>)?\)?.*= 0")
_CLONE = re.compile(r"(clone3?|fork|vfork)\b(.*)\)\s+= (\d{1,9})")
_WAKEUP = re.compile(r"(?:wait|poll) time (\d{1,18}) ns|\(ns: (\d{1,18})")

_GOES_ON = (Ending.UNFINISHED, Ending.DETACHED)
_LEFT_ALONE = (Ending.DETACHED, Ending.UNKNOWN)

MOST_OF_A_LINE = 4096
"""How many characters of a line are looked at; the calls that matter have fewer than 400."""


class StraceReader:
    """Makes events of lines.

    Attributes:
        lines: how many lines it has read.
        unread_lines: how many of them are, or may have been, a slot call or a KVM_RUN but could not be read, or never
            got an outcome.
        ioctls: how many calls it has read.
        kvm_calls: how many of them, and of the lines, are KVM's.
        unfinished: how many calls were shown unfinished.
        untimed_runs: how many KVM_RUNs stand on one line without the time that they took.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.unread_lines = 0
        self.ioctls = 0
        self.kvm_calls = 0
        self.unfinished = 0
        self.untimed_runs = 0
        self._clock = Clock()
        self._begun: dict[int, SlotCall | Run | Words] = {}
        self._ending: list[tuple[int, int, Run | SlotCall]] = []

    def read(self, lines: Iterable[str]) -> Iterator[Event]:
        """Read all lines, and at the end let go of the slot calls that never ended; a KVM_RUN goes on until then."""
        for line in lines:
            if events := self.feed(line):
                yield from events
        yield from self._end_until(None)
        for thread, begun in list(self._begun.items()):
            if isinstance(begun, SlotCall):
                yield from self._abandon(thread)

    def feed(self, line: str) -> tuple[Event, ...]:
        """Read one line; lines of other calls give no event."""
        self.lines += 1
        line = line[:MOST_OF_A_LINE].rstrip()
        match = _USUAL_LEADER.match(line)
        if match is not None:
            thread_id, seconds, micros = match.groups()
            thread, at_us = int(thread_id), int(seconds + micros)
        else:
            match = _LEADER.match(line)
            if match is None:
                self.unread_lines += may_matter(line) or _CUT_LEADER.fullmatch(line) is not None
                return ()
            thread, at_us = self._who_and_when(match)
        rest = line[match.end() :]
        if self._ending:
            return (*self._end_until(at_us, thread), *self._call(thread, at_us, rest))
        return self._call(thread, at_us, rest)

    def _who_and_when(self, leader: re.Match[str]) -> tuple[int, int]:
        """Give the thread, and the time in microseconds, of the beginning of a line."""
        pid, thread_id, seconds, fraction, hour, minute, second, day_fraction = leader.groups()
        if seconds is not None:
            at_us = self._clock.seconds(int(seconds), microseconds(fraction))
        else:
            at_us = self._clock.of_day(int(hour), int(minute), int(second), microseconds(day_fraction))
        return int(pid or thread_id or 0), at_us

    def _call(self, thread: int, at_us: int, rest: str) -> tuple[Event, ...]:
        is_begin = rest.startswith("ioctl(")
        if not is_begin and not rest.startswith(RESUMED):
            return self._other(thread, at_us, rest)
        took_us = None
        if rest.endswith(">") and (took := _DURATION.match(rest, rest.rfind("<"))) is not None:
            took_us = int(took[1]) * 1_000_000 + microseconds(took[2])
            rest = rest[: took.start()].rstrip()
        words = words_of(rest)
        return self._ioctl(thread, at_us, words, took_us) if is_begin else self._resumed(thread, at_us, words)

    def _end_until(self, at_us: int | None, thread: int | None = None) -> Iterator[Event]:
        """End the calls that -T says are over by a time, and whatever a thread that goes on was at."""
        while self._ending and (
            at_us is None or self._ending[0][0] <= at_us or any(one[2].thread == thread for one in self._ending)
        ):
            yield _ends(heapq.heappop(self._ending)[2])

    def _ioctl(self, thread: int, at_us: int, words: Words, took_us: int | None) -> tuple[Event, ...]:
        # A thread that makes a call has ended its last one, whether or not the recording shows it.
        lost = self._abandon(thread) if thread in self._begun else ()
        request = words.request
        if request is None:
            self.unread_lines += words.may_matter
            return lost
        self.ioctls += 1
        self.kvm_calls += request.startswith("KVM_")
        if request == "KVM_RUN":
            run = Run(thread, words.fd, at_us, vcpu=words.vcpu)
            return lost + self._start(run, words, took_us, RunBegins)
        if request in SLOT_CALLS:
            call = SlotCall(thread, words.fd, at_us, words.region, self.lines)
            if words.region is None and words.has_contents:
                return lost + self._lost(call)
            return lost + self._start(call, words, took_us, SlotCallBegins)
        if words.ending is Ending.UNFINISHED:
            self.unfinished += 1
            self._begun[thread] = words
        elif request in WANTED:
            return lost + self._made(thread, at_us, words, words)
        else:
            self.unread_lines += words.may_matter
        return lost

    def _start(
        self,
        call: Run | SlotCall,
        words: Words,
        took_us: int | None,
        begins: Callable[..., RunBegins | SlotCallBegins],
    ) -> tuple[Event, ...]:
        if words.ending in _GOES_ON:
            self.unfinished += 1
            self._begun[call.thread] = call
            return (begins(call),)
        is_run = isinstance(call, Run)
        if words.ending is Ending.UNREADABLE or (words.ending is Ending.UNKNOWN and not is_run):
            return self._lost(call)
        call.errno = words.errno
        if took_us is None:
            self.untimed_runs += is_run
            return (begins(call), _ends(call))
        call.end_us = call.begin_us + took_us
        heapq.heappush(self._ending, (call.end_us, self.lines, call))
        return (begins(call),)

    def _resumed(self, thread: int, at_us: int, words: Words) -> tuple[Event, ...]:
        # The first thread has no number on the lines that it wrote before there was a second one.
        call = self._begun.pop(thread, None) or self._begun.pop(0, None)
        if call is None:
            # The recording began within the call, or the line of its begin could not be read: it may have been any.
            self.unread_lines += 1
            return ()
        if isinstance(call, Words):
            return self._made(thread, at_us, call, words)
        if isinstance(call, Run) and words.ending in _LEFT_ALONE:
            # The tracer, or the thread's own end, has ended it.
            call.end_us = at_us
            return (RunEnds(call),)
        if words.ending is not Ending.ANSWERED:
            return self._lost(call)
        call.end_us = at_us
        call.errno = words.errno
        return (_ends(call),)

    def _made(self, thread: int, at_us: int, begun: Words, ended: Words) -> tuple[Event, ...]:
        """Give the event of a call that makes a file descriptor, or is about dirty logs."""
        if begun.request in LOG_CALLS:
            return (LogCall(thread, begun.fd),)
        if begun.request not in MAKERS or ended.result is None or ended.errno is not None:
            return ()
        return (FdMade(thread, at_us, MAKERS[begun.request], begun.fd, ended.result, begun.vcpu),)

    def _other(self, thread: int, at_us: int, rest: str) -> tuple[Event, ...]:
        """Read a line that is no ioctl: another call, a tracepoint, a signal, an end."""
        if rest.startswith(("kvm_", "kvm:kvm_")):
            self.kvm_calls += 1
            events = tracepoint(thread, at_us, rest.removeprefix("kvm:"))
            self.unread_lines += events is None
            return events or ()
        if "ioctl(".startswith(rest) or RESUMED.startswith(rest) or may_matter(rest):
            self.unread_lines += 1
            return ()
        if rest.startswith("close(") and (closed := _CLOSE.match(rest)) is not None:
            return (FdClosed(thread, int(closed[1])),)
        if rest.startswith(("clone", "fork", "vfork")) and (made := _CLONE.match(rest)) is not None:
            return (ThreadMade(thread, int(made[3]), "CLONE_FILES" in made[2]),)
        return self._abandon(thread) if rest.startswith("+++") else ()

    def _abandon(self, thread: int) -> tuple[Event, ...]:
        """Let go of a call whose end nobody will see."""
        begun = self._begun.pop(thread, None)
        if isinstance(begun, Run):
            return (RunEnds(begun),)
        return self._lost(begun) if isinstance(begun, SlotCall) else ()

    def _lost(self, call: Run | SlotCall) -> tuple[Event, ...]:
        """Let go of a call whose outcome cannot be read: a slot call may have changed nobody knows what."""
        self.unread_lines += 1
        if isinstance(call, Run):
            return (RunEnds(call),)
        call.region = None
        return (SlotCallBegins(call), SlotCallEnds(call))


def tracepoint(thread: int, at_us: int, text: str) -> tuple[Event, ...] | None:
    """Make an event of what a tracer printed of one of KVM's tracepoints, beginning with its name.

    Returns:
        The event; nothing of a tracepoint that does not matter; None of one that does and cannot be read.
    """
    if text.startswith(("kvm_entry", "kvm_exit")):
        return (GuestMode(thread, at_us, text.startswith("kvm_entry")),)
    if not text.startswith("kvm_vcpu_wakeup"):
        return ()
    if (slept := _WAKEUP.search(text)) is None:
        return None
    return (Woken(thread, at_us, int(slept[1] or slept[2]) // 1_000),)


def _ends(call: Run | SlotCall) -> Event:
    return RunEnds(call) if isinstance(call, Run) else SlotCallEnds(call)
