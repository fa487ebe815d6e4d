"""The context of a vCPU: the one record that compiled code shares with the rest.

It holds the registers, how far the vCPU may run, the words of the handshake between it and whoever kicks it, and cached
translations. Compiled code finds every field by its offset here. Who may write which part:

- registers, counters and caches: whoever has the vCPU, a worker in guest mode or Python while the vCPU is outside of
it;
- `requests` and `mip`: anybody, by atomic steps of the engine alone;
- `mode`: the worker that enters and leaves, as a statement to whoever kicks.

It refuses to own guest memory: what a context's view leads to is kept by whoever runs it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from vmmd.isa.hot.table import RegionTable
from vmmd.memory.limits import PAGE_SHIFT, U64
from vmmd.memory.ring import DirtyRing
from vmmd.memory.view import View

OUTSIDE_GUEST_MODE = 0
"""The vCPU reads no memslot and no guest memory, and will look at its requests before it does."""

IN_GUEST_MODE = 1
"""The vCPU executes guest instructions over its view."""

READING_MEMSLOTS = 2
"""Python completes an instruction of the vCPU over its view."""

REGION_SHIFT = 21
"""Cached translations are spread over entries by the address in units of 2 MiB."""

NOT_RESERVED = 1
"""In the place of a reserved address: atomics are aligned, so none is this."""

CACHE_ENTRIES = 64
"""Entries of a cache. The two first caches, for reads and for writes, are asked inline and spread by region; behind
each stands one that is spread by page, so that small slots side by side do not drive each other out into a search."""


JUMPS = 256
"""Entries of the jump cache, by pc."""

NO_JUMP = 1
"""The pc of an empty one: instructions are aligned, so none is there."""

WATCHED_PAGES = 64
"""How many pages with translated code a vCPU may run in before it compares them all anew."""

SAMPLES = 64
"""How many jump targets are noted between two looks at them."""

SAMPLE_BACKWARD, SAMPLE_EXIT = 1, 2
"""The low bits of a sample: the jump went back, or it came out of a region."""


class CacheEntry(ctypes.Structure):
    """A cached translation: a run of guest-physical addresses and where it lies. A cache line long."""

    _fields_ = [
        ("gpa", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("host", ctypes.c_uint64),
        ("log", ctypes.c_uint64),  # host address of the marks of the slot's log, or 0
        ("log_gpa", ctypes.c_uint64),  # where the slot begins
        ("slot", ctypes.c_uint64),  # its id
        ("code", ctypes.c_uint64),  # where it is a page with translated code: host address of its `WatchedPage`, or 0
        ("watched", ctypes.c_uint64),  # not 0 where a store has more to do: for the log, or for the code
    ]


class Jump(ctypes.Structure):
    """An entry of the jump cache: the machine code of the region at a pc, whose bytes were compared."""

    _fields_ = [("pc", ctypes.c_uint64), ("code", ctypes.c_uint64)]


class WatchedPage(ctypes.Structure):
    """A host page with translated code, and a bit for each of its 64 lines of 64 bytes that has some."""

    _fields_ = [("host", ctypes.c_uint64), ("lines", ctypes.c_uint64)]


class ContextRecord(ctypes.Structure):
    """The record itself, as it lies in memory."""

    _fields_ = [
        ("x", ctypes.c_uint64 * 32),
        ("pc", ctypes.c_uint64),
        ("retired", ctypes.c_uint64),  # instructions since the vCPU was made
        ("budget", ctypes.c_uint64),  # instructions that it may retire before it stops
        ("chunk", ctypes.c_uint64),  # instructions between two looks at the requests, of which some are still to run
        ("requests", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("view_number", ctypes.c_uint64),
        ("published", ctypes.c_uint64),  # host address of the word with the number of the VM's newest view
        ("directory", ctypes.c_uint64),
        ("chunks", ctypes.c_uint64),
        ("pieces", ctypes.c_uint64),
        ("piece_count", ctypes.c_uint64),
        ("ring", ctypes.c_uint64),  # host address of the vCPU's dirty ring, or 0
        ("ring_full", ctypes.c_uint64),  # the request that a store sets when the ring is full softly
        ("reserved_at", ctypes.c_uint64),  # the address that an lr reserved, or 1, which none is
        ("reserved_value", ctypes.c_uint64),  # what it loaded, extended
        ("mip", ctypes.c_uint64),  # interrupts that are pending
        ("mie", ctypes.c_uint64),
        ("mstatus", ctypes.c_uint64),
        ("mtvec", ctypes.c_uint64),
        ("mscratch", ctypes.c_uint64),
        ("mepc", ctypes.c_uint64),
        ("mcause", ctypes.c_uint64),
        ("mtval", ctypes.c_uint64),
        ("linkage", ctypes.c_uint64),  # host address of the table of functions that regions call
        ("regions", ctypes.c_uint64),  # host address of the table of translated regions, or 0
        ("region_shift", ctypes.c_uint64),  # 64 less the binary logarithm of its size
        ("forced", ctypes.c_uint64),  # not 0: every jump to what is not translated is a stop
        ("seek", ctypes.c_uint64),  # single steps that are left in the search for the next region
        ("skip", ctypes.c_uint64),  # chunks until the next search
        ("pause", ctypes.c_uint64),  # how many there are behind the next search that finds nothing
        ("last_pc", ctypes.c_uint64),  # where the single step before this began
        ("code_changed", ctypes.c_uint64),  # not 0: a store of this vCPU's went to translated code
        ("jump_count", ctypes.c_uint64),  # entries of the jump cache that were filled since it was emptied
        ("watch_count", ctypes.c_uint64),
        ("sample_count", ctypes.c_uint64),
        ("samples", ctypes.c_uint64 * SAMPLES),  # jump targets that were met; the low two bits say how
        ("jumps", Jump * JUMPS),
        ("watch", WatchedPage * WATCHED_PAGES),
        ("padding", ctypes.c_uint64 * 4),
        # From here on cache lines: what stands above is a whole number of them.
        ("read_cache", CacheEntry * CACHE_ENTRIES),
        ("write_cache", CacheEntry * CACHE_ENTRIES),
        ("read_pages", CacheEntry * CACHE_ENTRIES),
        ("write_pages", CacheEntry * CACHE_ENTRIES),
    ]


_LINE = 64


def _empty_cache(shift: int) -> bytes:
    """Return a cache in which no entry can be hit; `shift` spreads addresses over it.

    An entry is only asked for addresses of its own region or page, modulo the number of entries. Each empty one claims
    eight bytes that are another entry's, so that the one comparison of a lookup also refuses it.
    """
    entries = (CacheEntry * CACHE_ENTRIES)()
    for index, entry in enumerate(entries):
        entry.gpa = (index + 1) % CACHE_ENTRIES << shift
        entry.size = 8
    return bytes(entries)


_EMPTY_CACHES = 2 * _empty_cache(REGION_SHIFT) + 2 * _empty_cache(PAGE_SHIFT)


class Context:
    """A vCPU's record at a fixed, aligned host address.

    Attributes:
        record: the fields.
        address: where the record lies.
        hart: what `mhartid` reads as.
        clock: gives what `time` reads as, in nanoseconds.
        breakpoints_leave: whether an `ebreak` is for a debugger outside, and not for the guest.
        ring: the vCPU's dirty ring, where the VM has rings.
    """

    __slots__ = (
        "_buffer",
        "_generation",
        "_published",
        "_regions",
        "_regions_number",
        "address",
        "breakpoints_leave",
        "clock",
        "hart",
        "record",
        "ring",
    )

    def __init__(
        self,
        published: ctypes.c_uint64,
        hart: int,
        clock: Callable[[], int],
        ring: DirtyRing | None = None,
        ring_full: int = 0,
    ) -> None:
        self._buffer = ctypes.create_string_buffer(ctypes.sizeof(ContextRecord) + _LINE)
        start = ctypes.addressof(self._buffer)
        self.address = start + _LINE - 1 & -_LINE
        self.record = ContextRecord.from_buffer(self._buffer, self.address - start)
        self.end_reservation()
        for jump in self.record.jumps:
            jump.pc = NO_JUMP
        self.hart = hart
        self.clock = clock
        self.breakpoints_leave = False
        self._regions: RegionTable | None = None
        self._regions_number = 0  # of the table that was taken last
        self._generation = -1  # of the slot table in the view that was taken last
        self._published = published  # compiled code reads the word for as long as it has the record
        self.record.published = ctypes.addressof(published)
        self.ring = ring
        self.record.ring = ring.address if ring is not None else 0
        self.record.ring_full = ring_full

    def take_view(self, view: View) -> None:
        """Look things up in `view` from now on; the caller keeps it alive while the vCPU may read it."""
        record = self.record
        if record.view_number == view.number:
            return
        record.directory, record.chunks = view.directory_address, view.chunks
        record.pieces, record.piece_count = view.pieces_address, view.pieces
        ctypes.memmove(record.read_cache, _EMPTY_CACHES, len(_EMPTY_CACHES))
        record.watch_count = 0
        record.view_number = view.number
        if view.memslots.generation != self._generation:
            self._generation = view.memslots.generation
            self.end_reservation()

    def take_regions(self, table: RegionTable | None) -> None:
        """Enter the regions of a table from now on, or none; the context keeps the table until it gives it back."""
        record = self.record
        self._regions = table
        number = table.number if table is not None else 0
        if number != self._regions_number:
            self._regions_number = number
            record.regions, record.region_shift = (table.address, table.shift) if table is not None else (0, 0)
            record.forced = table is not None and table.is_forced
            record.skip, record.pause = 0, 1
            record.jump_count = JUMPS  # what is in the jump cache is not of this table
        if record.forced:
            record.seek, record.last_pc = U64, NO_JUMP

    def give_regions_back(self) -> None:
        """Keep the table that was taken no longer; another is taken before guest mode is entered again."""
        self._regions = None

    def end_reservation(self) -> None:
        """End the reservation of an lr, if there is one."""
        self.record.reserved_at = NOT_RESERVED
