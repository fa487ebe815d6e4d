"""The table of translated regions as compiled code reads it: a value that never changes.

It owns what it points at: whoever holds a table can run every region in it. A context takes the newest one before it
enters guest mode, as it takes a view, and gives it back behind that: idle vCPUs keep no old ones.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Container, Sequence
from dataclasses import dataclass

from vmmd.isa.hot.arena import Arena
from vmmd.isa.hot.linkage import EXTENT_WORDS, HASH_FACTOR, RECORD_WORDS
from vmmd.memory.limits import U64

_RECORD = struct.Struct(f"<{RECORD_WORDS}Q")
_EXTENT = struct.Struct(f"<{EXTENT_WORDS}Q")
_SMALLEST_BITS = 6
_numbers = itertools.count(1)

Extents = tuple[tuple[int, bytes], ...]
"""Guest code as (guest-physical address, bytes)."""


@dataclass(frozen=True, slots=True)
class Translated:
    """An entry of a region: its pc, where its machine code is, and the guest code that it was made of.

    `packed` has the extents' records, and behind them the bytes that they point at; all entries of a region share it.
    """

    pc: int
    address: int
    extents: Extents
    packed: ctypes.Array[ctypes.c_char]

    @classmethod
    def of(cls, entries: Sequence[int], address: int, extents: Sequence[tuple[int, bytes]]) -> list[Translated]:
        """Return the entries of one region."""
        head = _EXTENT.size * len(extents)
        packed = ctypes.create_string_buffer(head + sum(len(code) for _, code in extents))
        at = head
        for index, (gpa, code) in enumerate(extents):
            _EXTENT.pack_into(packed, index * _EXTENT.size, gpa, len(code), ctypes.addressof(packed) + at)
            ctypes.memmove(ctypes.addressof(packed) + at, code, len(code))
            at += len(code)
        return [cls(pc, address, tuple(extents), packed) for pc in entries]


class RegionTable:
    """Entries of regions by pc; several may have the same, made of other bytes.

    Attributes:
        number: what tells it from every other table; 0 is none's.
        regions: the entries.
        address: host address of the records.
        shift: 64 less the binary logarithm of their number.
        is_forced: whether contexts that take it run in regions alone, and stop wherever there is none.
    """

    __slots__ = ("_arena", "_records", "address", "is_forced", "number", "regions", "shift")

    def __init__(
        self, arena: Arena | None = None, regions: Sequence[Translated] = (), *, is_forced: bool = False
    ) -> None:
        self.is_forced = is_forced
        bits = max(_SMALLEST_BITS, (2 * len(regions)).bit_length())
        self._begin(arena, (), 64 - bits, bytes(_RECORD.size << bits))
        self._add(regions)

    def _begin(self, arena: Arena | None, regions: tuple[Translated, ...], shift: int, records: bytes) -> None:
        self.number = next(_numbers)
        self._arena = arena
        self.regions = regions
        self.shift = shift
        self._records = ctypes.create_string_buffer(records, len(records))
        self.address = ctypes.addressof(self._records)

    def with_regions(self, arena: Arena, more: Sequence[Translated]) -> RegionTable:
        """Return the table that has these too; their code is in the arena, as that of all others."""
        if 2 * (len(self.regions) + len(more)) > 1 << 64 - self.shift:
            return RegionTable(arena, (*self.regions, *more), is_forced=self.is_forced)
        table = RegionTable.__new__(RegionTable)
        table.is_forced = self.is_forced
        table._begin(arena, self.regions, self.shift, self._records.raw)
        table._add(more)
        return table

    def without(self, addresses: Container[int]) -> RegionTable:
        """Return the table without the regions whose machine code is at some addresses."""
        kept = [region for region in self.regions if region.address not in addresses]
        return RegionTable(self._arena, kept, is_forced=self.is_forced)

    def _add(self, more: Sequence[Translated]) -> None:
        mask = (1 << 64 - self.shift) - 1
        for region in more:
            index = ((region.pc >> 2) * HASH_FACTOR & U64) >> self.shift
            while _RECORD.unpack_from(self._records, index * _RECORD.size)[1]:
                index = index + 1 & mask
            extents = ctypes.addressof(region.packed)
            _RECORD.pack_into(
                self._records, index * _RECORD.size, region.pc, region.address, extents, len(region.extents)
            )
        self.regions = (*self.regions, *more)
