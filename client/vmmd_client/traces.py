"""Recordings of what a VMM asked of KVM: `strace -f -ttt -e trace=ioctl`, as text or gzipped.

`read_trace` takes the memslot calls and the KVM_RUNs out of a recording; `updates` groups the slot calls to memory map
updates. A line that should be one of them but cannot be read is counted, never guessed at. What strace does not show
(the contents of KVM_SET_USER_MEMORY_REGION2, whether a vCPU inside KVM_RUN is in guest mode or asleep) is not made up.
"""

import gzip
import itertools
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from .memslots import MemFlag, Memslot, SlotMap, any_overlap, cut, with_call

DEFAULT_GAP_US = 5_000
"""Slot calls further apart than this belong to different updates, in microseconds."""

OPEN_GAP_US = 100_000
"""The same while a range that the update took away has not been given back once: a VMM's thread that is preempted
between its delete and its create has not ended its update."""

_GZIP_MAGIC = b"\x1f\x8b"

_LINE = re.compile(
    r"(?:\[pid\s+)?(?P<thread>\d+)\]?\s+(?P<seconds>\d+)\.(?P<micros>\d{6})\s+"
    r"(?:(?P<resumed><\.\.\. ioctl resumed>)|ioctl\((?P<fd>\d+), (?P<request>\w+))(?P<rest>.*)"
)
_RESULT = re.compile(r"\)\s+= (?P<value>-?\d+|\?)(?: (?P<errno>E\w+))?")
_NUMBER = re.compile(r"0x[0-9a-f]+|0|[1-9]\d*")
_REGION = re.compile(
    r"\{slot=(?P<slot>\d+), flags=(?P<flags>[^,]+), guest_phys_addr=(?P<guest_phys_addr>0x[0-9a-f]+|\d+), "
    r"memory_size=(?P<memory_size>0x[0-9a-f]+|\d+), userspace_addr=(?P<userspace_addr>0x[0-9a-f]+|\d+)\}"
)


