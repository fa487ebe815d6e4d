"""Memslots: an immutable table of them, and every rule by which KVM_SET_USER_MEMORY_REGION changes it.

`Memslots.with_change` checks a request whole, in the kernel's order, and then makes a new table; the old one stays as
it was and may go on being read. Slots lie in chunks of at most 128, sorted by guest-physical address, and again in
a tree by id, so that a change copies a chunk and a few small tuples, and never the table.

Each slot and each chunk also has the packed form that compiled lookups search: see `SLOT_RECORD` and `CHUNK_RECORD`.
Nothing here is ever changed in place, but for the bits of dirty logs.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from operator import attrgetter

from vmmd.memory.dirty import DirtyLog
from vmmd.memory.errors import Refused
from vmmd.memory.limits import (
    GUEST_PHYS_BITS,
    PAGE_SHIFT,
    U64,
)
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Region, check_region

_CHUNK_SLOTS = 128
_JOIN_SLOTS = 48
_FAN_SHIFT = 5
_FAN = 1 << _FAN_SHIFT

SLOT_RECORD = struct.Struct("<QQQQQQ")
"""A slot for lookups: guest_phys_addr, memory_size, userspace_addr, flags, host address of the log's marks or 0, id."""

CHUNK_RECORD = struct.Struct("<QQQ")
"""A chunk for lookups: its lowest guest_phys_addr, the host address of its slot records, how many they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Memslot(Region):
    """A region that is set, and its dirty log where KVM_MEM_LOG_DIRTY_PAGES is on."""

    dirty: DirtyLog | None = None
    record: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Pack the slot for lookups."""
        log = self.dirty.marks.address if self.dirty is not None else 0
        record = SLOT_RECORD.pack(
            self.guest_phys_addr, self.memory_size, self.userspace_addr, self.flags, log, self.slot
        )
        object.__setattr__(self, "record", record)

    @property
    def npages(self) -> int:
        """Its size in pages."""
        return self.memory_size >> PAGE_SHIFT

    @property
    def readonly(self) -> bool:
        """Whether guest stores to it become MMIO exits."""
        return bool(self.flags & KVM_MEM_READONLY)


