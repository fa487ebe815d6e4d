"""Reads what `strace -f -e trace=ioctl` printed, with -ttt, -tt or -r, with or without -y and -T: lines in, events out.

A line that is, or may have been, a slot call or a KVM_RUN but cannot be read is counted, never guessed at. Calls that
other calls interrupt ("<unfinished ...>", "<... ioctl resumed>") are put together again by their thread; a call on one
line of which -T tells that it took longer than until the next line ends in its own time, as it does where the files of
`strace -ff` were merged. Beside the ioctls it understands close and the clone family where they were recorded too, and
lines of KVM's tracepoints behind strace's usual beginning, as `docs/audit/kvm-ioctls.bt` prints them. It does no I/O.
"""

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

from ..slots.memslots import MemFlag, Memslot
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
from .requests import LOG_CALLS, MAKERS, SLOT_CALLS, WANTED, name_of

_MUST_READ = ("KVM_SET_USER_MEMORY_REGION", "KVM_RUN")

_UNFINISHED = "<unfinished ...>"
_DETACHED = "<detached ...>"
_RESUMED = "<... ioctl resumed>"

# The beginning of every line: who, and when. A number in front of a time is a thread; the time stands alone where
# strace followed one thread only.
_LEADER = re.compile(
    r"(?:\[pid\s+(\d+)\]\s+|\s*(\d+)\s+(?=[\d\s]))?\s*"
    r"(?:(\d{1,12})\.(\d{3,9})|(\d\d):(\d\d):(\d\d)\.(\d{3,9}))(?:\s+\(\+\s*\d+\.\d+\))?\s+(?=\S)"
)
# What is left of such a beginning where a line was cut off in it.
_CUT_LEADER = re.compile(r"\[pid|(?:\[pid\s+\d+\]\s+)?\s*[\d.:+() ]*\d[\d.:+() ]*")
_IOCTL = re.compile(r"ioctl\((\d{1,9}|0x[0-9a-f]{1,8})(<[^>]*>{1,3})?, (_IO[A-Z]{0,2}\([^)]{1,80}\)?|\w+)")
_VCPU_FD = re.compile(r"kvm-vcpu:(\d{1,9})")
_RESULT = re.compile(r"\)\s+= (-?\d{1,18}|\?)(?:<[^>]*>)?(?: (E\w+))?")
_DURATION = re.compile(r"<(\d{1,9})\.(\d{3,9})>$")
_VCPU_ID = re.compile(r"KVM_CREATE_VCPU, (\d{1,9}|0x[0-9a-f]{1,8})")
_CLOSE = re.compile(r"close\((\d{1,9})(?:<[^>]*>)?\)?.*= 0")
_CLONE = re.compile(r"(clone3?|fork|vfork)\b(.*)\)\s+= (\d{1,9})")
_WAKEUP = re.compile(r"(?:wait|poll) time (\d{1,18}) ns|\(ns: (\d{1,18})")
_NUMBER = re.compile(r"0x[0-9a-f]{1,16}|0|[1-9]\d{0,19}")
_REGION = re.compile(
    r"\{slot=(\d{1,10}), flags=([^,]{1,200}), guest_phys_addr=(0x[0-9a-f]{1,16}|0|[1-9]\d{0,19}), "
    r"memory_size=(0x[0-9a-f]{1,16}|0|[1-9]\d{0,19}), userspace_addr=(0x[0-9a-f]{1,16}|0|[1-9]\d{0,19})[,}]"
)
_U64 = 1 << 64

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
        self._begun: dict[int, tuple[SlotCall | Run | str, int, str]] = {}
        self._ending: list[tuple[int, int, Run | SlotCall]] = []

    def read(self, lines: Iterable[str]) -> Iterator[Event]:
        """Read all lines, and at the end let go of the slot calls that never ended; a KVM_RUN goes on until then."""
        for line in lines:
            yield from self.feed(line)
        yield from self._end_until(None)
        for thread, begun in list(self._begun.items()):
            if isinstance(begun[0], SlotCall):
                yield from self._abandon(thread)

    def feed(self, line: str) -> Iterable[Event]:
        """Read one line; lines of other calls give no event."""
        self.lines += 1
        line = (line if len(line) <= MOST_OF_A_LINE else line[:MOST_OF_A_LINE]).rstrip()
        match = _LEADER.match(line)
        if match is None:
            self.unread_lines += _may_matter(line) or _CUT_LEADER.fullmatch(line) is not None
            return ()
        pid, thread_id, seconds, fraction, hour, minute, second, day_fraction = match.groups()
        if seconds is not None:
            at_us = self._clock.seconds(int(seconds), microseconds(fraction))
        else:
            at_us = self._clock.of_day(int(hour), int(minute), int(second), microseconds(day_fraction))
        thread = int(pid or thread_id or 0)
        rest = line[match.end() :]
        if self._ending:
            return [*self._end_until(at_us, thread), *self._call(thread, at_us, rest)]
        return self._call(thread, at_us, rest)

    def _call(self, thread: int, at_us: int, rest: str) -> Iterable[Event]:
        if rest.startswith("ioctl("):
            return self._ioctl(thread, at_us, rest)
        if rest.startswith(_RESUMED):
            return self._resumed(thread, at_us, rest)
        return self._other(thread, at_us, rest)

    def _end_until(self, at_us: int | None, thread: int | None = None) -> Iterator[Event]:
        """End the calls that -T says are over by a time, and whatever a thread that goes on was at."""
        while self._ending and (
            at_us is None or self._ending[0][0] <= at_us or any(one[2].thread == thread for one in self._ending)
        ):
            yield _ends(heapq.heappop(self._ending)[2])

    def _ioctl(self, thread: int, at_us: int, rest: str) -> Iterable[Event]:
        # A thread that makes a call has ended its last one, whether or not the recording shows it.
        lost = list(self._abandon(thread)) if thread in self._begun else []
        match = _IOCTL.match(rest)
        if match is None or "ioctl(" in (behind := rest[match.end() :]) or _RESUMED in behind:
            # Cut off, or two lines that ran into one another: what either of them did is not known.
            self.unread_lines += match is not None or ")" not in rest or _may_matter(rest)
            return lost
        request = name_of(match[3])
        self.ioctls += 1
        self.kvm_calls += request.startswith("KVM_")
        if request not in WANTED and not rest.endswith(_UNFINISHED):
            # A clipped name may have been one that matters.
            self.unread_lines += rest == match[0] and _clipped(request)
            return lost
        fd = int(match[1], 0)
        if request == "KVM_RUN":
            vcpu = None if match[2] is None else _VCPU_FD.search(match[2])
            run = Run(thread, fd, at_us, vcpu=None if vcpu is None else int(vcpu[1]))
            return lost + self._start(thread, at_us, rest, run, RunBegins)
        if request in SLOT_CALLS:
            call = SlotCall(thread, fd, at_us, memslot(rest), self.lines)
            unread = call.region is None and "{" in rest
            return lost + (self._lost(call) if unread else self._start(thread, at_us, rest, call, SlotCallBegins))
        if rest.endswith(_UNFINISHED):
            self.unfinished += 1
            self._begun[thread] = (request, fd, rest)
            return lost
        return lost + self._made(thread, at_us, request, fd, rest)

    def _start(
        self,
        thread: int,
        at_us: int,
        rest: str,
        call: Run | SlotCall,
        begins: Callable[..., RunBegins | SlotCallBegins],
    ) -> list[Event]:
        if rest.endswith((_UNFINISHED, _DETACHED)):
            self.unfinished += 1
            self._begun[thread] = (call, 0, "")
            return [begins(call)]
        result = _RESULT.search(rest)
        if result is None or (result[1] == "?" and isinstance(call, SlotCall)):
            return self._lost(call)
        call.errno = result[2]
        took = _DURATION.search(rest) if rest.endswith(">") else None
        if took is None:
            self.untimed_runs += isinstance(call, Run)
            return [begins(call), _ends(call)]
        call.end_us = at_us + int(took[1]) * 1_000_000 + microseconds(took[2])
        heapq.heappush(self._ending, (call.end_us, self.lines, call))
        return [begins(call)]

    def _resumed(self, thread: int, at_us: int, rest: str) -> Iterable[Event]:
        # The first thread has no number on the lines that it wrote before there was a second one.
        begun = self._begun.pop(thread, None) or self._begun.pop(0, None)
        if begun is None:
            # The recording began within the call, or the line of its begin could not be read: it may have been any.
            self.unread_lines += 1
            return ()
        call, fd, text = begun
        if isinstance(call, str):
            return self._made(thread, at_us, call, fd, text + rest)
        result = _RESULT.search(rest)
        if isinstance(call, Run) and (rest.endswith(_DETACHED) or (result is not None and result[1] == "?")):
            # The tracer, or the thread's own end, has ended it.
            call.end_us = at_us
            return (RunEnds(call),)
        if result is None or result[1] == "?":
            return self._lost(call)
        call.end_us = at_us
        call.errno = result[2]
        return (_ends(call),)

    def _made(self, thread: int, at_us: int, request: str, fd: int, text: str) -> list[Event]:
        """Give the event of a call that makes a file descriptor, or is about dirty logs."""
        if request in LOG_CALLS:
            return [LogCall(thread, fd)]
        if request not in MAKERS:
            return []
        result = _RESULT.search(text)
        if result is None or result[1] == "?" or result[2] is not None:
            return []
        number = _VCPU_ID.search(text)
        vcpu = None if number is None else int(number[1], 0)
        return [FdMade(thread, at_us, MAKERS[request], fd, int(result[1]), vcpu)]

    def _other(self, thread: int, at_us: int, rest: str) -> Iterable[Event]:
        """Read a line that is no ioctl: another call, a tracepoint, a signal, an end."""
        if rest.startswith(("kvm_", "kvm:kvm_")):
            self.kvm_calls += 1
            events = tracepoint(thread, at_us, rest.removeprefix("kvm:"))
            self.unread_lines += events is None
            return events or ()
        if "ioctl(".startswith(rest) or _RESUMED.startswith(rest) or _may_matter(rest):
            self.unread_lines += 1
            return ()
        if rest.startswith("close(") and (closed := _CLOSE.match(rest)) is not None:
            return (FdClosed(thread, int(closed[1])),)
        if rest.startswith(("clone", "fork", "vfork")) and (made := _CLONE.match(rest)) is not None:
            return (ThreadMade(thread, int(made[3]), "CLONE_FILES" in made[2]),)
        return self._abandon(thread) if rest.startswith("+++") else ()

    def _abandon(self, thread: int) -> Iterable[Event]:
        """Let go of a call whose end nobody will see."""
        begun = self._begun.pop(thread, None)
        if begun is None or isinstance(begun[0], str):
            return ()
        if isinstance(begun[0], Run):
            return (RunEnds(begun[0]),)
        return self._lost(begun[0])

    def _lost(self, call: Run | SlotCall) -> list[Event]:
        """Let go of a call whose outcome cannot be read: a slot call may have changed nobody knows what."""
        self.unread_lines += 1
        if isinstance(call, Run):
            return [RunEnds(call)]
        call.region = None
        return [SlotCallBegins(call), SlotCallEnds(call)]


def tracepoint(thread: int, at_us: int, text: str) -> Sequence[Event] | None:
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


def _may_matter(text: str) -> bool:
    return any(request in text for request in _MUST_READ)


def _clipped(name: str) -> bool:
    return name.startswith(("0x", "_IO")) or any(request.startswith(name) for request in _MUST_READ)


def memslot(text: str) -> Memslot | None:
    """Make a memslot of the words that strace printed; None where they are not its usual ones."""
    match = _REGION.search(text)
    flags = None if match is None else _flags(match[2])
    if match is None or flags is None:
        return None
    gpa, size, hva = int(match[3], 0), int(match[4], 0), int(match[5], 0)
    if gpa + size > _U64 or hva + size > _U64:
        return None
    return Memslot(int(match[1]), flags, gpa, size, hva)


@lru_cache(maxsize=256)
def _flags(text: str) -> int | None:
    bits = 0
    for word in text.split("|"):
        name = word.removeprefix("KVM_MEM_")
        if name in MemFlag.__members__:
            bits |= MemFlag[name]
        elif name == "GUEST_MEMFD":
            bits |= 4
        elif (number := _NUMBER.match(word)) is not None:
            bits |= int(number[0], 0)
        else:
            return None
    return bits
