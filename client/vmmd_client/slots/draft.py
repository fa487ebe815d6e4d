"""Changes of a slot map as its owner thinks of them: grow, shrink, split, merge, move, remap, other flags.

A `Draft` takes changes one by one. What cannot be meant is refused at once and leaves the draft as it was; only whether
two slots overlap is looked at when the plan is made, since a later change of the same transaction may make room. What
KVM has to be asked for is not decided here but in `plan`. Pure, without I/O.
"""

import itertools
from dataclasses import replace
from types import MappingProxyType

from ..errors import Misaligned, OutOfRange, PlanError, RangeOverlap, SlotTaken, UnknownSlot
from .memslots import MemFlag, Memslot, SlotMap
from .plan import Plan, plan_between
from .slot_ids import MAX_SLOTS, SlotIds

PAGE_SIZE = 4096
"""Bytes of a page; addresses and sizes are whole pages."""

MAX_SLOT_PAGES = 2**31 - 1
"""The largest slot (KVM_MEM_MAX_NR_PAGES), in pages."""

GPA_END = 1 << 52
"""The first address behind guest-physical space."""

USERSPACE_END = (1 << 47) - PAGE_SIZE
"""The first address behind what a slot can point at."""

# An integer: the complement of a flag has no bits but those of other flags.
_ALL_FLAGS = int(MemFlag.LOG_DIRTY_PAGES | MemFlag.READONLY)


