"""What a sequence has set so far: slots, the mode of their logs, and host pages that are gone.

It follows the answers and knows no rule: an operation that was refused is not told to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.conformance.recording import Operation
from vmmd.memory.limits import PAGE_SHIFT, PAGE_SIZE

Place = tuple[str, int]
"""A page of a host mapping: the mapping's name and the page's number in it."""

LOG_DIRTY, READONLY = 1, 2
MANUAL_PROTECT = 1


@dataclass(frozen=True)
class Slot:
    """A slot that is set."""

    gpa: int
    size: int
    where: int | dict[str, Any]
    flags: int

    @property
    def end(self) -> int:
        """The first guest-physical address behind it."""
        return self.gpa + self.size

    @property
    def npages(self) -> int:
        """Its size in pages."""
        return self.size >> PAGE_SHIFT

    @property
    def is_logged(self) -> bool:
        """Whether it has a dirty log."""
        return bool(self.flags & LOG_DIRTY)

    def operation(self, slot_id: int, **changed: Any) -> Operation:
        """Return the call that sets it, or one that differs in some fields."""
        return {
            "op": "set_user_memory_region",
            "slot": slot_id,
            "flags": self.flags,
            "guest_phys_addr": self.gpa,
            "memory_size": self.size,
            "userspace_addr": self.where,
        } | changed


class Table:
    """Slots by their ids, the mode of their logs, and the host pages that are gone."""

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self.log_mode = 0
        self.lost: set[Place] = set()

    @property
    def is_manual(self) -> bool:
        """Whether a log is read without being cleared."""
        return bool(self.log_mode & MANUAL_PROTECT)

    def take(self, op: Operation) -> str | None:
        """Follow an operation that was carried out; return what kind of change to the slots it was, if any."""
        match op["op"]:
            case "set_user_memory_region":
                return self._set(op)
            case "enable_cap":
                self.log_mode = op["arg"]
            case "host_unmap":
                self.lost |= pages_of(op["userspace_addr"], op["length"])
        return None

    def find(self, gpa: int) -> tuple[int, Slot] | None:
        """Return the slot that holds an address, with its id."""
        return next(((i, slot) for i, slot in self.slots.items() if slot.gpa <= gpa < slot.end), None)

    def meeting(self, gpa: int, size: int, other_than: int | None = None) -> Iterator[int]:
        """Give the ids of the slots that share an address with a range."""
        for slot_id, slot in self.slots.items():
            if slot_id != other_than and gpa < slot.end and slot.gpa < gpa + size:
                yield slot_id

    def is_mmio(self, gpa: int, *, writing: bool) -> bool:
        """Tell whether an access to an address is none to memory."""
        found = self.find(gpa)
        return found is None or (writing and bool(found[1].flags & READONLY))

    def is_lost(self, gpa: int) -> bool:
        """Tell whether an address lies in a slot whose host page is gone, or was never there."""
        found = self.find(gpa)
        if found is None or isinstance(found[1].where, int):
            return found is not None
        slot, where = found[1], found[1].where
        page = where["offset"] + gpa - slot.gpa >> PAGE_SHIFT
        return where["at"].startswith("hole") or (where["at"], page) in self.lost

    def _set(self, op: Operation) -> str:
        old = self.slots.get(op["slot"])
        if op["memory_size"] == 0:
            del self.slots[op["slot"]]
            return "delete"
        new = Slot(op["guest_phys_addr"], op["memory_size"], op["userspace_addr"], op["flags"])
        self.slots[op["slot"]] = new
        if old is None:
            return "create"
        if new.gpa != old.gpa:
            return "move"
        return "flags only" if new.flags != old.flags else "nothing"


def pages_of(where: dict[str, Any], length: int) -> set[Place]:
    """Return the pages that a range of a host mapping touches."""
    first, last = where["offset"] >> PAGE_SHIFT, where["offset"] + length - 1 >> PAGE_SHIFT
    return {(where["at"], page) for page in range(first, last + 1)}


def pieces_of(access: Operation) -> list[int]:
    """Return where the pieces of a guest access begin: it is cut at the border of a page."""
    gpa, border = access["gpa"], (access["gpa"] | PAGE_SIZE - 1) + 1
    return [gpa, border] if gpa + access["size"] > border else [gpa]