class Change(Enum):
    """What a call does to the table, by its contents (enum kvm_mr_change)."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags only"
    NONE = "nothing"


_BASE = attrgetter("guest_phys_addr")


class _Chunk:
    """Neighbouring slots by guest-physical address, at least one and at most `_CHUNK_SLOTS`, and their records."""

    __slots__ = ("_records", "base", "record", "slots")

    def __init__(self, slots: tuple[Memslot, ...], records: bytes) -> None:
        self.slots = slots
        self.base = slots[0].guest_phys_addr
        self._records = records
        self.record = CHUNK_RECORD.pack(self.base, address_of(records), len(slots))

    def place_of(self, guest_phys_addr: int) -> int:
        """Return the index of the first slot that does not begin below an address."""
        return bisect_left(self.slots, guest_phys_addr, key=_BASE)

    def with_slot(self, slot: Memslot) -> tuple[_Chunk, ...]:
        """Return the chunk, or the two chunks, with one more slot."""
        at = self.place_of(slot.guest_phys_addr)
        if at == _CHUNK_SLOTS:
            # Slots that come in ascending order fill their chunks.
            return self, _Chunk((slot,), slot.record)
        cut = at * SLOT_RECORD.size
        grown = _Chunk(
            self.slots[:at] + (slot,) + self.slots[at:], self._records[:cut] + slot.record + self._records[cut:]
        )
        count = len(grown.slots)
        return (grown,) if count <= _CHUNK_SLOTS else (grown.part(0, count // 2), grown.part(count // 2, count))

    def without(self, slot: Memslot) -> tuple[_Chunk, ...]:
        """Return the chunk without a slot, or nothing where it was the only one."""
        at = self.place_of(slot.guest_phys_addr)
        cut = at * SLOT_RECORD.size
        rest = self.slots[:at] + self.slots[at + 1 :]
        return (_Chunk(rest, self._records[:cut] + self._records[cut + SLOT_RECORD.size :]),) if rest else ()

    def with_replaced(self, old: Memslot, new: Memslot, behind: int) -> _Chunk | None:
        """Return the chunk with another slot in the place of one, or None where the order of slots would not allow it.

        `behind` is where the next chunk begins. The first slot of a chunk stays above where the chunk began.
        """
        at = self.place_of(old.guest_phys_addr)
        before = self.slots[at - 1].guest_phys_addr if at else self.base - 1
        after = self.slots[at + 1].guest_phys_addr if at + 1 < len(self.slots) else behind
        if not before < new.guest_phys_addr < after:
            return None
        cut = at * SLOT_RECORD.size
        records = self._records[:cut] + new.record + self._records[cut + SLOT_RECORD.size :]
        return _Chunk(self.slots[:at] + (new,) + self.slots[at + 1 :], records)

    def with_renewed(self, renewed: Mapping[int, Memslot]) -> _Chunk:
        """Return the chunk with other slots, by their ids, in the places of those that have them."""
        slots = tuple(renewed.get(slot.slot, slot) for slot in self.slots)
        return _Chunk(slots, b"".join([slot.record for slot in slots]))

    def part(self, first: int, last: int) -> _Chunk:
        """Return the run of slots from index `first` to before `last`."""
        size = SLOT_RECORD.size
        return _Chunk(self.slots[first:last], self._records[first * size : last * size])

    def joined(self, following: _Chunk) -> _Chunk:
        """Return this chunk and the one behind it as one."""
        return _Chunk(self.slots + following.slots, self._records + following._records)


_CHUNK_BASE = attrgetter("base")

_Leaf = tuple[Memslot | None, ...]
_Ids = tuple[tuple[_Leaf, ...], ...]
"""Slots by id: three levels of 32, so that a change copies 96 entries."""

_NO_IDS: _Ids = (((None,) * _FAN,) * _FAN,) * _FAN

LogFactory = Callable[[int], DirtyLog]
"""Makes the dirty log of a slot of so many pages."""


class Memslots:
    """All memslots of a VM at one generation."""

    __slots__ = ("_chunks", "_ids", "directory", "generation")

    def __init__(
        self,
        generation: int = 0,
        chunks: tuple[_Chunk, ...] = (),
        ids: _Ids = _NO_IDS,
        directory: bytes = b"",
    ) -> None:
        self.generation = generation
        self._chunks = chunks
        self._ids = ids
        # The chunks' records in order, for lookups; they hold as long as this table does.
        self.directory = directory

    def __len__(self) -> int:
        return sum(len(chunk.slots) for chunk in self._chunks)

    def __iter__(self) -> Iterator[Memslot]:
        """Give the slots in the order of guest-physical addresses."""
        for chunk in self._chunks:
            yield from chunk.slots

    def by_id(self) -> Iterator[Memslot]:
        """Give the slots in the order of their ids."""
        for branch in self._ids:
            for leaf in branch:
                yield from (slot for slot in leaf if slot is not None)

    def get(self, slot_id: int) -> Memslot | None:
        """Return the slot with that id, if it is set."""
        if not 0 <= slot_id < _FAN**3:
            return None
        return self._ids[slot_id >> 2 * _FAN_SHIFT][slot_id >> _FAN_SHIFT & _FAN - 1][slot_id & _FAN - 1]

    def find(self, guest_phys_addr: int) -> Memslot | None:
        """Return the slot that holds an address, if there is one."""
        index = bisect_right(self._chunks, guest_phys_addr, key=_CHUNK_BASE) - 1
        if index < 0:
            return None
        slots = self._chunks[index].slots
        slot = slots[bisect_right(slots, guest_phys_addr, key=_BASE) - 1]
        return slot if guest_phys_addr < slot.end else None

    def renumbered(self, generation: int) -> Memslots:
        """Return the same slots at another generation: what a rollback publishes."""
        return Memslots(generation, self._chunks, self._ids, self.directory)

    def with_rings_alone(self) -> Memslots:
        """Return the same slots at the same generation, whose logs take note for dirty rings alone from now on.

        Raises:
            Refused: ENOMEM where the limit has no room for the marks.
        """
        renewed = {
            slot.slot: replace(slot, dirty=slot.dirty.for_rings_alone()) for slot in self if slot.dirty is not None
        }
        chunks = tuple(chunk.with_renewed(renewed) for chunk in self._chunks)
        ids = self._ids
        for slot in renewed.values():
            ids = _with_id(ids, slot.slot, slot)
        return Memslots(self.generation, chunks, ids, b"".join([chunk.record for chunk in chunks]))

    def with_change(self, region: Region, new_log: LogFactory) -> tuple[Memslots, Change]:
        """Return the table after KVM_SET_USER_MEMORY_REGION, one generation on, and what the change was.

        Where the call changes nothing, it is this table. The checks, their order and their errnos are those of
        __kvm_set_memory_region.

        Raises:
            Refused: EINVAL or EEXIST, with the rule and the numbers.
        """
        check_region(region)
        old = self.get(region.slot)
        change = _classify(region, old)
        if change is Change.NONE:
            return self, change
        if change is Change.DELETE and old is not None:
            return self._removed(old), change
        if change is Change.CREATE or change is Change.MOVE:
            self.check_free(region)
            if region.end > 1 << GUEST_PHYS_BITS:
                raise Refused(errno.EINVAL, f"{_range(region)} ends beyond the {GUEST_PHYS_BITS} guest-physical bits")
        new = Memslot(*_fields(region), dirty=_log_of(region, old, new_log))
        return self._inserted(new) if old is None else self._replaced(old, new), change

    def check_free(self, region: Region) -> None:
        """Refuse a region that overlaps a slot of another id.

        Raises:
            Refused: EEXIST, with both ranges.
        """
        for slot in self.overlapping(region.guest_phys_addr, region.end):
            if slot.slot == region.slot:
                continue
            raise Refused(errno.EEXIST, f"{_range(region)} overlaps slot {slot.slot} at {_range(slot)}")

    def overlapping(self, start: int, end: int) -> Iterator[Memslot]:
        """Give the slots that share an address with [start, end), in order."""
        first = max(bisect_right(self._chunks, start, key=_CHUNK_BASE) - 1, 0)
        for chunk in self._chunks[first:]:
            if chunk.base >= end:
                return
            at = max(bisect_right(chunk.slots, start, key=_BASE) - 1, 0)
            for slot in chunk.slots[at:]:
                if slot.guest_phys_addr >= end:
                    return
                if slot.end > start:
                    yield slot

    def _replaced(self, old: Memslot, new: Memslot) -> Memslots:
        """Return the table with a slot in the place of the one with its id."""
        index = self._chunk_of(old.guest_phys_addr)
        chunk = self._chunks[index]
        behind = self._chunks[index + 1].base if index + 1 < len(self._chunks) else U64
        changed = chunk.with_replaced(old, new, behind)
        if changed is None:
            return self._removed(old)._inserted(new).renumbered(self.generation + 1)
        return self._with_chunks(index, index + 1, (changed,), _with_id(self._ids, new.slot, new))

    def _removed(self, slot: Memslot) -> Memslots:
        first = self._chunk_of(slot.guest_phys_addr)
        last = first + 1
        middle = self._chunks[first].without(slot)
        # Chunks that shrink join a neighbour, so that their number stays in proportion to the slots'.
        if middle and first and len(middle[0].slots) + len(self._chunks[first - 1].slots) <= _JOIN_SLOTS:
            first -= 1
            middle = (self._chunks[first].joined(middle[0]),)
        if middle and last < len(self._chunks) and len(middle[0].slots) + len(self._chunks[last].slots) <= _JOIN_SLOTS:
            middle = (middle[0].joined(self._chunks[last]),)
            last += 1
        return self._with_chunks(first, last, middle, _with_id(self._ids, slot.slot, None))

    def _inserted(self, slot: Memslot) -> Memslots:
        ids = _with_id(self._ids, slot.slot, slot)
        if not self._chunks:
            return self._with_chunks(0, 0, (_Chunk((slot,), slot.record),), ids)
        index = self._chunk_of(slot.guest_phys_addr)
        return self._with_chunks(index, index + 1, self._chunks[index].with_slot(slot), ids)

    def _chunk_of(self, guest_phys_addr: int) -> int:
        """Return the index of the chunk where an address belongs."""
        return max(bisect_right(self._chunks, guest_phys_addr, key=_CHUNK_BASE) - 1, 0)

    def _with_chunks(self, first: int, last: int, middle: tuple[_Chunk, ...], ids: _Ids) -> Memslots:
        """Return the table, one generation on, with `middle` in the place of chunks `first` to before `last`."""
        size = CHUNK_RECORD.size
        records = b"".join([chunk.record for chunk in middle])
        directory = self.directory[: first * size] + records + self.directory[last * size :]
        return Memslots(self.generation + 1, self._chunks[:first] + middle + self._chunks[last:], ids, directory)


def _bytes_offset() -> int:
    """Give where a bytes object's bytes stand behind its address, which in CPython is its id."""
    bytes_address = ctypes.pythonapi.PyBytes_AsString
    bytes_address.restype = ctypes.c_void_p
    bytes_address.argtypes = [ctypes.py_object]
    packed = bytes(SLOT_RECORD.size)
    return int(bytes_address(packed)) - id(packed)


