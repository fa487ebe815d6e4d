"""Dirty bitmaps, and the log of a memslot: one bit a page, in KVM's layout.

Bit j of byte k stands for page 8k + j of the slot; words are 64 bits, little-endian, and the tail beyond the last
page reads 0. The words are shared with compiled code that runs without the GIL, so every change to them goes through
`Words`: single, atomic steps that an engine provides. Nothing here decides when a log may be read; that is the VM's
business.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import weakref
from dataclasses import dataclass
from typing import Protocol

from vmmd.memory.errors import Refused
from vmmd.memory.host import Ledger
from vmmd.memory.limits import PAGE_SHIFT

_WORD_PAGES = 64
_SMALL_BYTES = 1 << 16


class Words(Protocol):
    """Atomic steps on 64-bit words at host addresses. Counts are words, addresses multiples of 8."""

    def set_bits(self, address: int, bits: int) -> int:
        """Or `bits` into the word at `address`; give the word as it was."""

    def compare_exchange(self, address: int, size: int, expected: int, new: int) -> int:
        """Replace an aligned number of 4 or 8 bytes that is `expected`; give the number that was there."""

    def exchange(self, address: int, count: int) -> bytes:
        """Take `count` words and leave zeroes, word by word."""

    def clear(self, address: int, masks: bytes) -> bytes:
        """Clear the bits of `masks` from `address` on, word by word; give the bits that were set and went."""


def bitmap_bytes(npages: int) -> int:
    """Return the length in bytes of a bitmap for `npages` pages: whole words, as KVM_GET_DIRTY_LOG copies out."""
    return (npages + _WORD_PAGES - 1) // _WORD_PAGES * 8


class DirtyBitmap:
    """A bit for each page of one memslot.

    One that lies in memory from the start, since it is small or full, is charged to a ledger. A large one that begins
    empty grows with the pages that are marked, which are charged themselves.
    """

    __slots__ = ("__weakref__", "_buffer", "_ledger", "_words", "address", "npages", "size_bytes")

    def __init__(self, npages: int, words: Words, ledger: Ledger | None = None, *, initially_set: bool = False) -> None:
        self.npages = npages
        self.size_bytes = bitmap_bytes(npages)
        if ledger is not None and (initially_set or self.size_bytes <= _SMALL_BYTES):
            ledger.charge(self.size_bytes)
            weakref.finalize(self, ledger.refund, self.size_bytes)
        self._words = words
        self._ledger = ledger
        self._buffer: mmap.mmap | ctypes.Array[ctypes.c_uint64]
        if self.size_bytes <= _SMALL_BYTES:
            self._buffer = (ctypes.c_uint64 * (self.size_bytes // 8))()
            self.address = ctypes.addressof(self._buffer)
        else:
            # A large log is a mapping of its own: pages of it that nobody marks cost nothing.
            try:
                self._buffer = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except OSError as error:
                message = f"the host has no {self.size_bytes} bytes for the log of {npages} pages: {error.strerror}"
                raise Refused(errno.ENOMEM, message) from None
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        if initially_set:
            full, rest = divmod(npages, 8)
            ctypes.memset(self.address, 0xFF, full)
            if rest:
                ctypes.memset(self.address + full, (1 << rest) - 1, 1)

    def empty_twin(self) -> DirtyBitmap:
        """Make another one for as many pages, with none of them marked, at the same ledger's cost."""
        return DirtyBitmap(self.npages, self._words, self._ledger)

    def mark(self, offset: int, length: int) -> list[int]:
        """Mark the pages of `length` bytes from byte `offset` of the slot on; give those that were not marked."""
        pages = range(offset >> PAGE_SHIFT, (offset + length - 1 >> PAGE_SHIFT) + 1)
        return [page for page in pages if not self._set(page)]

    def unmark(self, page: int) -> None:
        """Clear the mark of one page; one that is not there has none.

        The page may come out of a ring's entry of a slot that was larger.
        """
        if page >= self.npages:
            return
        mask = (1 << page % _WORD_PAGES).to_bytes(8, "little")
        self._words.clear(self.address + page // _WORD_PAGES * 8, mask)

    def _set(self, page: int) -> bool:
        bit = 1 << page % _WORD_PAGES
        return bool(self._words.set_bits(self.address + page // _WORD_PAGES * 8, bit) & bit)

    def snapshot(self, first_byte: int = 0, length: int | None = None) -> bytes:
        """Copy the log, or `length` bytes of it, and leave it as it is."""
        return ctypes.string_at(self.address + first_byte, self.size_bytes - first_byte if length is None else length)

    def take(self, first_byte: int = 0, length: int | None = None) -> bytes:
        """Take the log, or `length` bytes of it, and leave zeroes there. Both are multiples of 8."""
        count = (self.size_bytes - first_byte if length is None else length) // 8
        return self._words.exchange(self.address + first_byte, count)

    def put_back(self, bits: bytes, first_byte: int = 0) -> None:
        """Or bits that were taken into the log again."""
        for at in range(0, len(bits), 8):
            word = int.from_bytes(bits[at : at + 8], "little")
            if word:
                self._words.set_bits(self.address + first_byte + at, word)

    def clear(self, first_page: int, mask: bytes) -> bytes:
        """Clear the bits of `mask`, whose bit 0 is page `first_page`, a multiple of 64.

        Returns:
            The bits that were set and went.
        """
        padded = mask + bytes(-len(mask) % 8)
        return self._words.clear(self.address + first_page // 8, padded)


@dataclass(frozen=True, slots=True)
class DirtyLog:
    """The log of one memslot. Its bitmap outlives a MOVE of the slot, and goes with a DELETE or when logging ends.

    Attributes:
        marks: what a vCPU's store looks at, and sets where it is clear; with dirty rings, the pages that are in a ring.
        bitmap: what KVM_GET_DIRTY_LOG gives: the marks themselves, or None where there are only rings, or, beside
            rings, the pages that were written without a vCPU.
    """

    marks: DirtyBitmap
    bitmap: DirtyBitmap | None

    def moved(self) -> DirtyLog:
        """Return the log of the slot at another place: with rings, a page that is stored to there is put in one again.

        So it is in the kernel, whose translations of the old place go, and with them what tells that a page is logged.
        """
        return self if self.marks is self.bitmap else DirtyLog(self.marks.empty_twin(), self.bitmap)

    def for_rings_alone(self) -> DirtyLog:
        """Return the log from the moment on when rings alone take note: no page is in one yet, whatever was marked."""
        return DirtyLog(self.marks.empty_twin(), None)
