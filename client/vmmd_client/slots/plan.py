"""What a change of the memory map asks of KVM: the calls between two slot maps, as pure planning without I/O.

`plan_between` gives the fewest calls that KVM has for it. A slot whose size, userspace address or READONLY flag changes
is deleted and created, since KVM can change neither; one that only moves, or whose logging only is switched, is one
call. Every delete comes before the first create, since a create into a range that is still taken is an error in KVM; in
front of everything come the fetches of the dirty bitmaps that would go. A hold is asked for only where vCPUs could see
the difference: a removed range overlaps an added one (QEMU's rule), or a bitmap has to be exact.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from .memslots import MemFlag, Memslot, SlotMap, deletion_of, first_shared

PAGES_PER_WORD = 64
_PAGE_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch the dirty bitmap of a slot whose log goes."""

    slot: Memslot

    def __str__(self) -> str:
        return f"fetch the dirty log of {self.slot}"


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a slot."""

    slot: Memslot

    @property
    def region(self) -> Memslot:
        """The arguments of KVM_SET_USER_MEMORY_REGION."""
        return deletion_of(self.slot)

    def __str__(self) -> str:
        return f"delete {self.slot}"


@dataclass(frozen=True, slots=True)
class SetFlags:
    """Switch a slot's logging on or off: KVM's flags-only change."""

    old: Memslot
    slot: Memslot

    @property
    def region(self) -> Memslot:
        """The arguments of KVM_SET_USER_MEMORY_REGION."""
        return self.slot

    def __str__(self) -> str:
        return f"set the flags of {self.slot} from {self.old.flags:#x} to {self.slot.flags:#x}"


@dataclass(frozen=True, slots=True)
class Move:
    """Move a slot in guest-physical space: KVM's own move, one call."""

    old: Memslot
    slot: Memslot

    @property
    def region(self) -> Memslot:
        """The arguments of KVM_SET_USER_MEMORY_REGION."""
        return self.slot

    def __str__(self) -> str:
        return f"move {self.old} to [{self.slot.guest_phys_addr:#x}, {self.slot.end:#x})"


@dataclass(frozen=True, slots=True)
class Create:
    """Create a slot."""

    slot: Memslot

    @property
    def region(self) -> Memslot:
        """The arguments of KVM_SET_USER_MEMORY_REGION."""
        return self.slot

    def __str__(self) -> str:
        return f"create {self.slot}"


Change = Delete | SetFlags | Move | Create
Step = Fetch | Change


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan comes to, counted and not measured.

    Attributes:
        slot_calls: KVM_SET_USER_MEMORY_REGIONs.
        fetched_bytes: bytes of dirty bitmaps that are fetched.
        removed_bytes: bytes of guest memory whose translations KVM has to throw away.
    """

    slot_calls: int
    fetched_bytes: int
    removed_bytes: int

    def __str__(self) -> str:
        calls = "1 slot call" if self.slot_calls == 1 else f"{self.slot_calls} slot calls"
        fetched = f", {self.fetched_bytes} bytes of dirty bitmap" if self.fetched_bytes else ""
        return f"{calls}{fetched}, {self.removed_bytes >> 10} KiB of the guest's translations"


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be asked for; `str` writes it for people.

    Attributes:
        before: the slot map that it starts from.
        after: the slot map that will stand.
        steps: in their order.
        reason: why vCPUs have to be held meanwhile; None where none could see the difference.
    """

    before: SlotMap
    after: SlotMap
    steps: tuple[Step, ...]
    reason: str | None

    @property
    def needs_hold(self) -> bool:
        """Whether a vCPU could see the map between two steps, or dirty bits would not be exact."""
        return self.reason is not None

    @property
    def fetches(self) -> tuple[Memslot, ...]:
        """The slots whose dirty bitmap is fetched."""
        return tuple(step.slot for step in self.steps if isinstance(step, Fetch))

    @property
    def changes(self) -> tuple[Change, ...]:
        """The steps that change the map."""
        return tuple(step for step in self.steps if not isinstance(step, Fetch))

    @property
    def cost(self) -> Cost:
        """What it comes to."""
        return Cost(
            slot_calls=len(self.changes),
            fetched_bytes=sum(bitmap_bytes(slot) for slot in self.fetches),
            removed_bytes=sum(step.slot.memory_size for step in self.steps if isinstance(step, Delete | Move)),
        )

    def __str__(self) -> str:
        if not self.steps:
            return "nothing to do"
        held = f"in a hold, since {self.reason}" if self.reason else "without a hold: no vCPU can see the difference"
        lines = [f"{number:>3}  {step}" for number, step in enumerate(self.steps)]
        return "\n".join([f"{self.cost}; {held}", *lines])