class TraceError(ValueError):
    """A file that is no recording: it names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class SlotCall:
    """One KVM_SET_USER_MEMORY_REGION.

    Attributes:
        thread: the caller's thread id.
        vm_fd: the VM's file descriptor.
        begin_us: when the call began, in microseconds of the recording's clock.
        region: the call's arguments.
        errno: the error's name ("EEXIST"), or None where the call succeeded.
    """

    thread: int
    vm_fd: int
    begin_us: int
    region: Memslot
    errno: str | None


@dataclass(frozen=True, slots=True)
class Run:
    """One KVM_RUN.

    Attributes:
        thread: the vCPU thread's id.
        vcpu_fd: the vCPU's file descriptor.
        begin_us: when the call began, in microseconds of the recording's clock.
        end_us: when it is known to have ended; None where strace did not see it resumed, or printed it as one line.
        errno: the error's name, or None.
    """

    thread: int
    vcpu_fd: int
    begin_us: int
    end_us: int | None
    errno: str | None


@dataclass(frozen=True, slots=True)
class Trace:
    """What one recording holds, in the order in which the calls began.

    Attributes:
        slot_calls: the memslot calls whose outcome was recorded.
        runs: the KVM_RUNs.
        unread_lines: how many lines name a memslot call or a KVM_RUN but could not be read.
    """

    slot_calls: tuple[SlotCall, ...]
    runs: tuple[Run, ...]
    unread_lines: int


@dataclass(frozen=True, slots=True)
class Hole:
    """A range that had memory before and after an update and none in between.

    Attributes:
        guest_phys_addr: the range's first byte.
        size: its size in bytes.
        opened_by: index in the update of the call that took the memory away.
        filled_by: index of the call that gave it back.
    """

    guest_phys_addr: int
    size: int
    opened_by: int
    filled_by: int


@dataclass(frozen=True, slots=True)
class Update:
    """One memory map update: a run of slot calls on one VM by one thread.

    Attributes:
        thread: the caller's thread id.
        vm_fd: the VM's file descriptor.
        calls: the calls, in their order; refused ones included.
        before: the slot map that stood when the update began.
    """

    thread: int
    vm_fd: int
    calls: tuple[SlotCall, ...]
    before: SlotMap

    def states(self) -> list[SlotMap]:
        """Give the maps that stood: before the update, then after each of its calls."""
        states = [self.before]
        for call in self.calls:
            states.append(states[-1] if call.errno else with_call(states[-1], call.region))
        return states

    @property
    def after(self) -> SlotMap:
        """The slot map that stood when the update had ended."""
        return self.states()[-1]

    @property
    def needs_hold(self) -> bool:
        """Whether a deleted range overlaps an added one: while that is mended, the guest falls through."""
        deleted: list[Memslot] = []
        added: list[Memslot] = []
        for old, new in itertools.pairwise(self.states()):
            deleted += _places_only_in(old, new)
            added += _places_only_in(new, old)
        return any_overlap(deleted, added)

    def holes(self) -> list[Hole]:
        """Give the ranges that had memory before and after the update and none in between, in ascending order.

        A range that lost its memory twice is given twice. Neighbours that share both calls are one hole.
        """
        holes: list[Hole] = []
        for piece in cut(self.states()):
            if piece.backings[0] is None or piece.backings[-1] is None:
                continue
            for opened_by, filled_by in _gaps([backing is not None for backing in piece.backings]):
                last = holes[-1] if holes else None
                if (
                    last is not None
                    and last.guest_phys_addr + last.size == piece.guest_phys_addr
                    and (last.opened_by, last.filled_by) == (opened_by, filled_by)
                ):
                    holes[-1] = Hole(last.guest_phys_addr, last.size + piece.size, opened_by, filled_by)
                else:
                    holes.append(Hole(piece.guest_phys_addr, piece.size, opened_by, filled_by))
        return holes


def _places_only_in(one: SlotMap, other: SlotMap) -> list[Memslot]:
    """Give the slots that the other map does not have in the same place; a change of flags moves nothing."""

    def place(slot: Memslot | None) -> object:
        return slot and (slot.guest_phys_addr, slot.memory_size, slot.userspace_addr)

    return [slot for slot in one.values() if place(other.get(slot.slot)) != place(slot)]


def _gaps(present: list[bool]) -> list[tuple[int, int]]:
    """Give, for each stretch of absence, the index of the call that began it and of the one that ended it."""
    gaps = []
    opened_by = 0
    for call, (old, new) in enumerate(itertools.pairwise(present)):
        if old and not new:
            opened_by = call
        elif new and not old:
            gaps.append((opened_by, call))
    return gaps


def shipped_trace() -> Trace:
    """Read the recording that comes with the package: QEMU 7.2 boots a `pc` machine with 256 MiB and two vCPUs."""
    name = "qemu-7.2-pc-boot.strace.gz"
    with resources.as_file(resources.files(__package__) / "data" / name) as path:
        return read_trace(path)


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a recording from a file, plain or gzipped.

    Raises:
        TraceError: the file cannot be read, is not whole, or holds no line of an ioctl.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path} cannot be read as a recording: {error}") from error
    lines = data.decode("utf-8", errors="replace").splitlines()
    if not any("ioctl" in line for line in lines):
        raise TraceError(f"{path} holds no ioctl; record one with: strace -f -ttt -e trace=ioctl -o FILE COMMAND")
    return parse_trace(lines)


def parse_trace(lines: Iterable[str]) -> Trace:
    """Read a recording from its lines; see `Trace` for what is kept."""
    reader = _Reader()
    for line in lines:
        reader.feed(line)
    return reader.trace()


def updates(trace: Trace, *, gap_us: int = DEFAULT_GAP_US) -> list[Update]:
    """Group a recording's slot calls to updates.

    An update is a run of slot calls on one VM by one thread, with no KVM_RUN of that thread between them and no two
    calls further apart than the gap; while a range that it took away was never given back, than `OPEN_GAP_US`.

    Args:
        trace: the recording.
        gap_us: the longest time from one call's begin to the next one's, in microseconds.

    Returns:
        The updates, in the order in which they began.
    """
    found: list[Update] = []
    growing: dict[tuple[int, int], int] = {}
    maps: dict[int, SlotMap] = {}
    events: list[SlotCall | Run] = [*trace.slot_calls, *trace.runs]
    for event in sorted(events, key=lambda event: event.begin_us):
        if isinstance(event, Run):
            for key in [key for key in growing if key[0] == event.thread]:
                del growing[key]
            continue
        key = (event.thread, event.vm_fd)
        standing = maps.get(event.vm_fd, {})
        if key in growing and _belongs(event, found[growing[key]], gap_us):
            update = found[growing[key]]
            found[growing[key]] = replace(update, calls=(*update.calls, event))
        else:
            growing[key] = len(found)
            found.append(Update(event.thread, event.vm_fd, (event,), standing))
        if event.errno is None:
            maps[event.vm_fd] = with_call(standing, event.region)
    return found


def _belongs(call: SlotCall, update: Update, gap_us: int) -> bool:
    """Tell by the time since an update's last call whether the next call of its thread belongs to it."""
    since_us = call.begin_us - update.calls[-1].begin_us
    if since_us <= gap_us or since_us > OPEN_GAP_US:
        return since_us <= gap_us
    for piece in cut(update.states()):
        present = [backing is not None for backing in piece.backings]
        if not present[-1] and not _gaps(present):
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Begun:
    """A call whose line ended in `<unfinished ...>`: it waits for the thread's `resumed`."""

    request: str
    fd: int
    begin_us: int
    text: str


