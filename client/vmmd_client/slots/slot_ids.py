"""Which memslot ids are free: the lowest first, and those that went are used again.

A VMM that only counts upwards runs out of ids after as many changes as KVM has slots. Pure, without I/O.
"""

import heapq
from collections.abc import Iterable

from ..errors import SlotTaken

MAX_SLOTS = 32_764
"""How many memslots a VM can have (KVM_CAP_NR_MEMSLOTS); the ids are those below."""


class SlotIds:
    """The ids of one slot map, taken and given back."""

    def __init__(self, taken: Iterable[int] = ()) -> None:
        """Take the ids that are in use."""
        self._taken = set(taken)
        # Below `_next` an id is taken, or waits in `_freed`; an entry of `_freed` may have been taken by name since.
        self._freed: list[int] = []
        self._next = 0

    def take(self) -> int:
        """Take the lowest free id.

        Raises:
            SlotTaken: all of them are in use.
        """
        while self._freed:
            slot = heapq.heappop(self._freed)
            if slot not in self._taken:
                self._taken.add(slot)
                return slot
        while self._next in self._taken:
            self._next += 1
        if self._next >= MAX_SLOTS:
            raise SlotTaken(f"all {MAX_SLOTS} slot ids are in use; delete or merge slots first", MAX_SLOTS)
        self._taken.add(self._next)
        return self._next

    def take_this(self, slot: int) -> None:
        """Take an id by name; whether it is free is for the caller to know."""
        self._taken.add(slot)

    def give_back(self, slot: int) -> None:
        """Let an id be taken again."""
        if slot in self._taken:
            self._taken.remove(slot)
            if slot < self._next:
                heapq.heappush(self._freed, slot)
