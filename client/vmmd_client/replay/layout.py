"""Where a replay puts things: what a recording needs of host memory, and where a guest of ours can live beside it.

Pure arithmetic over a recording's updates, without I/O. The recorded host addresses are another machine's; `Backing`
ranges are what has to be mapped here instead, and `relocate` moves a recorded call there. The guest's walk goes over
memory that every update leaves where it was, but some update takes away on its way: whoever notices anything there has
met the race.
"""

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..audit.updates import Change, Update
from ..slots.memslots import MemFlag, Memslot, SlotMap, cut, with_call

PAGE_SIZE = 4096
"""Bytes of a page."""

MOST_UPDATES = 2_000
"""How many of a recording's updates one round replays: the first ones."""

_GIB = 1 << 30

_REPLAYED_FLAGS = MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY


class LayoutError(ValueError):
    """A recording that cannot be replayed under a walking guest; it says what is missing."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of addresses: guest-physical or of host memory, as its owner says.

    Attributes:
        start: the first byte's address.
        size: bytes.
    """

    start: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind the range."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Layout:
    """What a recording's replay needs.

    Attributes:
        base: the slot map that every round starts from: what stood after the first update.
        updates: the updates of a round: all but the first, without the calls that were refused, whose contents the
            recording does not show, or that are about another address space than the first.
        backings: the ranges of recorded userspace addresses that the slots point into.
        walk: the guest-physical ranges that stand before, between and after all updates at the same host address and
            writable, but that an update deletes and creates again.
        free_slot: a slot id above all recorded ones.
        free_gpa: a guest-physical address above all recorded ones, at a whole GiB.
    """

    base: SlotMap
    updates: tuple[Update, ...]
    backings: tuple[Span, ...]
    walk: tuple[Span, ...]
    free_slot: int
    free_gpa: int

    @classmethod
    def of(cls, updates: Sequence[Update]) -> "Layout":
        """Lay out the replay of one VM's updates.

        Raises:
            LayoutError: there are fewer than two updates, or several VMs, or no range to walk over.
        """
        if len(updates) < 2 or len({update.vm_fd for update in updates}) > 1:
            raise LayoutError("a replay needs a recording of one VM with at least two memory map updates")
        updates = [_replayable(update) for update in updates[: MOST_UPDATES + 1]]
        rounds = tuple(update for update in updates[1:] if update.changes)
        base = _after({}, updates[0])[-1]
        at_rest, passing = [base], [base]
        for update in rounds:
            passing += _after(at_rest[-1], update)
            at_rest.append(passing[-1])
        slots = [slot for state in passing for slot in state.values()]
        walk = _walkable(at_rest, passing)
        if not walk:
            raise LayoutError("no writable memory is deleted and created again at the same place; nothing to walk over")
        return cls(
            base=base,
            updates=rounds,
            backings=_union([Span(slot.userspace_addr, slot.memory_size) for slot in slots]),
            walk=walk,
            free_slot=max(slot.slot for slot in slots) + 1,
            free_gpa=-(-max(slot.end for slot in slots) // _GIB) * _GIB,
        )

    def pages(self, owner: int, owners: int, per_range: int) -> list[int]:
        """Give the pages that one of several walkers has for itself, evenly spread over every range of the walk.

        Args:
            owner: the walker, counted from 0.
            owners: how many walkers there are.
            per_range: how many pages of each range it gets, where the range has so many.

        Returns:
            The pages' gpa. No two walkers share one.

        Raises:
            LayoutError: a range has fewer pages than there are walkers.
        """
        pages: list[int] = []
        for span in self.walk:
            there = span.size // PAGE_SIZE
            if there < owners:
                raise LayoutError(f"{owners} walkers are too many for the {there} pages at {span.start:#x}")
            mine = min(per_range, there // owners)
            step = there // (mine * owners)
            pages += [span.start + (index * owners + owner) * step * PAGE_SIZE for index in range(mine)]
        return pages


@dataclass(frozen=True, slots=True)
class Relocation:
    """Moves recorded userspace addresses to where their memory is mapped now.

    Attributes:
        mapped: for each range of recorded addresses, where its first byte lies now.
    """

    mapped: Mapping[Span, int]

    def relocate(self, region: Memslot) -> Memslot:
        """Give the same slot, or call, over the memory that is mapped now."""
        spans = sorted(self.mapped, key=lambda span: span.start)
        span = spans[bisect.bisect_right([span.start for span in spans], region.userspace_addr) - 1]
        return replace(region, userspace_addr=self.mapped[span] + region.userspace_addr - span.start)

    def calls(self, update: Update) -> list[Memslot]:
        """Give the update's calls over the memory that is mapped now."""
        return [self.relocate(region) for region in _regions(update)]


def _regions(update: Update) -> list[Memslot]:
    return [step.call.region for step in update.changes if step.call.region is not None]


def _after(slots: SlotMap, update: Update) -> list[SlotMap]:
    """Give the maps that stand after each of an update's calls."""
    return list(itertools.accumulate(_regions(update), with_call, initial=slots))[1:] or [slots]


def _replayable(update: Update) -> Update:
    """Give the update without the calls that cannot be made here, or that changed nothing in the recording."""
    kept = Update(update.thread, update.vm_fd)
    for step in update.changes:
        region = step.call.region
        changes_nothing = region is None or step.call.errno or not (region.memory_size or step.removed)
        if region is not None and not changes_nothing and not region.address_space:
            call = replace(step.call, region=replace(region, flags=region.flags & _REPLAYED_FLAGS))
            kept.add(Change(call, step.removed, step.added))
    kept.close()
    return kept


def _walkable(at_rest: Sequence[SlotMap], passing: Sequence[SlotMap]) -> tuple[Span, ...]:
    spans = []
    for piece in cut((*at_rest, *passing)):
        backing = piece.backings[0]
        stands = backing is not None and backing.is_writable and set(piece.backings[: len(at_rest)]) == {backing}
        if stands and None in piece.backings:
            spans.append(Span(piece.guest_phys_addr, piece.size))
    return _union(spans)


def _union(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Give the ranges in ascending order, those that touch or overlap as one."""
    union: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if union and span.start <= union[-1].end:
            union[-1] = Span(union[-1].start, max(union[-1].end, span.end) - union[-1].start)
        else:
            union.append(span)
    return tuple(union)
