"""The kernel's freedom in dirty logs: pages that it may mark though no store of the guest reached them.

Where a guest touches a page of a logged slot, KVM may map it writable, and marks it in the log at once. So a page that
the guest read, or where a store ended in EFAULT for its other piece, may be marked; vmmd marks what was stored to. Each
such page is remembered until its bit is cleared: every bit of vmmd's has to be one of the kernel's, and each bit more
of the kernel's has to be one of these pages.
"""

from __future__ import annotations

from tests.conformance.recording import Answer, Operation
from tests.conformance.table import LOG_DIRTY, READONLY, Table, pieces_of
from vmmd.memory.limits import PAGE_SHIFT


class Freedom:
    """Which pages of which slot may be marked. `table` has to be told an answer after this, and not before."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._touched: dict[int, set[int]] = {}

    def covers(self, op: Operation, kernel: Answer, vmmd: Answer) -> bool:
        """Tell whether two answers to `get_dirty_log` are as good as equal."""
        if "bitmap" not in kernel or "bitmap" not in vmmd or len(kernel["bitmap"]) != len(vmmd["bitmap"]):
            return False
        kernel_bits, vmmd_bits = _bits(kernel["bitmap"]), _bits(vmmd["bitmap"])
        may = sum(1 << page for page in self._touched.get(op["slot"], ()))
        return not vmmd_bits & ~kernel_bits and not kernel_bits & ~vmmd_bits & ~may

    def take(self, op: Operation, answer: Answer) -> None:
        """Follow an operation with the kernel's answer."""
        match op["op"]:
            case "guest_read":
                self._touch(op)
            case "guest_write":
                if answer["exits"] and "errno" in answer["exits"][-1]:
                    self._touch(op)
            case "set_user_memory_region":
                if answer["errno"] == "0":
                    self._set(op)
            case "get_dirty_log":
                if answer["errno"] == "0" and not self._table.is_manual:
                    self._touched.pop(op["slot"], None)
            case "clear_dirty_log":
                if answer["errno"] == "0":
                    self._clear(op)

    def _touch(self, access: Operation) -> None:
        for gpa in pieces_of(access):
            found = self._table.find(gpa)
            if found is not None and found[1].is_logged and not found[1].flags & READONLY:
                slot_id, slot = found
                self._touched.setdefault(slot_id, set()).add(gpa - slot.gpa >> PAGE_SHIFT)

    def _set(self, op: Operation) -> None:
        """A log that goes, or that is new, has no page that was touched before."""
        old = self._table.slots.get(op["slot"])
        goes_on = op["memory_size"] and old is not None and old.is_logged and op["flags"] & LOG_DIRTY
        if not goes_on:
            self._touched.pop(op["slot"], None)

    def _clear(self, op: Operation) -> None:
        bits, first = _bits(op["bitmap"]), op["first_page"]
        touched = self._touched.get(op["slot"], set())
        gone = {page for page in touched if first <= page < first + op["num_pages"] and bits >> page - first & 1}
        touched -= gone


def _bits(bitmap: str) -> int:
    return int.from_bytes(bytes.fromhex(bitmap), "little")