class Draft:
    """The changes so far, on a map that stays as it is."""

    def __init__(self, slots: SlotMap) -> None:
        """Take the map that the changes start from."""
        self._before = MappingProxyType(dict(slots))
        self._standing = dict(slots)
        self._ids = SlotIds(self._standing)

    @property
    def slots(self) -> SlotMap:
        """The map as it will be with the changes so far."""
        return MappingProxyType(self._standing)

    def delete(self, slot: int) -> Memslot:
        """Delete a slot, and give what it was.

        Raises:
            UnknownSlot: there is no such slot.
        """
        gone = self.at(slot)
        del self._standing[slot]
        self._ids.give_back(slot)
        return gone

    def create(self, slot: Memslot) -> Memslot:
        """Create a slot.

        Raises:
            SlotTaken: there is a slot of that id, perhaps of the same transaction.
            Misaligned: an address or the size is not of whole pages.
            OutOfRange: a field has a value that no memslot can have.
        """
        _check(slot)
        taken = self._standing.get(slot.slot)
        if taken is not None:
            raise SlotTaken(
                f"there is a {taken} already; delete it in the same transaction, or take another id", slot.slot
            )
        slot = replace(slot, flags=int(slot.flags))
        self._ids.take_this(slot.slot)
        self._standing[slot.slot] = slot
        return slot

    def free_id(self) -> int:
        """Give the lowest id that no slot has; it is taken when a slot is created under it.

        Raises:
            SlotTaken: all are in use.
        """
        slot = self._ids.take()
        self._ids.give_back(slot)
        return slot

    def grow(self, slot: int, by: int, *, at_start: bool = False) -> Memslot:
        """Make a slot larger by `by` bytes at its end, or at its start; the host memory there must go on likewise.

        Raises:
            UnknownSlot, Misaligned, OutOfRange: see `create`; also where `by` is not more than 0.
        """
        old = self.at(slot)
        _check_amount(old, by, "grow")
        return self._put(_with_edges(old, by if at_start else 0, 0 if at_start else by))

    def shrink(self, slot: int, by: int, *, at_start: bool = False) -> Memslot:
        """Make a slot smaller by `by` bytes at its end, or at its start.

        Raises:
            UnknownSlot, Misaligned, OutOfRange: see `create`; also where nothing would be left.
        """
        old = self.at(slot)
        _check_amount(old, by, "shrink")
        if by >= old.memory_size:
            raise OutOfRange(f"{old} has {old.memory_size:#x} bytes, so {by:#x} less leave none; delete it", "by", by)
        return self._put(_with_edges(old, -by if at_start else 0, 0 if at_start else -by))

    def split(self, slot: int, guest_phys_addr: int, *, second: int | None = None) -> tuple[Memslot, Memslot]:
        """Make two slots of one: the first keeps the id, the second begins at `guest_phys_addr`.

        Args:
            slot: the slot's id.
            guest_phys_addr: where the second begins, inside the slot.
            second: the second one's id; None: the lowest that is free.

        Raises:
            UnknownSlot, SlotTaken, Misaligned: see `create`.
            OutOfRange: the address is not inside the slot.
        """
        old = self.at(slot)
        _check_whole("guest_phys_addr", guest_phys_addr, old)
        if not old.guest_phys_addr < guest_phys_addr < old.end:
            raise OutOfRange(
                f"{old} cannot be split at {guest_phys_addr:#x}: name an address inside it",
                "guest_phys_addr",
                guest_phys_addr,
            )
        size = guest_phys_addr - old.guest_phys_addr
        low = replace(old, memory_size=size)
        _check(low)
        high = self.create(
            Memslot(
                self.free_id() if second is None else second,
                old.flags,
                guest_phys_addr,
                old.memory_size - size,
                old.userspace_addr + size,
            )
        )
        return self._put(low), high

    def merge(self, first: int, second: int) -> Memslot:
        """Make one slot of two, under the first one's id.

        Raises:
            UnknownSlot: a slot does not exist.
            PlanError: the two are not adjacent in gpa and in userspace_addr, in the same order, with equal flags.
        """
        one, two = self.at(first), self.at(second)
        low, high = sorted((one, two), key=lambda slot: slot.guest_phys_addr)
        if first == second or low.end != high.guest_phys_addr:
            raise PlanError(f"{one} and {two} cannot be merged: they do not touch in guest-physical space")
        if low.userspace_addr + low.memory_size != high.userspace_addr:
            raise PlanError(
                f"{one} and {two} cannot be merged: {low} ends at userspace_addr "
                f"{low.userspace_addr + low.memory_size:#x}, but {high} begins at {high.userspace_addr:#x}"
            )
        if one.flags != two.flags:
            raise PlanError(f"{one} and {two} cannot be merged: their flags are {one.flags:#x} and {two.flags:#x}")
        merged = Memslot(first, one.flags, low.guest_phys_addr, low.memory_size + high.memory_size, low.userspace_addr)
        _check(merged)
        self.delete(second)
        return self._put(merged)

    def move(self, slot: int, guest_phys_addr: int) -> Memslot:
        """Put a slot's memory elsewhere in guest-physical space.

        Raises:
            UnknownSlot, Misaligned, OutOfRange: see `create`.
        """
        return self._put(replace(self.at(slot), guest_phys_addr=guest_phys_addr))

    def remap(self, slot: int, userspace_addr: int) -> Memslot:
        """Put other host memory behind a slot.

        Raises:
            UnknownSlot, Misaligned, OutOfRange: see `create`.
        """
        return self._put(replace(self.at(slot), userspace_addr=userspace_addr))

    def set_flags(self, slot: int, *, log_dirty: bool | None = None, readonly: bool | None = None) -> Memslot:
        """Switch a slot's flags on or off; those that are left out stay.

        Raises:
            UnknownSlot: there is no such slot.
        """
        old = self.at(slot)
        flags = old.flags
        for wanted, flag in ((log_dirty, MemFlag.LOG_DIRTY_PAGES), (readonly, MemFlag.READONLY)):
            if wanted is not None and not isinstance(wanted, bool):
                raise OutOfRange(f"{old}: {flag.name} is to be {wanted!r}; give True, False or None", "flags", wanted)
            if wanted is not None:
                flags = flags | int(flag) if wanted else flags & ~int(flag)
        return self._put(replace(old, flags=flags))

    def plan(self) -> Plan:
        """Give the steps, and whether they need a hold.

        Raises:
            RangeOverlap: two slots of the new map share a guest-physical page.
        """
        in_order = sorted(self._standing.values(), key=lambda slot: slot.guest_phys_addr)
        for low, high in itertools.pairwise(in_order):
            if low.overlaps(high):
                raise RangeOverlap(
                    f"{low} and {high} would overlap; shrink, move or delete one of them in the same transaction",
                    (low.slot, high.slot),
                )
        return plan_between(self._before, self._standing)

    def at(self, slot: int) -> Memslot:
        """Give a slot as it will be.

        Raises:
            UnknownSlot: there is none.
            OutOfRange: the id is no integer.
        """
        if not is_integer(slot):
            raise OutOfRange(f"the slot id is {slot!r}; give an integer", "slot", slot)
        try:
            return self._standing[slot]
        except KeyError:
            names = ", ".join(str(number) for number in sorted(self._standing)[:16]) or "none"
            deleted = ", this transaction has deleted it" if slot in self._before else ""
            raise UnknownSlot(f"there is no slot {slot}{deleted}; the slots are: {names}", slot) from None

    def _put(self, slot: Memslot) -> Memslot:
        _check(slot)
        self._standing[slot.slot] = slot
        return slot


