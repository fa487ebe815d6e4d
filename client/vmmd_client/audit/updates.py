"""Memory map updates, as values: what one run of slot calls took away and gave, and which holes it left meanwhile.

Pure arithmetic over the changes of one update, a call at a time: work and memory grow with the calls. What no call
touched cannot become a hole, so only the changes are looked at and never the whole map. Address spaces (the upper 16
bits of a slot's id) are maps of their own: a range of one never fills a hole in another.
"""

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import NamedTuple

from ..slots.memslots import Memslot
from .events import SlotCall
from .ranges import RangeMap, Ranges, without

MOST_HOLES = 10_000
"""How many holes an update has at most, those that stood open longest; the others are dropped."""


class Change(NamedTuple):
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
        filled_by: index of the call that gave it back; the number of the update's calls where that is a call of the
            next update.
        open_us: for how long: from the begin of the call that took the memory to the end of the one that gave it
            back, or to its begin where the recording does not tell the end.
        address_space: the address space that it lies in.
        begin_us: when it opened.
    """

    guest_phys_addr: int
    size: int
    opened_by: int
    filled_by: int
    open_us: int = 0
    address_space: int = 0
    begin_us: int = field(default=0, compare=False)

    @property
    def end_us(self) -> int:
        """When it closed."""
        return self.begin_us + self.open_us

    @property
    def end(self) -> int:
        """The first address behind the range."""
        return self.guest_phys_addr + self.size


_PLACE_OF_HOLE = attrgetter("address_space", "guest_phys_addr", "opened_by")


class _Ground:
    """What an update's calls did to one address space.

    Attributes:
        needs_hold: whether a deleted range overlaps an added one.
        misses_memory: whether a range was taken away and has not been given back once.
        is_missing: whether a range that had memory before has none.
    """

    __slots__ = (
        "_given",
        "_holes",
        "_missed_bytes",
        "_missing",
        "_new",
        "_returned",
        "_taken",
        "_touched",
        "needs_hold",
    )

    def __init__(self) -> None:
        self.needs_hold = False
        self._taken = Ranges()
        self._given = Ranges()
        self._touched = Ranges()
        self._new = Ranges()
        self._returned = Ranges()
        self._missing: RangeMap[tuple[int, int]] = RangeMap()
        self._missed_bytes = 0
        self._holes: list[tuple[int, int, int, int, int, int]] = []

    @property
    def misses_memory(self) -> bool:
        return self._missed_bytes > 0

    @property
    def is_missing(self) -> bool:
        return any(self._new.gaps(low, high) for low, high, _ in self._missing)

    def take(self, low: int, high: int, beside: Memslot | None, opened: tuple[int, int]) -> None:
        """Take memory away with a call that began then; what it gives in the same place was never missing."""
        if not self.needs_hold:
            self._taken.put(low, high)
            self.needs_hold = self._given.overlaps(low, high)
        for begin, end in _without(low, high, beside):
            self._touched.put(begin, end)
            for part in self._missing.put(begin, end, opened):
                self._missed_bytes += self._returned.uncovered(*part)

    def give(self, low: int, high: int, beside: Memslot | None, filled: tuple[int, int]) -> None:
        """Give memory with a call that was answered then."""
        if not self.needs_hold:
            self._given.put(low, high)
            self.needs_hold = self._taken.overlaps(low, high)
        for begin, end in _without(low, high, beside):
            if untouched := self._touched.gaps(begin, end):
                for gap in untouched:
                    self._new.put(*gap)
                self._touched.put(begin, end)
            self.fill(begin, end, filled)

    def fill(self, low: int, high: int, filled: tuple[int, int]) -> bool:
        """End the holes in a range that has memory again; tells whether there was one."""
        ended = self._missing.take(low, high)
        for begin, end, (opened_by, begin_us) in ended:
            self._missed_bytes -= self._returned.uncovered(begin, end)
            self._returned.put(begin, end)
            self._holes.append((filled[1] - begin_us, begin, end, opened_by, filled[0], begin_us))
        return bool(ended)

    def holes(self, address_space: int) -> Iterator[Hole]:
        """Give the holes in ranges that had memory before and have some now, the longest first."""
        left_out = self._new.copy()
        for low, high, _ in self._missing:
            left_out.put(low, high)
        # The first of a hole's fields is for how long it stood open.
        for open_us, low, high, opened_by, filled_by, begin_us in sorted(self._holes, key=itemgetter(0), reverse=True):
            for begin, end in left_out.gaps(low, high):
                yield Hole(begin, end - begin, opened_by, filled_by, open_us, address_space, begin_us)


def _without(low: int, high: int, beside: Memslot | None) -> list[tuple[int, int]]:
    return [(low, high)] if beside is None else without((low, high), (beside.guest_phys_addr, beside.end))


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
            lost its memory twice is there twice; neighbours that share both calls are one. The last one may end with
            a call of the next update.
        vcpus_inside: the other threads that were inside KVM_RUN at any time between its first delete and its last
            call, or the end of its last hole if that is later, without those whose vCPU was never started; ascending.
        in_guest_mode: those of them that tracepoints show in guest mode in that time; None where none were recorded.
        mode_unknown: those of whom no kvm_entry or kvm_exit had been seen by then; empty where none were recorded.
        met_us: for how long at most one of them was inside KVM_RUN while one range was missing.
        stays: for each KVM_RUN of those threads in that time: thread, begin and end in microseconds. The end is the
            begin where the recording does not tell it, and the recording's end where the call never came back. Of a
            very long recording they are not kept.
        changes: its calls with what each did, in their order; of a very long recording not all are kept.
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
    mode_unknown: tuple[int, ...] = ()
    met_us: int = 0
    stays: tuple[tuple[int, int, int], ...] = ()
    changes: list[Change] = field(default_factory=list)
    _grounds: dict[int, _Ground] = field(default_factory=dict)

    @property
    def exposed(self) -> bool:
        """Whether a deleted range overlaps an added one, and another vCPU was inside KVM_RUN meanwhile."""
        return bool(self.vcpus_inside) and self.needs_hold

    @property
    def misses_memory(self) -> bool:
        """Whether a range that it took away has not been given back once."""
        return any(ground.misses_memory for ground in self._grounds.values())

    @property
    def is_missing(self) -> bool:
        """Whether a range that had memory before it has none now."""
        return any(ground.is_missing for ground in self._grounds.values())

    def add(self, step: Change, *, keep: bool = True) -> None:
        """Add a call, and keep what it did unless the recording is too long for that."""
        call, removed, added = step.call, step.removed, step.added
        if not self.calls:
            self.begin_us, self.line = call.begin_us, call.line
        if removed is not None:
            self.deletes += added is None
            opened = self.calls, call.begin_us
            self._ground(removed).take(removed.guest_phys_addr, removed.end, added, opened)
        if added is not None:
            self.creates += removed is None
            filled = self.calls, call.answered_us
            self._ground(added).give(added.guest_phys_addr, added.end, removed, filled)
        if keep:
            self.changes.append(step)
        self.end_us = call.answered_us
        self.calls += 1

    def _ground(self, slot: Memslot) -> _Ground:
        space = slot.address_space
        ground = self._grounds.get(space)
        if ground is None:
            ground = self._grounds[space] = _Ground()
        return ground

    def carry(self, step: Change) -> bool:
        """Take a call of the next update: tell whether it ended a hole, which is then this update's."""
        slot = step.added
        ground = None if slot is None else self._grounds.get(slot.address_space)
        return (
            slot is not None
            and ground is not None
            and ground.fill(slot.guest_phys_addr, slot.end, (self.calls, step.call.answered_us))
        )

    def close(self) -> None:
        """Work out what all of its calls together come to; nothing may be added any more."""
        self.needs_hold = any(ground.needs_hold for ground in self._grounds.values())
        found = [ground.holes(space) for space, ground in self._grounds.items()]
        longest_first = found[0] if len(found) == 1 else heapq.merge(*found, key=attrgetter("open_us"), reverse=True)
        holes = sorted(itertools.islice(longest_first, MOST_HOLES), key=_PLACE_OF_HOLE)
        self.holes = tuple(holes)
        self._grounds.clear()
