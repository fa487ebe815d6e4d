"""Memslots as the client sees them: values, and the arithmetic of the ranges that they cover.

A `Memslot` holds the five fields of struct kvm_userspace_memory_region. A slot map is a plain mapping from slot id to
`Memslot`; `with_call` makes the next one and changes nothing. The module checks no rule of KVM: what is legal is for
the daemon to say. It does no I/O.
"""

import enum
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class MemFlag(enum.IntFlag):
    """The flags of a memslot (KVM's uapi, KVM_MEM_*)."""

    LOG_DIRTY_PAGES = 1
    READONLY = 2


@dataclass(frozen=True, slots=True)
class Memslot:
    """One memslot, or the arguments of one KVM_SET_USER_MEMORY_REGION.

    Attributes:
        slot: the slot's id.
        flags: KVM_MEM_* bits.
        guest_phys_addr: where the range begins in guest-physical space (gpa), in bytes.
        memory_size: the range's size in bytes; 0 in a call that deletes.
        userspace_addr: the address in the VM's host address space that backs the range's first byte.
    """

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int

    @property
    def end(self) -> int:
        """The first gpa behind the range."""
        return self.guest_phys_addr + self.memory_size

    @property
    def address_space(self) -> int:
        """The address space that the slot belongs to: the upper 16 bits of its id."""
        return self.slot >> 16

    @property
    def is_logged(self) -> bool:
        """Whether KVM keeps a dirty bitmap of this slot."""
        return bool(self.flags & MemFlag.LOG_DIRTY_PAGES)

    @property
    def is_writable(self) -> bool:
        """Whether a guest's store reaches memory; where it does not, it is an MMIO exit."""
        return not self.flags & MemFlag.READONLY

    def overlaps(self, other: "Memslot") -> bool:
        """Tell whether the two ranges share a guest-physical byte."""
        return self.guest_phys_addr < other.end and other.guest_phys_addr < self.end

    def __str__(self) -> str:
        return f"slot {self.slot} [{self.guest_phys_addr:#x}, {self.end:#x})"


SlotMap = Mapping[int, Memslot]


@dataclass(frozen=True, slots=True)
class SlotTable:
    """A VM's slot table as it stood at one generation.

    Attributes:
        generation: the table's generation.
        slots: the memslots by their ids.
    """

    generation: int
    slots: SlotMap


def deletion_of(slot: Memslot) -> Memslot:
    """Give the call that deletes `slot`: its id and place with size 0, as QEMU writes it."""
    return Memslot(slot.slot, 0, slot.guest_phys_addr, 0, slot.userspace_addr)


def with_call(slots: SlotMap, call: Memslot) -> dict[int, Memslot]:
    """Give the map that stands after a successful KVM_SET_USER_MEMORY_REGION; `slots` stays as it is."""
    changed = dict(slots)
    if call.memory_size == 0:
        changed.pop(call.slot, None)
    else:
        changed[call.slot] = call
    return changed


def first_shared(ones: Iterable[Memslot], others: Iterable[Memslot]) -> tuple[Memslot, Memslot] | None:
    """Give the first slot of `ones` and of `others` that share a guest-physical byte, or None where no two do."""
    sides = [(slot, 0) for slot in ones] + [(slot, 1) for slot in others]
    furthest: list[Memslot | None] = [None, None]
    for slot, side in sorted(sides, key=lambda entry: entry[0].guest_phys_addr):
        opposite = furthest[1 - side]
        if opposite is not None and opposite.overlaps(slot):
            return (opposite, slot) if side else (slot, opposite)
        mine = furthest[side]
        if mine is None or slot.end > mine.end:
            furthest[side] = slot
    return None


def any_overlap(deleted: Iterable[Memslot], added: Iterable[Memslot]) -> bool:
    """Tell whether a deleted range overlaps an added one: QEMU's rule for when vCPUs must be kept out.

    Where none does, no guest-physical address has memory before and after but not between, whatever the order.
    """
    return first_shared(deleted, added) is not None


@dataclass(frozen=True, slots=True)
class Backing:
    """What lies behind a guest-physical address: the host address of its byte, and whether stores reach it."""

    userspace_addr: int
    is_writable: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A guest-physical range that each of several maps backs evenly.

    Attributes:
        guest_phys_addr: the range's first byte.
        size: its size in bytes.
        backings: for each of the maps, what lies behind the first byte, or None where the map has no memory there.
    """

    guest_phys_addr: int
    size: int
    backings: tuple[Backing | None, ...]


def cut(maps: Iterable[SlotMap]) -> list[Piece]:
    """Cut guest-physical space at every slot border of every map.

    Args:
        maps: slot maps, in the order in which they stood.

    Returns:
        The pieces in ascending order that at least one map backs; no border of any map lies inside a piece.
    """
    tables = [sorted(slots.values(), key=lambda slot: slot.guest_phys_addr) for slots in maps]
    borders = sorted({edge for table in tables for slot in table for edge in (slot.guest_phys_addr, slot.end)})
    cursors = [0] * len(tables)
    pieces = []
    for start, end in itertools.pairwise(borders):
        backings: list[Backing | None] = []
        for which, table in enumerate(tables):
            while cursors[which] < len(table) and table[cursors[which]].end <= start:
                cursors[which] += 1
            slot = table[cursors[which]] if cursors[which] < len(table) else None
            if slot is None or slot.guest_phys_addr > start:
                backings.append(None)
            else:
                offset = start - slot.guest_phys_addr
                backings.append(Backing(slot.userspace_addr + offset, slot.is_writable))
        if any(backings):
            pieces.append(Piece(start, end - start, tuple(backings)))
    return pieces
