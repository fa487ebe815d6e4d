"""A VM's host address space: the userspace mappings that memslots point into.

A `HostSpace` is a value: pieces sorted by userspace address, each a run of pages of one `Mapping`. Mapping and
unmapping make a new value. A `userspace_addr` is an address in this space and never one of the daemon's; where a
piece really lies is `host_address`, which only translations hand out.

A `Mapping` is anonymous memory of the daemon. Python's reference counts own it: it is unmapped when the last space or
view that reaches it is gone, and not before. Every byte is charged to a `Ledger` until then.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from vmmd.memory.errors import Refused
from vmmd.memory.limits import PAGE_SIZE, USERSPACE_END, is_page_aligned

_MAP_NORESERVE = 0x4000
_FIRST_ADDRESS = 0x10_0000_0000
_PLACE_ALIGNMENT = 1 << 21


class Ledger:
    """Counts bytes of guest memory against a limit; a VM's own ledger also charges the daemon's."""

    def __init__(self, limit_bytes: int, parent: Ledger | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._parent = parent
        # Mappings die wherever their last reference does, on worker threads too.
        self._lock = threading.Lock()

    def charge(self, size: int) -> None:
        """Take `size` bytes.

        Raises:
            Refused: ENOMEM where the limit would be passed; nothing is charged then.
        """
        with self._lock:
            if self.used_bytes + size > self.limit_bytes:
                raise Refused(
                    errno.ENOMEM,
                    f"{size} bytes more than the {self.used_bytes} in use exceed the limit of {self.limit_bytes} bytes",
                )
            self.used_bytes += size
        if self._parent is not None:
            try:
                self._parent.charge(size)
            except Refused:
                self._give_back(size)
                raise

    def refund(self, size: int) -> None:
        """Give `size` bytes back."""
        self._give_back(size)
        if self._parent is not None:
            self._parent.refund(size)

    def _give_back(self, size: int) -> None:
        with self._lock:
            self.used_bytes -= size


class Mapping:
    """`size` bytes of zeroed anonymous memory of the daemon, without reserved swap.

    An ordinary one is charged whole. A sparse one is charged page by page as they are touched: `touched` is 0 or the
    host address of a bitmap of them, bit 0 of its first word the first page. A translation covers touched pages only,
    so no access reaches a page that was not charged.
    """

    def __init__(self, size: int, ledger: Ledger, *, sparse: bool = False) -> None:
        charged = 0 if sparse else size
        ledger.charge(charged)
        try:
            self._pages = _anonymous(size)
            bits = (size // PAGE_SIZE + 63) // 64 * 8
            self._bits = _anonymous(bits) if sparse else None
        except OSError as error:
            ledger.refund(charged)
            raise Refused(
                errno.ENOMEM, f"the host has no {size} bytes of address space left: {error.strerror}"
            ) from None
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self.touched = ctypes.addressof(ctypes.c_char.from_buffer(self._bits)) if self._bits is not None else 0
        self._charged = [charged]
        self._ledger = ledger
        # Workers touch pages side by side.
        self._lock = threading.Lock()
        weakref.finalize(self, _refund_rest, ledger, self._charged)

    def discard(self, offset: int, size: int) -> None:
        """Give pages that nothing reaches any more back to the system, and their charge to the ledger."""
        self._pages.madvise(mmap.MADV_DONTNEED, offset, size)
        with self._lock:
            gone = size if self._bits is None else self._forget(offset, size)
            self._charged[0] -= gone
        self._ledger.refund(gone)

    def touch(self, offset: int, size: int) -> None:
        """Charge the pages of a range that are not, before it is accessed; in an ordinary mapping all are.

        Raises:
            Refused: ENOMEM where the limit would be passed; nothing is charged then.
        """
        if self._bits is None:
            return
        with self._lock:
            pages = range(offset // PAGE_SIZE, (offset + size - 1) // PAGE_SIZE + 1)
            fresh = [page for page in pages if not self._bits[page >> 3] >> (page & 7) & 1]
            self._ledger.charge(len(fresh) * PAGE_SIZE)
            self._charged[0] += len(fresh) * PAGE_SIZE
            for page in fresh:
                self._bits[page >> 3] |= 1 << (page & 7)

    def _forget(self, offset: int, size: int) -> int:
        assert self._bits is not None  # noqa: S101
        gone = 0
        for page in range(offset // PAGE_SIZE, (offset + size) // PAGE_SIZE):
            gone += self._bits[page >> 3] >> (page & 7) & 1
            self._bits[page >> 3] &= ~(1 << (page & 7)) & 0xFF
        return gone * PAGE_SIZE


def _anonymous(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


def _refund_rest(ledger: Ledger, charged: list[int]) -> None:
    ledger.refund(charged[0])


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a mapping's pages at a userspace address. Sizes and offsets are bytes."""

    userspace_addr: int
    size: int
    mapping: Mapping
    offset: int

    @property
    def end(self) -> int:
        """The first userspace address behind it."""
        return self.userspace_addr + self.size

    @property
    def host_address(self) -> int:
        """Where it lies in the daemon."""
        return self.mapping.address + self.offset

    @property
    def touched(self) -> int:
        """Where the bitmap of its mapping's touched pages lies, or 0 where all count as touched."""
        return self.mapping.touched

    def touch(self, offset: int, size: int) -> None:
        """Charge the pages of a range of it; see `Mapping.touch`."""
        self.mapping.touch(self.offset + offset, size)

    def part(self, start: int, end: int) -> Piece:
        """Return the run of it from userspace address `start` to `end`."""
        return Piece(start, end - start, self.mapping, self.offset + start - self.userspace_addr)

    def discard(self) -> None:
        """Give its pages back to the system; nothing may reach them any more."""
        self.mapping.discard(self.offset, self.size)