def is_integer(value: object) -> bool:
    """Tell whether a value is an integer and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def _with_edges(slot: Memslot, before: int, behind: int) -> Memslot:
    """Move a slot's start down and its end up, by so many bytes."""
    return Memslot(
        slot.slot,
        slot.flags,
        slot.guest_phys_addr - before,
        slot.memory_size + before + behind,
        slot.userspace_addr - before,
    )


def _check_amount(slot: Memslot, by: int, what: str) -> None:
    _check_whole("by", by, slot)
    if by <= 0:
        raise OutOfRange(f"{slot} cannot {what} by {by} bytes; give a number of bytes above 0", "by", by)


def _check_whole(field: str, value: int, slot: Memslot) -> None:
    if not is_integer(value):
        raise OutOfRange(f"slot {slot.slot}: {field} is {value!r}; give an integer", field, value)
    if value % PAGE_SIZE:
        down = value - value % PAGE_SIZE
        raise Misaligned(
            f"slot {slot.slot}: {field} {value:#x} is not a multiple of {PAGE_SIZE:#x}; "
            f"take {down:#x} or {down + PAGE_SIZE:#x}",
            field,
            value,
        )


def _check(slot: Memslot) -> None:
    """Check what KVM asks of one slot by itself (KVM_SET_USER_MEMORY_REGION's own rules, in its order)."""
    if not is_integer(slot.slot) or not 0 <= slot.slot < MAX_SLOTS:
        raise OutOfRange(f"there is no slot id {slot.slot!r}; ids go from 0 to {MAX_SLOTS - 1}", "slot", slot.slot)
    if not is_integer(slot.flags) or slot.flags & ~_ALL_FLAGS:
        raise OutOfRange(
            f"slot {slot.slot}: flags are {slot.flags!r}; use LOG_DIRTY_PAGES (1) and READONLY (2)", "flags", slot.flags
        )
    for field in ("memory_size", "guest_phys_addr", "userspace_addr"):
        _check_whole(field, getattr(slot, field), slot)
    limits = (
        ("memory_size", PAGE_SIZE, MAX_SLOT_PAGES * PAGE_SIZE),
        ("guest_phys_addr", 0, GPA_END - slot.memory_size),
        ("userspace_addr", 0, USERSPACE_END - slot.memory_size),
    )
    for field, least, most in limits:
        value = getattr(slot, field)
        if value == 0 and field == "memory_size":
            raise OutOfRange(f"slot {slot.slot} cannot have 0 bytes; delete it instead", field, value)
        if not least <= value <= most:
            size = f" with {slot.memory_size:#x} bytes" if field != "memory_size" else ""
            raise OutOfRange(
                f"slot {slot.slot}: {field} {value:#x}{size} is not from {least:#x} to {most:#x}", field, value
            )
