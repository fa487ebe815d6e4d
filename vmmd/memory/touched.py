"""Which pages of a sparse mapping have been touched: a bitmap that costs what is touched, however large the mapping is.

Compiled code reads the bitmap without any lock. Whoever changes it holds the lock of the ledger that is charged for
the pages; nothing here charges. No call reads a part of the bitmap in which nothing is set, since reading would have
the system give it memory too.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterable

from vmmd.memory.errors import Refused

_MAP_NORESERVE = 0x4000
_BLOCK_BYTES = mmap.PAGESIZE
_BLOCK_PAGES = _BLOCK_BYTES * 8
"""Pages whose bits share a page of the bitmap."""


def anonymous(size: int) -> mmap.mmap:
    """Map `size` bytes of zeroes, without reserved swap.

    Raises:
        Refused: ENOMEM where the daemon's address space is full.
    """
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except OSError as error:
        raise Refused(errno.ENOMEM, f"the host has no {size} bytes of address space left: {error.strerror}") from None


class TouchedPages:
    """The touched ones of `npages` pages, which are numbered from 0.

    Attributes:
        address: host address of the bitmap, in words of 64 pages; bit 0 of the first is page 0.
    """

    __slots__ = ("_bits", "_counts", "address")

    def __init__(self, npages: int) -> None:
        self._bits = anonymous((npages + 63) // 64 * 8)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._bits))
        # How many pages of a block are touched, for the blocks that have any.
        self._counts: dict[int, int] = {}

    def __contains__(self, page: int) -> bool:
        """Tell whether a page is touched."""
        return page // _BLOCK_PAGES in self._counts and bool(self._bits[page >> 3] >> (page & 7) & 1)

    def within(self, first: int, end: int) -> list[int]:
        """Return the touched pages from `first` to before `end`, in order."""
        found: list[int] = []
        for block in sorted(self._counts):
            start = max(first, block * _BLOCK_PAGES)
            found += [page for page in range(start, min(end, (block + 1) * _BLOCK_PAGES)) if page in self]
        return found

    def fresh(self, pages: Iterable[int]) -> list[int]:
        """Return those of some pages that are not touched."""
        return [page for page in pages if page not in self]

    def add(self, fresh: Iterable[int]) -> None:
        """Take note of pages that were not touched."""
        for page in fresh:
            self._bits[page >> 3] |= 1 << (page & 7)
            self._counts[page // _BLOCK_PAGES] = self._counts.get(page // _BLOCK_PAGES, 0) + 1

    def remove(self, first: int, end: int) -> int:
        """Forget the pages from `first` to before `end`; return how many of them were touched."""
        low = min(-(-first // _BLOCK_PAGES) * _BLOCK_PAGES, end)
        high = max(end // _BLOCK_PAGES * _BLOCK_PAGES, low)
        blocks = self._remove_blocks(low // _BLOCK_PAGES, high // _BLOCK_PAGES) if low < high else 0
        return self._remove_within(first, low) + blocks + self._remove_within(high, end)

    def _remove_blocks(self, first: int, end: int) -> int:
        if end - first < len(self._counts):
            held = [block for block in range(first, end) if block in self._counts]
        else:
            held = [block for block in self._counts if first <= block < end]
        if held:
            self._bits.madvise(mmap.MADV_DONTNEED, first * _BLOCK_BYTES, (end - first) * _BLOCK_BYTES)
        return sum(self._counts.pop(block) for block in held)

    def _remove_within(self, first: int, end: int) -> int:
        """Forget pages of one block."""
        block = first // _BLOCK_PAGES
        if first >= end or block not in self._counts:
            return 0
        start, stop = first >> 3, (end + 7) >> 3
        bits = int.from_bytes(self._bits[start:stop], "little")
        wanted = (1 << end - first) - 1 << (first & 7)
        self._bits[start:stop] = (bits & ~wanted).to_bytes(stop - start, "little")
        gone = (bits & wanted).bit_count()
        self._counts[block] -= gone
        if not self._counts[block]:
            del self._counts[block]
        return gone
