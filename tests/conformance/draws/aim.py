"""Where draws aim: the slots, logs, addresses and host pages of one sequence.

A sequence keeps to few slot ids and to one part of guest-physical memory, so that its slots meet.
"""

from __future__ import annotations

from random import Random
from typing import Any

from tests.conformance.askable import Askable
from tests.conformance.table import LOG_DIRTY, READONLY, Slot, Table
from vmmd.memory.limits import PAGE_SHIFT, PAGE_SIZE

HOST_PAGES = {"b0": 256, "b1": 16, "b2": 1280}
"""Pages of the host mappings that each sequence has."""

SMALL = (1, 1, 1, 2, 2, 3, 4, 12, 16)
AROUND_WORDS = (63, 64, 65, 100, 127, 128, 130, 192, 200)
"""Sizes of slots in pages: the second around the words of a log, which have 64."""

Where = dict[str, Any]


class Aim:
    """What draws choose from. `table` is what is believed to be set, and only read."""

    def __init__(self, askable: Askable, rng: Random, table: Table) -> None:
        self.askable = askable
        self.rng = rng
        self.table = table
        self.area = _some_area(askable, rng)
        self.ids = [*rng.sample(range(12), 7), askable.slots - 1]

    def some_id(self) -> int:
        """Choose a slot id, set or not."""
        return self.rng.choice(self.ids)

    def free_id(self) -> int:
        """Choose a slot id, mostly one that is not set."""
        free = [slot_id for slot_id in self.ids if slot_id not in self.table.slots]
        return self.rng.choice(free if free and self.rng.random() < 0.8 else self.ids)

    def set_slot(self) -> tuple[int, Slot] | None:
        """Choose a slot that is set, with its id."""
        return self.rng.choice(list(self.table.slots.items())) if self.table.slots else None

    def log_id(self) -> int:
        """Choose a slot id, mostly one with a log."""
        logged = [slot_id for slot_id, slot in self.table.slots.items() if slot.is_logged]
        return self.rng.choice(logged if logged and self.rng.random() < 0.9 else self.ids)

    def gpa(self) -> int:
        """Choose the guest-physical address of a page."""
        return self.rng.randrange(self.area.start, self.area.stop, PAGE_SIZE)

    def flags(self) -> int:
        """Choose legal flags, with a log more often than not."""
        flags = (0, LOG_DIRTY, LOG_DIRTY, LOG_DIRTY, READONLY, LOG_DIRTY | READONLY)
        return self.rng.choice(flags) & self.askable.flags

    def new_slot(self, npages: int) -> Slot:
        """Choose a slot of so many pages, often one that touches another."""
        size, gpa = npages << PAGE_SHIFT, self.gpa()
        neighbour = self.set_slot()
        if neighbour is not None and self.rng.random() < 0.3:
            gpa = self.rng.choice((neighbour[1].end, max(neighbour[1].gpa - size, 0)))
        return Slot(gpa, size, self.where(npages), self.flags())

    def borders_of_lost_pages(self) -> list[int]:
        """Return where memory ends at host pages that are gone, or begins behind them."""
        borders = []
        for slot in self.table.slots.values():
            where = in_host(slot)
            if where is not None:
                first = where["offset"] >> PAGE_SHIFT
                lost = [(where["at"], first + page) in self.table.lost for page in range(slot.npages)]
                pages = [page for page in range(1, slot.npages) if lost[page] != lost[page - 1]]
                borders += [slot.gpa + (page << PAGE_SHIFT) for page in pages]
        return borders

    def where(self, npages: int) -> Where:
        """Choose host pages for a slot: often those of another one, which it then is an alias of, wholly or in part."""
        others = [where for slot in self.table.slots.values() if (where := in_host(slot)) is not None]
        if others and self.rng.random() < 0.35:
            other = self.rng.choice(others)
            page = (other["offset"] >> PAGE_SHIFT) + self.rng.choice((0, 0, 1, -1))
            page = min(max(page, 0), HOST_PAGES[other["at"]] - npages)
            if page >= 0:
                return {"at": other["at"], "offset": page << PAGE_SHIFT}
        roomy = [name for name, pages in HOST_PAGES.items() if pages >= npages]
        if not roomy:
            return {"at": "hole", "offset": 0}
        at = self.rng.choice(roomy)
        return {"at": at, "offset": self.rng.randrange(HOST_PAGES[at] - npages + 1) << PAGE_SHIFT}


def in_host(slot: Slot) -> Where | None:
    """Return where a slot's pages lie in a host mapping; None where it points at none."""
    return None if isinstance(slot.where, int) or slot.where["at"] not in HOST_PAGES else slot.where


def _some_area(askable: Askable, rng: Random) -> range:
    """Choose a part of the first window, or around a border that a later window is about."""
    span = rng.choice((64, 160, 400)) << PAGE_SHIFT
    window = rng.choice(askable.windows) if rng.random() < 0.3 else askable.windows[0]
    if window is askable.windows[0]:
        return range(window.start, window.start + span)
    if window is askable.windows[-1]:
        return range(window.stop - span, window.stop)
    middle = (window.start + window.stop) // 2
    return range(middle - span // 2, middle + span // 2)
