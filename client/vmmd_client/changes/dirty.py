"""Dirty pages by guest-physical address, and the view in which every store of a guest is seen once.

KVM keeps a dirty bitmap a slot and drops it with the slot. `DirtyView` is where the bits of slots that went wait for
their reader, under the addresses at which the stores were made. It also remembers transactions whose end is not known:
their bits are the reader's if the map was changed, and the slot's own again if it was not. Pure, without I/O.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PAGE_SIZE = 4096
"""Bytes of a page, which one dirty bit stands for."""

_WORD_PAGES = 64
_WORD_BYTES = 8
_ALL = (1 << _WORD_PAGES) - 1


@dataclass(frozen=True, slots=True)
class DirtyBitmap:
    """The dirty bitmap of a slot, or of a part of it.

    Attributes:
        slot: the slot's id.
        guest_phys_addr: the gpa of the bitmap's first page.
        bitmap: KVM's layout: bit j of byte k is page 8k+j.
    """

    slot: int
    guest_phys_addr: int
    bitmap: bytes

    def dirty_pages(self) -> Iterator[int]:
        """Give the gpa of each dirty page, in ascending order."""
        for index, byte in enumerate(self.bitmap):
            for bit in range(8):
                if byte >> bit & 1:
                    yield self.guest_phys_addr + (index * 8 + bit) * PAGE_SIZE


class DirtyPages:
    """A set of guest pages: iterating gives the gpa of each, in ascending order."""

    def __init__(self) -> None:
        # Word `n` has the pages from gpa n * 64 * PAGE_SIZE on; a word without a page is left out.
        self._words: dict[int, int] = {}

    def __iter__(self) -> Iterator[int]:
        for index in sorted(self._words):
            word = self._words[index]
            while word:
                lowest = word & -word
                yield (index * _WORD_PAGES + lowest.bit_length() - 1) * PAGE_SIZE
                word ^= lowest

    def __len__(self) -> int:
        return sum(word.bit_count() for word in self._words.values())

    def __contains__(self, guest_phys_addr: int) -> bool:
        index, bit = divmod(guest_phys_addr // PAGE_SIZE, _WORD_PAGES)
        return bool(self._words.get(index, 0) >> bit & 1)

    def add_bitmap(self, bitmap: DirtyBitmap) -> None:
        """Add the pages that a bitmap has set."""
        first, shift = divmod(bitmap.guest_phys_addr // PAGE_SIZE, _WORD_PAGES)
        for offset in range(0, len(bitmap.bitmap), _WORD_BYTES):
            word = int.from_bytes(bitmap.bitmap[offset : offset + _WORD_BYTES], "little") << shift
            if word:
                self._add(first + offset // _WORD_BYTES, word & _ALL)
                self._add(first + offset // _WORD_BYTES + 1, word >> _WORD_PAGES)

    def add_range(self, guest_phys_addr: int, size: int) -> None:
        """Add every page that a range touches."""
        for index, word in _words(guest_phys_addr, size):
            self._add(index, word)

    def add(self, others: "DirtyPages") -> None:
        """Add the pages of another set."""
        for index, word in others._words.items():
            self._add(index, word)

    def take(self, guest_phys_addr: int, size: int) -> "DirtyPages":
        """Remove the pages that a range touches, and give them."""
        taken = DirtyPages()
        end = guest_phys_addr + size
        if size > 0 and len(self._words) * _WORD_PAGES * PAGE_SIZE < size:
            # The range is larger than what is here: look at what is here.
            edges = _span(guest_phys_addr, end)
            indices = [index for index in self._words if edges[0] <= index <= edges[1]]
            masks = [(index, _mask(index, guest_phys_addr, end)) for index in indices]
        else:
            masks = list(_words(guest_phys_addr, size))
        for index, mask in masks:
            word = self._words.get(index, 0)
            taken._add(index, word & mask)
            if word & ~mask:
                self._words[index] = word & ~mask
            else:
                self._words.pop(index, None)
        return taken

    def _add(self, index: int, word: int) -> None:
        if word:
            self._words[index] = self._words.get(index, 0) | word


def _span(start: int, end: int) -> tuple[int, int]:
    """Give the first and the last word of a range that has a byte."""
    return start // (PAGE_SIZE * _WORD_PAGES), (end - 1) // (PAGE_SIZE * _WORD_PAGES)


def _mask(index: int, start: int, end: int) -> int:
    """Give the bits of one word whose pages the range touches."""
    first_page = index * _WORD_PAGES
    low = max(start // PAGE_SIZE - first_page, 0)
    high = min(-(-end // PAGE_SIZE) - first_page, _WORD_PAGES)
    return (1 << high) - (1 << low)


def _words(start: int, size: int) -> Iterator[tuple[int, int]]:
    if size > 0:
        first, last = _span(start, start + size)
        for index in range(first, last + 1):
            yield index, _mask(index, start, start + size)


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A transaction whose end is not known.

    Attributes:
        hold: the name of its hold, by which the daemon tells what became of it.
        dirty: the bits that were fetched inside.
    """

    hold: str
    dirty: tuple[DirtyBitmap, ...]


class DirtyView:
    """The dirty pages of a VM that nobody has read yet and that no slot's log has any more.

    Any number of threads may use one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = DirtyPages()
        self._unsettled: dict[str, Unsettled] = {}

    @property
    def unsettled(self) -> tuple[Unsettled, ...]:
        """The transactions whose end has to be asked for before a reader can be told everything."""
        with self._lock:
            return tuple(self._unsettled.values())

    def carry(self, bitmaps: Iterable[DirtyBitmap]) -> None:
        """Take over the bits of slots that went, or of a log that was fetched."""
        with self._lock:
            for bitmap in bitmaps:
                self._waiting.add_bitmap(bitmap)

    def suppose(self, guest_phys_addr: int, size: int) -> None:
        """Take every page of a range for dirty: its bits were taken, and are lost."""
        with self._lock:
            self._waiting.add_range(guest_phys_addr, size)

    def take(self, guest_phys_addr: int, size: int) -> DirtyPages:
        """Give what waits in a range to its reader."""
        with self._lock:
            return self._waiting.take(guest_phys_addr, size)

    def leave_unsettled(self, transaction: Unsettled) -> None:
        """Remember a transaction whose end is not known; a hold may have several."""
        with self._lock:
            known = self._unsettled.get(transaction.hold)
            dirty = (*known.dirty, *transaction.dirty) if known else transaction.dirty
            self._unsettled[transaction.hold] = Unsettled(transaction.hold, dirty)

    def settle(self, hold: str, *, was_done: bool) -> None:
        """Take over the bits of a transaction that was done, or leave them to the slots of one that was not."""
        with self._lock:
            transaction = self._unsettled.pop(hold, None)
        if transaction is not None and was_done:
            self.carry(transaction.dirty)