_ADDRESS = attrgetter("userspace_addr")


@dataclass(frozen=True, slots=True)
class HostSpace:
    """The host mappings of a VM, sorted by userspace address."""

    pieces: tuple[Piece, ...] = ()

    def with_mapping(self, size: int, ledger: Ledger, *, sparse: bool = False) -> tuple[HostSpace, int]:
        """Map `size` bytes of zeroes at the lowest gap that holds them; a sparse mapping is charged as it is touched.

        Returns:
            The new space, and the userspace address of the mapping.

        Raises:
            Refused: EINVAL where `size` is 0 or no whole number of pages; ENOMEM where a limit or the address space
            is full.
        """
        if size <= 0 or not is_page_aligned(size):
            raise Refused(errno.EINVAL, f"size {size:#x} is no positive multiple of the page size {PAGE_SIZE:#x}")
        at = self._free_address(size)
        piece = Piece(at, size, Mapping(size, ledger, sparse=sparse), 0)
        index = bisect_right(self.pieces, at, key=_ADDRESS)
        return HostSpace((*self.pieces[:index], piece, *self.pieces[index:])), at

    def without(self, start: int, size: int) -> tuple[HostSpace, tuple[Piece, ...]]:
        """Unmap whole pages; as with munmap, a range that holds no mapping is none the worse for it.

        Returns:
            The new space, and the pieces that went. When nothing can reach them any more, the caller discards those
            whose mapping the new space still holds; the others end with their mapping.

        Raises:
            Refused: EINVAL where the range is empty, not of whole pages, or no range of userspace addresses.
        """
        end = start + size
        if size <= 0 or not is_page_aligned(start) or not is_page_aligned(size) or end > USERSPACE_END:
            raise Refused(errno.EINVAL, f"[{start:#x}, {end:#x}) is no range of whole pages of userspace addresses")
        kept: list[Piece] = []
        gone: list[Piece] = []
        for piece in self.pieces:
            low, high = max(start, piece.userspace_addr), min(end, piece.end)
            if low >= high:
                kept.append(piece)
                continue
            gone.append(piece.part(low, high))
            if piece.userspace_addr < low:
                kept.append(piece.part(piece.userspace_addr, low))
            if high < piece.end:
                kept.append(piece.part(high, piece.end))
        return HostSpace(tuple(kept)), tuple(gone)

    def find(self, userspace_addr: int) -> Piece | None:
        """Return the piece that holds an address, if there is one."""
        index = bisect_right(self.pieces, userspace_addr, key=_ADDRESS) - 1
        if index >= 0 and userspace_addr < self.pieces[index].end:
            return self.pieces[index]
        return None

    def runs(self, userspace_addr: int, length: int, *, writing: bool) -> Iterator[tuple[int, int]]:
        """Give a range as (host address, bytes) in order; what will be written is charged first.

        Raises:
            Refused: EFAULT, before anything is given, where a page of it is not mapped; ENOMEM where the limit is
            reached.
        """
        found: list[tuple[int, int]] = []
        at, end = userspace_addr, userspace_addr + length
        while at < end:
            piece = self.find(at)
            if piece is None:
                raise Refused(errno.EFAULT, f"userspace address {at:#x} is not mapped")
            size = min(end, piece.end) - at
            if writing:
                piece.touch(at - piece.userspace_addr, size)
            found.append((piece.host_address + at - piece.userspace_addr, size))
            at += size
        return iter(found)

    def _free_address(self, size: int) -> int:
        at = _FIRST_ADDRESS
        for piece in self.pieces:
            if at + size < piece.userspace_addr:
                break
            # A page stays free between two mappings, so that an overrun meets a hole.
            at = piece.end + _PLACE_ALIGNMENT & -_PLACE_ALIGNMENT
        if at + size > USERSPACE_END:
            raise Refused(errno.ENOMEM, f"no {size:#x} bytes are free among the VM's userspace addresses")
        return at
