"""Reads what `strace -f -e trace=ioctl` printed, with -ttt, -tt or -r, with or without -y and -T: lines in, events out.

A line that should be a slot call or a KVM_RUN but cannot be read is counted, never guessed at. Calls that other calls
interrupt ("<unfinished ...>", "<... ioctl resumed>") are put together again by their thread. Beside the ioctls it
understands close and the clone family where they were recorded too, and lines of KVM's tracepoints behind strace's
usual beginning, as `docs/audit/kvm-ioctls.bt` prints them. It does no I/O.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from ..memslots import MemFlag, Memslot
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

SLOT_CALLS = frozenset({"KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"})
LOG_CALLS = frozenset({"KVM_GET_DIRTY_LOG", "KVM_CLEAR_DIRTY_LOG", "KVM_RESET_DIRTY_RINGS"})
_MAKERS = {"KVM_CREATE_VM": "vm", "KVM_CREATE_VCPU": "vcpu"}
_WANTED = frozenset({"KVM_RUN"}) | SLOT_CALLS | LOG_CALLS | _MAKERS.keys()
_MUST_READ = ("KVM_SET_USER_MEMORY_REGION", "KVM_RUN")

_UNFINISHED = "<unfinished ...>"

# The beginning of every line: who, and when. A number in front of a time is a thread; the time stands alone where
# strace followed one thread only.
_LEADER = re.compile(
    r"(?:\[pid\s+(\d+)\]\s+|\s*(\d+)\s+(?=[\d\s]))?\s*"
    r"(?:(\d{1,12})\.(\d{3,9})|(\d\d):(\d\d):(\d\d)\.(\d{3,9}))(?:\s+\(\+\s*\d+\.\d+\))?\s+(?=\S)"
)
_IOCTL = re.compile(r"ioctl\((\d{1,9})(?:<[^>]*>)?, (\w+)")
_RESULT = re.compile(r"\)\s+= (-?\d{1,18}|\?)(?:<[^>]*>)?(?: (E\w+))?")
_DURATION = re.compile(r"<(\d{1,9})\.(\d{3,9})>$")
_VCPU_ID = re.compile(r"KVM_CREATE_VCPU, (\d{1,9}|0x[0-9a-f]{1,8})")
_CLOSE = re.compile(r"close\((\d{1,9})(?:<[^>]*>)?\)?.*= 0")
_CLONE = re.compile(r"(clone3?|fork|vfork)\b(.*)\)\s+= (\d{1,9})")
_WAKEUP = re.compile(r"(?:wait|poll) time (\d{1,18}) ns")
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
        unread_lines: how many of them name a slot call or a KVM_RUN but could not be read, or never got an outcome.
        ioctls: how many calls it has read.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.unread_lines = 0
        self.ioctls = 0
        self._clock = Clock()
        self._begun: dict[int, tuple[SlotCall | Run | str, int, str]] = {}

    def read(self, lines: Iterable[str]) -> Iterator[Event]:
        """Read all lines, and at the end let go of the calls that never ended."""
        for line in lines:
            yield from self.feed(line)
        for thread in list(self._begun):
            yield from self._abandon(thread)

    def feed(self, line: str) -> Iterable[Event]:
        """Read one line; lines of other calls give no event."""
        self.lines += 1
        line = (line if len(line) <= MOST_OF_A_LINE else line[:MOST_OF_A_LINE]).rstrip()
        match = _LEADER.match(line)
        if match is None:
            self.unread_lines += any(f"{request}" in line for request in _MUST_READ)
            return ()
        pid, thread_id, seconds, fraction, hour, minute, second, day_fraction = match.groups()
        if seconds is not None:
            at_us = self._clock.seconds(int(seconds), microseconds(fraction))
        else:
            at_us = self._clock.of_day(int(hour), int(minute), int(second), microseconds(day_fraction))
        thread = int(pid or thread_id or 0)
        rest = line[match.end() :]
        if rest.startswith("ioctl("):
            return self._ioctl(thread, at_us, rest)
        if rest.startswith("<... ioctl resumed>"):
            return self._resumed(thread, at_us, rest)
        return self._other(thread, at_us, rest)

    def _ioctl(self, thread: int, at_us: int, rest: str) -> Iterable[Event]:
        # A thread that makes a call has ended its last one, whether or not the recording shows it.
        lost = list(self._abandon(thread)) if thread in self._begun else []
        match = _IOCTL.match(rest)
        if match is None:
            self.unread_lines += any(request in rest for request in _MUST_READ)
            return lost
        request = match[2]
        self.ioctls += 1
        if request not in _WANTED:
            # A clipped name may have been one that matters.
            self.unread_lines += rest == match[0] and request.startswith("KVM_") and _clipped(request)
            return lost
        fd = int(match[1])
        if request == "KVM_RUN":
            return lost + self._start(thread, at_us, rest, Run(thread, fd, at_us), RunBegins)
        if request in SLOT_CALLS:
            call = SlotCall(thread, fd, at_us, memslot(rest), self.lines)
            unread = call.region is None and "{" in rest
            return lost + (self._lost(call) if unread else self._start(thread, at_us, rest, call, SlotCallBegins))
        if rest.endswith(_UNFINISHED):
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
        if rest.endswith(_UNFINISHED):
            self._begun[thread] = (call, 0, "")
            return [begins(call)]
        result = _RESULT.search(rest)
        if result is None or result[1] == "?":
            return self._lost(call)
        took = _DURATION.search(rest) if rest.endswith(">") else None
        if took is not None:
            call.end_us = at_us + int(took[1]) * 1_000_000 + microseconds(took[2])
        call.errno = result[2]
        return [begins(call), _ends(call)]

    def _resumed(self, thread: int, at_us: int, rest: str) -> Iterable[Event]:
        # The first thread has no number on the lines that it wrote before there was a second one.
        begun = self._begun.pop(thread, None) or self._begun.pop(0, None)
        if begun is None:
            return ()
        call, fd, text = begun
        if isinstance(call, str):
            return self._made(thread, at_us, call, fd, text + rest)
        result = _RESULT.search(rest)
        if result is None or result[1] == "?":
            return self._lost(call)
        call.end_us = at_us
        call.errno = result[2]
        return (_ends(call),)

    def _made(self, thread: int, at_us: int, request: str, fd: int, text: str) -> list[Event]:
        """Give the event of a call that makes a file descriptor, or is about dirty logs."""
        if request in LOG_CALLS:
            return [LogCall(thread, fd)]
        result = _RESULT.search(text)
        if result is None or result[1] == "?" or result[2] is not None:
            return []
        number = _VCPU_ID.search(text)
        vcpu = None if number is None else int(number[1], 0)
        return [FdMade(thread, at_us, _MAKERS[request], fd, int(result[1]), vcpu)]

    def _other(self, thread: int, at_us: int, rest: str) -> Iterable[Event]:
        """Read a line that is no ioctl: another call, a tracepoint, a signal, an end."""
        if rest.startswith(("kvm_", "kvm:kvm_")):
            return tracepoint(thread, at_us, rest.removeprefix("kvm:"))
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


def tracepoint(thread: int, at_us: int, text: str) -> Iterable[Event]:
    """Make an event of what a tracer printed of one of KVM's tracepoints, beginning with its name."""
    if text.startswith(("kvm_entry", "kvm_exit")):
        return (GuestMode(thread, at_us, text.startswith("kvm_entry")),)
    if text.startswith("kvm_vcpu_wakeup") and (slept := _WAKEUP.search(text)) is not None:
        return (Woken(thread, at_us, int(slept[1]) // 1_000),)
    return ()


def _ends(call: Run | SlotCall) -> Event:
    return RunEnds(call) if isinstance(call, Run) else SlotCallEnds(call)


def _clipped(name: str) -> bool:
    return any(request.startswith(name) for request in _MUST_READ)


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