def bitmap_bytes(slot: Memslot) -> int:
    """Give the bytes of a slot's dirty bitmap: whole 64-bit words."""
    return -(-slot.memory_size // (_PAGE_SIZE * PAGES_PER_WORD)) * 8


def plan_between(before: SlotMap, after: SlotMap) -> Plan:
    """Plan the way from one slot map to another, each without overlaps.

    Args:
        before: the map that stands.
        after: the map that is wanted; a slot that is the same in both is not touched.
    """
    deleted: list[Memslot] = []
    created: list[Memslot] = []
    kept: list[SetFlags | Move] = []
    places = _Places(before)
    for slot in dict.fromkeys((*before, *after)):
        old, new = before.get(slot), after.get(slot)
        if old == new:
            continue
        change = _changed_in_place(old, new, places) if old and new else None
        if change is not None:
            kept.append(change)
            continue
        if old is not None:
            deleted.append(old)
        if new is not None:
            created.append(new)
    moves = [change for change in kept if isinstance(change, Move)]
    unlogged = [change.old for change in kept if change.old.is_logged]
    fetched = [slot for slot in deleted if slot.is_logged] + unlogged
    steps = (
        *(Fetch(slot) for slot in fetched),
        *(Delete(slot) for slot in deleted),
        *kept,
        *(Create(slot) for slot in created),
    )
    removed = [*deleted, *(move.old for move in moves)]
    added = [*created, *(move.slot for move in moves)]
    return Plan(MappingProxyType(dict(before)), MappingProxyType(dict(after)), steps, _reason(removed, added, fetched))


def _changed_in_place(old: Memslot, new: Memslot, places: "_Places") -> SetFlags | Move | None:
    """Give the one call that changes a slot, or None where KVM has none, or none that keeps the dirty bits right."""
    same_memory = (old.memory_size, old.userspace_addr) == (new.memory_size, new.userspace_addr)
    if not same_memory or (old.flags ^ new.flags) & MemFlag.READONLY:
        return None
    if old.guest_phys_addr == new.guest_phys_addr:
        return SetFlags(old, new)
    # A log that moves along would tell of stores at addresses where nobody made them.
    if old.is_logged or not places.is_free_for(old, new):
        return None
    return Move(old, new)


class _Places:
    """Where the slots of a map lie, for questions about single ranges."""

    def __init__(self, slots: SlotMap) -> None:
        self._slots = sorted(slots.values(), key=lambda slot: slot.guest_phys_addr)
        self._starts = [slot.guest_phys_addr for slot in self._slots]

    def is_free_for(self, old: Memslot, new: Memslot) -> bool:
        """Tell whether a slot's new range overlaps none but its old one, whatever else moves or goes before it."""
        first = max(bisect.bisect_right(self._starts, new.guest_phys_addr) - 1, 0)
        last = bisect.bisect_left(self._starts, new.end)
        return all(slot is old or not slot.overlaps(new) for slot in self._slots[first:last])


def _reason(removed: Sequence[Memslot], added: Sequence[Memslot], fetched: Sequence[Memslot]) -> str | None:
    """Say why vCPUs must be held, by the first example of each cause."""
    reasons = []
    shared = first_shared(removed, added)
    if shared is not None:
        gone, new = shared
        start, end = max(gone.guest_phys_addr, new.guest_phys_addr), min(gone.end, new.end)
        reasons.append(f"[{start:#x}, {end:#x}) goes with slot {gone.slot} and comes again with slot {new.slot}")
    if fetched:
        reasons.append(f"the dirty log of {fetched[0]} goes, and has to be exact")
    return "; ".join(reasons) or None
