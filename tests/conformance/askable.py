"""What may be asked of this machine's KVM: operations that cannot hurt it, and that have one right answer.

Both KVMs get the same question, so it must lie inside what both have. And the kernel's guest writes to this process:
where the guest reaches, a slot points into the sequence's own memory and nowhere else. Every rule looks at a sequence
alone and at no answer, so that the generator and the shrinker can keep to them.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.conformance.host import VMMD, Host
from tests.conformance.recording import Operation, Sequence
from tests.conformance.replay import CODE_GPA, CODE_SIZE, CODE_SLOT
from tests.conformance.table import Place, pages_of
from vmmd.memory.limits import MAX_SLOT_PAGES, PAGE_SHIFT

LARGE_PAGE = 1 << 21
LARGEST_SLOT_GPA = 1 << 32
"""Where a slot of the largest size fits, with an end that the guest reaches."""

UNREACHED_GPA = 1 << 35
"""Guest-physical addresses from here on, for two megabytes, are none that a guest touches."""

_RESERVED = range(CODE_GPA, CODE_GPA + LARGE_PAGE)
_CODE = range(CODE_GPA, CODE_GPA + CODE_SIZE)
_LOGGED_PAGES = 1 << 20
_LOG_DIRTY, _READONLY = 1, 2


class Askable:
    """What this host and vmmd have in common.

    Attributes:
        slots, spaces: ids from 0 up to here are legal in both.
        foreign_slots, foreign_spaces: ids from here on are legal in neither.
        slot_bits: a slot that ends at two to the power of it is legal in both.
        userspace_end: and so is userspace memory that ends here.
        affordable_pages: pages of the largest slot that may be made.
        log_modes: what both take as the argument of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
        flags: flags that both know.
        windows: the guest-physical addresses that a guest may touch, in runs of large pages.
    """

    def __init__(self, host: Host) -> None:
        self._both = (host, VMMD)
        self.slots = min(host.slots, VMMD.slots)
        self.foreign_slots = max(host.slots, VMMD.slots)
        self.spaces = min(host.spaces, VMMD.spaces)
        self.foreign_spaces = max(host.spaces, VMMD.spaces)
        self.slot_bits = min(host.slot_bits, VMMD.slot_bits)
        self.userspace_end = min(host.userspace_end, VMMD.userspace_end)
        self.affordable_pages = min(host.affordable_pages, VMMD.affordable_pages)
        self.log_modes = [mode for mode in (0, 1, 3) if mode & ~(host.log_modes & VMMD.log_modes) == 0]
        self.flags = _LOG_DIRTY | (_READONLY if host.readonly else 0)
        self.windows = _windows(self.affordable_pages, min(host.guest_bits, VMMD.guest_bits))
        self._rules: dict[str, Callable[[Operation], bool]] = {
            "set_user_memory_region": self._may_set,
            "get_dirty_log": self._may_name,
            "clear_dirty_log": self._may_name,
            "enable_cap": self._may_enable,
            "guest_read": self._may_touch,
            "guest_write": self._may_touch,
        }

    def allows(self, sequence: Sequence) -> bool:
        """Tell whether a whole sequence may be asked."""
        lost: set[Place] = set()
        for operation in sequence["ops"]:
            if not self.allows_next(operation, sequence, lost):
                return False
            if operation["op"] == "host_unmap":
                lost |= pages_of(operation["userspace_addr"], operation["length"])
        return True

    def allows_next(self, operation: Operation, sequence: Sequence, lost: set[Place]) -> bool:
        """Tell whether an operation may follow where the host pages in `lost` are gone already."""
        name = operation["op"]
        if name in self._rules and not self._rules[name](operation):
            return False
        if name == "set_user_memory_region":
            return not self._is_reached(operation) or _is_inside(operation, sequence["host"] | sequence["holes"])
        if name.startswith("host_"):
            return _may_use_host(operation, sequence["host"], lost)
        return True

    def reaches(self, start: int, length: int) -> bool:
        """Tell whether a guest may touch the whole of a range of guest-physical addresses."""
        return any(window.start <= start and start + length <= window.stop for window in self.windows)

    def _may_name(self, op: Operation) -> bool:
        slot: int = op["slot"]
        slot_id, space = slot & 0xFFFF, slot >> 16
        is_of_both_or_none = slot_id < self.slots or slot_id >= self.foreign_slots
        return is_of_both_or_none and (space < self.spaces or space >= self.foreign_spaces)

    def _may_set(self, op: Operation) -> bool:
        gpa, size = op["guest_phys_addr"], op["memory_size"]
        end, npages = gpa + size, size >> PAGE_SHIFT
        meets_code = _meets(gpa, end, _CODE)
        bounds = [1 << kvm.slot_bits for kvm in self._both]
        return (
            self._may_name(op)
            and op["slot"] & 0xFFFF != CODE_SLOT
            and not op["flags"] & _READONLY & ~self.flags
            and _on_one_side(end, bounds)
            and self._may_point(op)
            # The kernel has slots of its own beside the code's; where vmmd has none, it could not refuse an overlap.
            and (meets_code or not _meets(gpa, end, _RESERVED))
            and (meets_code or npages <= self._affordable(op["flags"]) or npages > MAX_SLOT_PAGES)
        )

    def _may_point(self, op: Operation) -> bool:
        where = op["userspace_addr"]
        ends = [kvm.userspace_end for kvm in self._both]
        return not isinstance(where, int) or _on_one_side(where + op["memory_size"], ends)

    def _affordable(self, flags: int) -> int:
        return min(self.affordable_pages, _LOGGED_PAGES) if flags & _LOG_DIRTY else self.affordable_pages

    def _is_reached(self, op: Operation) -> bool:
        """Tell whether the guest could touch a slot; one that is larger than userspace will never be."""
        gpa, size = op["guest_phys_addr"], op["memory_size"]
        may_be = size <= max(kvm.userspace_end for kvm in self._both)
        return may_be and any(_meets(gpa, gpa + size, window) for window in self.windows)

    def _may_enable(self, op: Operation) -> bool:
        known = self._both[0].log_modes | self._both[1].log_modes
        return op["arg"] in self.log_modes or op["arg"] == 2 or bool(op["arg"] & ~known)

    def _may_touch(self, op: Operation) -> bool:
        return op["size"] in {1, 2, 4, 8} and self.reaches(op["gpa"], op["size"])


def _windows(affordable_pages: int, guest_bits: int) -> list[range]:
    far_end = LARGEST_SLOT_GPA + -(-(affordable_pages << PAGE_SHIFT) // LARGE_PAGE) * LARGE_PAGE
    top = 1 << guest_bits
    windows = [range(4 * LARGE_PAGE)]
    windows += [range(middle - LARGE_PAGE, middle + LARGE_PAGE) for middle in (LARGEST_SLOT_GPA, far_end)]
    windows.append(range(top - LARGE_PAGE, top))
    return [window for window in windows if window.stop <= top]


def _meets(start: int, end: int, other: range) -> bool:
    return start < other.stop and other.start < end


def _on_one_side(end: int, bounds: list[int]) -> bool:
    """Tell whether what ends at `end` is within all bounds or beyond all of them."""
    return end <= min(bounds) or end > max(bounds)


def _is_inside(op: Operation, memory: dict[str, int]) -> bool:
    where = op["userspace_addr"]
    return (
        not isinstance(where, int)
        and 0 <= where["offset"] <= where["offset"] + op["memory_size"] <= memory[where["at"]]
    )


def _may_use_host(op: Operation, host: dict[str, int], lost: set[Place]) -> bool:
    where = op["userspace_addr"]
    length = op["length"] if "length" in op else len(op["data"]) // 2
    pages = pages_of(where, length)
    is_whole = op["op"] != "host_unmap" or (where["offset"] | length) & (1 << PAGE_SHIFT) - 1 == 0
    return length > 0 and is_whole and where["offset"] + length <= host[where["at"]] and not pages & lost