_BYTES_OFFSET = _bytes_offset()


def address_of(packed: bytes) -> int:
    """Return the host address of a bytes object's bytes; it holds as long as the object does."""
    return id(packed) + _BYTES_OFFSET


def _classify(region: Region, old: Memslot | None) -> Change:
    if region.memory_size == 0:
        if old is None:
            raise Refused(errno.EINVAL, f"slot {region.slot} is not set, so it cannot be deleted")
        return Change.DELETE
    if old is None:
        return Change.CREATE
    fixed = (
        ("userspace_addr", region.userspace_addr, old.userspace_addr),
        ("memory_size", region.memory_size, old.memory_size),
        ("KVM_MEM_READONLY", region.flags & KVM_MEM_READONLY, old.flags & KVM_MEM_READONLY),
    )
    for name, wanted, present in fixed:
        if wanted != present:
            sentence = (
                f"{name} of slot {region.slot} is {present:#x} and cannot become {wanted:#x}: delete it, then create it"
            )
            raise Refused(errno.EINVAL, sentence)
    if region.guest_phys_addr != old.guest_phys_addr:
        return Change.MOVE
    return Change.FLAGS_ONLY if region.flags != old.flags else Change.NONE


def _log_of(region: Region, old: Memslot | None, new_log: LogFactory) -> DirtyLog | None:
    if not region.flags & KVM_MEM_LOG_DIRTY_PAGES:
        return None
    if old is not None and old.dirty is not None:
        return old.dirty if region.guest_phys_addr == old.guest_phys_addr else old.dirty.moved()
    return new_log(region.memory_size >> PAGE_SHIFT)


def _fields(region: Region) -> tuple[int, int, int, int, int]:
    return region.slot, region.flags, region.guest_phys_addr, region.memory_size, region.userspace_addr


def _with_id(ids: _Ids, slot_id: int, slot: Memslot | None) -> _Ids:
    """Return the ids with another slot, or none, under one of them."""
    high, middle, low = slot_id >> 2 * _FAN_SHIFT, slot_id >> _FAN_SHIFT & _FAN - 1, slot_id & _FAN - 1
    branch = ids[high]
    leaf = branch[middle]
    leaf = leaf[:low] + (slot,) + leaf[low + 1 :]
    branch = branch[:middle] + (leaf,) + branch[middle + 1 :]
    return ids[:high] + (branch,) + ids[high + 1 :]


def _range(region: Region) -> str:
    return f"[{region.guest_phys_addr:#x}, {region.end:#x})"
