"""Where a replay puts things: what a recording needs of host memory, and where a guest of ours can live beside it.

Pure arithmetic over a recording's updates, without I/O. The recorded host addresses are another machine's; `Backing`
ranges are what has to be mapped here instead, and `relocate` moves a recorded call there. The guest's walk goes over
memory that every update leaves where it was, but some update takes away on its way: whoever notices anything there has
met the race.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .memslots import Memslot, SlotMap, cut
from .traces import Update

PAGE_SIZE = 4096
"""Bytes of a page."""

_GIB = 1 << 30


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
        updates: the updates of a round: all but the first, without the calls that were refused.
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
        updates = [replace(update, calls=tuple(call for call in update.calls if not call.errno)) for update in updates]
        rounds = tuple(update for update in updates[1:] if update.calls)
        states = [state for update in updates for state in update.states()]
        slots = [slot for state in states for slot in state.values()]
        walk = _walkable(rounds)
        if not walk:
            raise LayoutError("no writable memory is deleted and created again at the same place; nothing to walk over")
        return cls(
            base=updates[0].after,
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
        return [self.relocate(call.region) for call in update.calls]


def _walkable(updates: Sequence[Update]) -> tuple[Span, ...]:
    at_rest = [updates[0].before, *(update.after for update in updates)]
    passing = [state for update in updates for state in update.states()]
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
