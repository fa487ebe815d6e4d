"""Memory map updates, as values: what one run of slot calls took away and gave, and which holes it left meanwhile.

Pure arithmetic over the changes of one update. What no call touched cannot become a hole, so only the changes are
looked at and never the whole map. Address spaces (the upper 16 bits of a slot's id) are maps of their own: a range of
one never fills a hole in another.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..memslots import Memslot
from .events import SlotCall


@dataclass(frozen=True, slots=True)
class Change:
    """What one call of an update did.

    Attributes:
        call: the call; a refused one changed nothing.
        removed: the slot that was there before and is no more in this place; None where there is none.
        added: the slot that is there now and was not before in this place; None where there is none.
    """

    call: SlotCall
    removed: Memslot | None = None
    added: Memslot | None = None


def change(slots: dict[int, Memslot], call: SlotCall) -> Change:
    """Carry a call out on a VM's slots, in place, and tell what it did; a change of flags alone moves nothing."""
    region = call.region
    if region is None or call.errno is not None:
        return Change(call)
    old = slots.get(region.slot)
    if not region.memory_size:
        slots.pop(region.slot, None)
        return Change(call, removed=old)
    slots[region.slot] = region
    if old is not None and _place(old) == _place(region):
        return Change(call)
    return Change(call, removed=old, added=region)


def _place(slot: Memslot) -> tuple[int, int, int]:
    return slot.guest_phys_addr, slot.memory_size, slot.userspace_addr


@dataclass(frozen=True, slots=True)
class Hole:
    """A range that had memory before and after an update and none in between.

    Attributes:
        guest_phys_addr: the range's first byte.
        size: its size in bytes.
        opened_by: index in the update of the call that took the memory away.
        filled_by: index of the call that gave it back.
        open_us: for how long: from the begin of the call that took the memory to the end of the one that gave it
            back, or to its begin where the recording does not tell the end.
        address_space: the address space that it lies in.
    """

    guest_phys_addr: int
    size: int
    opened_by: int
    filled_by: int
    open_us: int = 0
    address_space: int = 0

    @property
    def end(self) -> int:
        """The first address behind the range."""
        return self.guest_phys_addr + self.size


@dataclass(frozen=True, slots=True)
class Piece:
    """A range that each call of an update treated as one.

    Attributes:
        address_space: the address space that it lies in.
        guest_phys_addr: the range's first byte.
        size: its size in bytes.
        turns: (index of a call, whether the range has memory from then on), in the order of the calls. Before the
            first turn it was the other way round. A call that took the memory and gave it is no turn.
        taken_and_given: whether some call took its memory away and some call gave it memory.
    """

    address_space: int
    guest_phys_addr: int
    size: int
    turns: tuple[tuple[int, bool], ...]
    taken_and_given: bool

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """The stretches without memory: for each the call that began it and the call that ended it."""
        return [(one[0], other[0]) for one, other in itertools.pairwise(self.turns) if not one[1] and other[1]]

    @property
    def is_missed(self) -> bool:
        """Whether its memory was taken away and has not been given back once."""
        return bool(self.turns) and not self.turns[-1][1] and not self.gaps


_Range = tuple[int, bool, int, int]
"""A call's index, whether it gave the range, the range's begin and end."""


def pieces(changes: Iterable[Change]) -> list[Piece]:
    """Cut what an update's calls touched at every border, in ascending order by address space and address."""
    ranges: dict[int, list[_Range]] = {}
    for index, step in enumerate(changes):
        for slot, given in ((step.removed, False), (step.added, True)):
            if slot is not None:
                ranges.setdefault(slot.address_space, []).append((index, given, slot.guest_phys_addr, slot.end))
    return [piece for space in sorted(ranges) for piece in _cut(space, ranges[space])]


