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
import struct
import threading
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter

from vmmd.memory.errors import Refused
from vmmd.memory.limits import PAGE_SIZE, USERSPACE_END, is_page_aligned
from vmmd.memory.touched import TouchedPages, anonymous

_FIRST_ADDRESS = 0x10_0000_0000
_PLACE_ALIGNMENT = 1 << 21

PIECE_RECORD = struct.Struct("<QQQQQ")
"""A host piece for lookups: userspace_addr, size, host address, bitmap of touched pages or 0, offset in its mapping."""


class Ledger:
    """Counts bytes of guest memory against a limit; a VM's own ledger also charges the daemon's.

    Attributes:
        limit_bytes: what it lets through; `setting` is the key of the settings that says so.
        addresses: the ledger of the sizes of sparse mappings, which take the daemon's address space whole; None: they
            are not counted.
        touching: held by whoever touches pages of the mappings that are charged here, or lets them go.
    """

    def __init__(
        self, limit_bytes: int, parent: Ledger | None = None, *, setting: str = "", addresses: Ledger | None = None
    ) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.addresses = addresses
        # Workers touch pages side by side.
        self.touching = threading.Lock()
        self._parent = parent
        self._setting = setting
        # Mappings die wherever their last reference does: on worker threads too, and, where Python collects garbage,
        # in the middle of a charge.
        self._lock = threading.RLock()

    def charge(self, size: int) -> None:
        """Take `size` bytes.

        Raises:
            Refused: ENOMEM where the limit would be passed; nothing is charged then.
        """
        with self._lock:
            if self.used_bytes + size > self.limit_bytes:
                limit = f"the limit of {self.limit_bytes} bytes" + (f" ({self._setting})" if self._setting else "")
                raise Refused(errno.ENOMEM, f"{size} bytes more than the {self.used_bytes} in use exceed {limit}")
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

    An ordinary one is charged whole. A sparse one is charged page by page as they are touched, and its size is charged
    to the ledger of addresses for as long as there is anything of it. A translation covers touched pages only, so no
    access reaches a page that was not charged.

    Attributes:
        address: where it lies in the daemon.
        touched: host address of the bitmap of touched pages, see `TouchedPages`, or 0 where all count as touched.
        ledger: what it is charged to.
    """

    def __init__(self, size: int, ledger: Ledger, *, sparse: bool = False) -> None:
        charged = 0 if sparse else size
        addresses = ledger.addresses if sparse else None
        with ExitStack() as taken:
            ledger.charge(charged)
            taken.callback(ledger.refund, charged)
            if addresses is not None:
                addresses.charge(size)
                taken.callback(addresses.refund, size)
            self._pages = anonymous(size)
            self._touched = TouchedPages(size // PAGE_SIZE) if sparse else None
            taken.pop_all()
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self.touched = self._touched.address if self._touched is not None else 0
        self.ledger = ledger
        self._charged = [charged]
        weakref.finalize(self, _refund_rest, ledger, self._charged)
        if addresses is not None:
            weakref.finalize(self, addresses.refund, size)

    def discard(self, offset: int, size: int) -> None:
        """Give pages that nothing reaches any more back to the system, and their charge to the ledger."""
        self._pages.madvise(mmap.MADV_DONTNEED, offset, size)
        with self.ledger.touching:
            gone = size
            if self._touched is not None:
                gone = self._touched.remove(offset // PAGE_SIZE, (offset + size) // PAGE_SIZE) * PAGE_SIZE
            self._charged[0] -= gone
        self.ledger.refund(gone)

    def touched_pages(self, first: int, end: int) -> list[int] | None:
        """Return the touched pages from `first` to before `end`, in order; None where any may have been touched."""
        return self._touched.within(first, end) if self._touched is not None else None

    def fresh(self, pages: Iterable[int]) -> list[int]:
        """Return those of some pages that are not charged yet; whoever asks holds `ledger.touching`."""
        return self._touched.fresh(pages) if self._touched is not None else []

    def add(self, fresh: Sequence[int]) -> None:
        """Take note of pages that have been charged; see `fresh`."""
        if self._touched is not None:
            self._touched.add(fresh)
            self._charged[0] += len(fresh) * PAGE_SIZE

    def zero(self, offset: int, size: int) -> None:
        """Have a range read zeroes, and cost no more than it did: whole pages go back to the system, charged as before.

        Pages of a sparse mapping that nobody has touched read zeroes already.
        """
        end = offset + size
        first, last = -(-offset // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE
        if first < last:
            self._pages.madvise(mmap.MADV_DONTNEED, first, last - first)
        for start, stop in ((offset, min(first, end)), (max(last, first, offset), end)):
            if start < stop and (self._touched is None or start // PAGE_SIZE in self._touched):
                ctypes.memset(self.address + start, 0, stop - start)


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
    def record(self) -> bytes:
        """Its packed form for lookups."""
        mapping = self.mapping
        return PIECE_RECORD.pack(self.userspace_addr, self.size, self.host_address, mapping.touched, self.offset)

    def zero(self, offset: int, size: int) -> None:
        """Have a range of it read zeroes; see `Mapping.zero`."""
        self.mapping.zero(self.offset + offset, size)

    def part(self, start: int, end: int) -> Piece:
        """Return the run of it from userspace address `start` to `end`."""
        return Piece(start, end - start, self.mapping, self.offset + start - self.userspace_addr)

    def discard(self) -> None:
        """Give its pages back to the system; nothing may reach them any more."""
        self.mapping.discard(self.offset, self.size)


def touch(ranges: Iterable[tuple[Piece, int, int]]) -> None:
    """Charge the pages of ranges that are not, before they are accessed: all, or none of them.

    Args:
        ranges: (piece, offset in it, size) each, all of one space.

    Raises:
        Refused: ENOMEM where the limit would be passed; nothing is charged then.
    """
    wanted: dict[Mapping, set[int]] = {}
    for piece, offset, size in ranges:
        if piece.mapping.touched and size:
            start = piece.offset + offset
            touched = range(start // PAGE_SIZE, (start + size - 1) // PAGE_SIZE + 1)
            wanted.setdefault(piece.mapping, set()).update(touched)
    if not wanted:
        return
    ledger = next(iter(wanted)).ledger
    with ledger.touching:
        fresh = {mapping: mapping.fresh(pages) for mapping, pages in wanted.items()}
        ledger.charge(sum(map(len, fresh.values())) * PAGE_SIZE)
        for mapping, pages in fresh.items():
            mapping.add(pages)


_ADDRESS = attrgetter("userspace_addr")


@dataclass(frozen=True, slots=True)
class HostSpace:
    """The host mappings of a VM, all charged to one ledger.

    Attributes:
        pieces: sorted by userspace address.
        records: their packed forms in the same order, for lookups; they hold as long as this space does.
        full: before none of so many pieces, from the first on, is there room for a mapping. No search looks there.
    """

    pieces: tuple[Piece, ...] = ()
    records: bytes = b""
    full: int = 0

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
        at, index = self._free_place(size)
        piece = Piece(at, size, Mapping(size, ledger, sparse=sparse), 0)
        full = index + 1 if index == self.full or size == PAGE_SIZE else self.full
        return self._with_pieces(index, index, (piece,), full), at

    def without(self, start: int, size: int) -> tuple[HostSpace, tuple[Piece, ...]]:
        """Unmap whole pages; as with munmap, a range that holds no mapping is none the worse for it.

        Returns:
            The new space, and the pieces that went, which the caller discards when nothing can reach them any more.

        Raises:
            Refused: EINVAL where the range is empty, not of whole pages, or no range of userspace addresses.
        """
        end = start + size
        if size <= 0 or not is_page_aligned(start) or not is_page_aligned(size) or end > USERSPACE_END:
            raise Refused(errno.EINVAL, f"[{start:#x}, {end:#x}) is no range of whole pages of userspace addresses")
        last = bisect_left(self.pieces, end, key=_ADDRESS)
        first = min(bisect_left(self.pieces, start, key=_ADDRESS), last)
        if first and self.pieces[first - 1].end > start:
            first -= 1
        met = self.pieces[first:last]
        if not met:
            return self, ()
        kept = []
        if met[0].userspace_addr < start:
            kept.append(met[0].part(met[0].userspace_addr, start))
        if met[-1].end > end:
            kept.append(met[-1].part(end, met[-1].end))
        gone = tuple(piece.part(max(start, piece.userspace_addr), min(end, piece.end)) for piece in met)
        return self._with_pieces(first, last, kept, min(self.full, first)), gone

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
        found: list[tuple[Piece, int, int]] = []
        at, end = userspace_addr, userspace_addr + length
        while at < end:
            piece = self.find(at)
            if piece is None:
                raise Refused(errno.EFAULT, f"userspace address {at:#x} is not mapped")
            size = min(end, piece.end) - at
            found.append((piece, at - piece.userspace_addr, size))
            at += size
        if writing:
            touch(found)
        return ((piece.host_address + offset, size) for piece, offset, size in found)

    def _with_pieces(self, first: int, last: int, middle: Sequence[Piece], full: int) -> HostSpace:
        """Return the space with `middle` in the place of the pieces from index `first` to before `last`."""
        size = PIECE_RECORD.size
        records = b"".join([piece.record for piece in middle])
        return HostSpace(
            (*self.pieces[:first], *middle, *self.pieces[last:]),
            self.records[: first * size] + records + self.records[last * size :],
            full,
        )

    def _free_place(self, size: int) -> tuple[int, int]:
        """Return the lowest address with room for `size` bytes, and the index in `pieces` that goes with it."""
        pieces, index = self.pieces, self.full
        at = _place_behind(pieces[index - 1]) if index else _FIRST_ADDRESS
        while True:
            behind = bisect_right(pieces, at + size, lo=index, key=_ADDRESS)
            if behind == index:
                break
            index, at = behind, _place_behind(pieces[behind - 1])
        if at + size > USERSPACE_END:
            raise Refused(errno.ENOMEM, f"no {size:#x} bytes are free among the VM's userspace addresses")
        return at, index


def _place_behind(piece: Piece) -> int:
    # A page stays free between two mappings, so that an overrun meets a hole.
    return piece.end + _PLACE_ALIGNMENT & -_PLACE_ALIGNMENT
