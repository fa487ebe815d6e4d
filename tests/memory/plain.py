"""What the tests of this room share: atomic words without an engine, and tables made of regions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from vmmd.memory.dirty import DirtyBitmap, DirtyLog
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.memslots import CHUNK_RECORD, SLOT_RECORD, Change, Memslot, Memslots
from vmmd.memory.region import Region

HVA = 0x10_0000_0000


class PlainWords:
    """`Words` for one thread."""

    def set_bits(self, address: int, bits: int) -> int:
        word = ctypes.c_uint64.from_address(address)
        before = word.value
        word.value |= bits
        return before

    def compare_exchange(self, address: int, size: int, expected: int, new: int) -> int:
        number = (ctypes.c_uint32 if size == 4 else ctypes.c_uint64).from_address(address)
        before = int(number.value)
        if before == expected:
            number.value = new
        return before

    def exchange(self, address: int, count: int) -> bytes:
        taken = ctypes.string_at(address, count * 8)
        ctypes.memset(address, 0, count * 8)
        return taken

    def clear(self, address: int, masks: bytes) -> bytes:
        gone = bytearray()
        for at in range(0, len(masks), 8):
            word = ctypes.c_uint64.from_address(address + at)
            mask = int.from_bytes(masks[at : at + 8], "little")
            gone += (word.value & mask).to_bytes(8, "little")
            word.value &= ~mask
        return bytes(gone)


def new_log(npages: int) -> DirtyLog:
    bitmap = DirtyBitmap(npages, PlainWords())
    return DirtyLog(bitmap, bitmap)


def pages(slot: int, first: int, count: int, *, flags: int = 0, hva: int | None = None) -> Region:
    """A region given in pages; by default its userspace address is as far from `HVA` as it is from 0."""
    size, gpa = count * PAGE_SIZE, first * PAGE_SIZE
    return Region(slot, flags, gpa, size, HVA + gpa if hva is None else hva)


def gone(slot: int) -> Region:
    """What deletes a slot."""
    return Region(slot, 0, 0, 0, 0)


def change(memslots: Memslots, region: Region) -> tuple[Memslots, Change]:
    return memslots.with_change(region, new_log)


def table(*regions: Region) -> Memslots:
    memslots = Memslots()
    for region in regions:
        memslots, _ = change(memslots, region)
    return memslots


def contents(memslots: Memslots) -> tuple[int, list[Memslot], list[Memslot], bytes]:
    """All that a table says of itself. Slots are compared by identity."""
    return memslots.generation, list(memslots), list(memslots.by_id()), memslots.directory


def packed_slots(memslots: Memslots) -> Iterator[list[tuple[int, ...]]]:
    """Read the packed records as compiled lookups do: chunk after chunk, the unpacked slots of each."""
    for base, address, count in CHUNK_RECORD.iter_unpack(memslots.directory):
        records = list(SLOT_RECORD.iter_unpack(ctypes.string_at(address, count * SLOT_RECORD.size)))
        assert records[0][0] == base
        yield records