class _Reader:
    """Takes lines one by one and keeps, for each thread, the call that it has not finished."""

    _REQUESTS = ("KVM_SET_USER_MEMORY_REGION", "KVM_RUN")

    def __init__(self) -> None:
        self._begun: dict[int, _Begun] = {}
        self._slot_calls: list[SlotCall] = []
        self._runs: list[Run] = []
        self._unread_lines = 0

    def feed(self, line: str) -> None:
        """Take one line; lines of other calls are passed over."""
        match = _LINE.match(line)
        if match is None:
            self._unread_lines += any(f"{request}," in line for request in self._REQUESTS)
            return
        thread = int(match["thread"])
        now_us = int(match["seconds"]) * 1_000_000 + int(match["micros"])
        if match["resumed"]:
            begun = self._begun.pop(thread, None)
            if begun is not None:
                self._end(thread, begun, begun.text + match["rest"], now_us)
            return
        # A thread that makes a call has ended its last one, whether or not the recording shows it.
        self._abandon(thread)
        if match["request"] not in self._REQUESTS:
            return
        begun = _Begun(match["request"], int(match["fd"]), now_us, match["rest"])
        if begun.text.endswith("<unfinished ...>"):
            self._begun[thread] = begun
        else:
            self._end(thread, begun, begun.text, None)

    def trace(self) -> Trace:
        """Give what was read; a vCPU that never came back is a run without an end."""
        for thread in list(self._begun):
            self._abandon(thread)
        return Trace(
            tuple(sorted(self._slot_calls, key=lambda call: call.begin_us)),
            tuple(sorted(self._runs, key=lambda run: run.begin_us)),
            self._unread_lines,
        )

    def _end(self, thread: int, begun: _Begun, text: str, end_us: int | None) -> None:
        result = _RESULT.search(text)
        if result is None:
            self._unread_lines += 1
        elif begun.request == "KVM_RUN":
            self._runs.append(Run(thread, begun.fd, begun.begin_us, end_us, result["errno"]))
        else:
            slot = _memslot(text)
            if slot is None:
                self._unread_lines += 1
            else:
                self._slot_calls.append(SlotCall(thread, begun.fd, begun.begin_us, slot, result["errno"]))

    def _abandon(self, thread: int) -> None:
        begun = self._begun.pop(thread, None)
        if begun is None:
            return
        if begun.request == "KVM_RUN":
            self._runs.append(Run(thread, begun.fd, begun.begin_us, None, None))
        else:
            self._unread_lines += 1


def _memslot(text: str) -> Memslot | None:
    """Make a memslot of the words that strace printed; None where they are not its usual ones."""
    match = _REGION.search(text)
    flags = None if match is None else _flags(match["flags"])
    if match is None or flags is None:
        return None
    return Memslot(
        slot=int(match["slot"]),
        flags=flags,
        guest_phys_addr=int(match["guest_phys_addr"], 0),
        memory_size=int(match["memory_size"], 0),
        userspace_addr=int(match["userspace_addr"], 0),
    )


def _flags(text: str) -> int | None:
    bits = 0
    for word in text.split("|"):
        name = word.removeprefix("KVM_MEM_")
        if name in MemFlag.__members__:
            bits |= MemFlag[name]
        elif (number := _NUMBER.match(word)) is not None:
            bits |= int(number[0], 0)
        else:
            return None
    return bits
