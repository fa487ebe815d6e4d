"""Dirty rings: the pages that one vCPU has dirtied, in the order in which it did, in KVM's layout.

An entry is struct kvm_dirty_gfn: flags, slot, and the page's number in the slot. It is free (flags 0), then dirty
(the vCPU has published it), then harvested (userspace has read it), and free again by KVM_RESET_DIRTY_RINGS. Indices
only grow; they and the entries lie in one buffer, where compiled code writes them without the GIL: the vCPU alone
writes entries and `dirty`, the event loop alone the rest.

A ring is full softly before it is full: what a vCPU can still write before it looks at its requests has room behind
that limit.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

KVM_DIRTY_GFN_F_DIRTY = 1 << 0
KVM_DIRTY_GFN_F_RESET = 1 << 1

ENTRY = struct.Struct("<IIQ")
"""flags, slot, offset in pages."""

MAX_RING_BYTES = 65536 * ENTRY.size
"""KVM_CAP_DIRTY_LOG_RING: the largest ring."""

RESERVED_ENTRIES = 64 + 512
"""Entries behind the soft limit, as on x86 with PML: KVM's own 64, and what a vCPU may write in one chunk."""


class RingHeader(ctypes.Structure):
    """What compiled code finds in front of the entries. Counts are entries."""

    _fields_ = [
        ("dirty", ctypes.c_uint64),  # published since the ring was made
        ("reset", ctypes.c_uint64),  # free again since then
        ("soft_limit", ctypes.c_uint64),
        ("mask", ctypes.c_uint64),
    ]


HEADER_BYTES = ctypes.sizeof(RingHeader)


class DirtyRing:
    """The ring of one vCPU.

    Attributes:
        address: where its header lies.
    """

    __slots__ = ("_buffer", "_entries", "_harvested", "_header", "address")

    def __init__(self, size_bytes: int) -> None:
        self._entries = size_bytes // ENTRY.size
        self._buffer = ctypes.create_string_buffer(HEADER_BYTES + size_bytes)
        self._header = RingHeader.from_buffer(self._buffer)
        self._header.soft_limit = self._entries - RESERVED_ENTRIES
        self._header.mask = self._entries - 1
        self._harvested = 0
        self.address = ctypes.addressof(self._buffer)

    @property
    def is_soft_full(self) -> bool:
        """Whether the vCPU may write no more before a reset."""
        header = self._header
        return bool(header.dirty - header.reset >= header.soft_limit)

    def push(self, slot: int, page: int) -> None:
        """Publish a dirty page; only the vCPU's own worker does."""
        ENTRY.pack_into(self._buffer, self._at(self._header.dirty), KVM_DIRTY_GFN_F_DIRTY, slot, page)
        self._header.dirty += 1

    def harvest(self, count: int) -> list[tuple[int, int]]:
        """Read at most `count` published entries, as (slot, page), and mark them for the next reset."""
        found: list[tuple[int, int]] = []
        while len(found) < count and self._harvested < self._header.dirty:
            at = self._at(self._harvested)
            _, slot, page = ENTRY.unpack_from(self._buffer, at)
            struct.pack_into("<I", self._buffer, at, KVM_DIRTY_GFN_F_RESET)
            self._harvested += 1
            found.append((slot, page))
        return found

    def reset(self) -> Iterator[tuple[int, int]]:
        """Free every harvested entry, and give them as (slot, page)."""
        while self._header.reset < self._harvested:
            at = self._at(self._header.reset)
            _, slot, page = ENTRY.unpack_from(self._buffer, at)
            struct.pack_into("<I", self._buffer, at, 0)
            self._header.reset += 1
            yield slot, page

    def _at(self, index: int) -> int:
        return HEADER_BYTES + (index & self._entries - 1) * ENTRY.size