def _cut(address_space: int, ranges: list[_Range]) -> Iterator[Piece]:
    """Sweep over the borders; what covers a place is kept in the order of the calls."""
    begins: dict[int, list[_Range]] = {}
    ends: dict[int, list[_Range]] = {}
    for touched in ranges:
        begins.setdefault(touched[2], []).append(touched)
        ends.setdefault(touched[3], []).append(touched)
    covering: list[_Range] = []
    for low, high in itertools.pairwise(sorted(begins.keys() | ends.keys())):
        for touched in ends.get(low, ()):
            covering.remove(touched)
        for touched in begins.get(low, ()):
            bisect.insort(covering, touched)
        if covering:
            given = [touched[1] for touched in covering]
            yield Piece(address_space, low, high - low, _turns(covering), any(given) and not all(given))


def _turns(covering: list[_Range]) -> tuple[tuple[int, bool], ...]:
    turns: list[tuple[int, bool]] = []
    for index, given, _, _ in covering:
        if turns and turns[-1][0] == index:
            turns.pop()
        elif not turns or turns[-1][1] != given:
            turns.append((index, given))
    return tuple(turns)


@dataclass(slots=True, eq=False)
class Update:
    """One memory map update: a run of slot calls on one VM by one thread.

    Attributes:
        thread: the caller's thread id.
        vm_fd: the VM's file descriptor.
        map_known: whether the VM's map was known when it began.
        line: the recording's line on which its first call began.
        begin_us: when the first call began.
        end_us: when the last call ended, as far as the recording tells.
        calls: how many calls it has; refused ones included.
        deletes: how many of them took a slot away.
        creates: how many of them made a slot where none was with that id.
        needs_hold: whether a deleted range overlaps an added one: while that is mended, the guest falls through.
        holes: the ranges that had memory before and after it and none in between, in ascending order. A range that
            lost its memory twice is there twice; neighbours that share both calls are one.
        vcpus_inside: the other threads that were inside KVM_RUN at any time between its first delete and its last
            call, without those whose vCPU was never started; ascending.
        in_guest_mode: those of them that tracepoints show in guest mode in that time; None where none were recorded.
        stays: for each KVM_RUN of those threads in that time: thread, begin and end in microseconds. The end is the
            begin where the recording does not tell it, and the recording's end where the call never came back.
        changes: its calls with what each did, in their order; empty where a very long recording's are not kept.
    """

    thread: int
    vm_fd: int
    map_known: bool = True
    line: int = 0
    begin_us: int = 0
    end_us: int = 0
    calls: int = 0
    deletes: int = 0
    creates: int = 0
    needs_hold: bool = False
    holes: tuple[Hole, ...] = ()
    vcpus_inside: tuple[int, ...] = ()
    in_guest_mode: tuple[int, ...] | None = None
    stays: tuple[tuple[int, int, int], ...] = ()
    changes: list[Change] = field(default_factory=list)

    @property
    def exposed(self) -> bool:
        """Whether a deleted range overlaps an added one, and another vCPU was inside KVM_RUN meanwhile."""
        return bool(self.vcpus_inside) and self.needs_hold

    def add(self, step: Change) -> None:
        """Add a call."""
        if not self.changes:
            self.begin_us, self.line = step.call.begin_us, step.call.line
        self.changes.append(step)
        self.end_us = step.call.answered_us
        self.calls += 1
        self.deletes += step.removed is not None and step.added is None
        self.creates += step.added is not None and step.removed is None

    def close(self) -> None:
        """Work out what all of its calls together come to."""
        cut = pieces(self.changes)
        self.needs_hold = any(piece.taken_and_given for piece in cut)
        self.holes = tuple(_holes(cut, self.changes))


def _holes(cut: list[Piece], changes: list[Change]) -> list[Hole]:
    holes: list[Hole] = []
    last: dict[tuple[int, int, int], int] = {}
    for piece in cut:
        if not piece.turns or piece.turns[0][1] or not piece.turns[-1][1]:
            continue
        for opened_by, filled_by in piece.gaps:
            key = piece.address_space, opened_by, filled_by
            start, size, which = piece.guest_phys_addr, piece.size, last.get(key)
            if which is not None and holes[which].end == start:
                start, size = holes[which].guest_phys_addr, holes[which].size + size
            else:
                which = last[key] = len(holes)
            open_us = changes[filled_by].call.answered_us - changes[opened_by].call.begin_us
            holes[which : which + 1] = [Hole(start, size, opened_by, filled_by, open_us, piece.address_space)]
    return holes
