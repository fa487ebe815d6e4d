"""What a transaction will ask for: pure planning over slot maps, without I/O.

A `Draft` takes changes one by one and checks each against the map as it would then be; what cannot be meant is refused
at once and leaves the draft as it was. `plan()` gives the calls: every delete before the first create, since a create
into a range that is still taken is an error in KVM; in front of a logged slot's delete the fetch of its dirty bitmap,
since a delete drops it. A hold is asked for only where vCPUs could see the difference: a deleted range overlaps an
added one (QEMU's rule), or a bitmap has to be exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .errors import PlanError
from .memslots import Memslot, SlotMap, any_overlap, deletion_of


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch the dirty bitmap of a slot that goes."""

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
class Create:
    """Create a slot."""

    slot: Memslot

    @property
    def region(self) -> Memslot:
        """The arguments of KVM_SET_USER_MEMORY_REGION."""
        return self.slot

    def __str__(self) -> str:
        return f"create {self.slot}"


Step = Fetch | Delete | Create


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be sent.

    Attributes:
        steps: in their order.
        needs_hold: whether a vCPU could see the map between two steps, or dirty bits would not be exact.
        after: the slot map that will stand.
    """

    steps: tuple[Step, ...]
    needs_hold: bool
    after: SlotMap


class Draft:
    """The changes so far, on a map that stays as it is."""

    def __init__(self, slots: SlotMap) -> None:
        """Take the map that the changes start from."""
        self._deleted: dict[int, Memslot] = {}
        self._created: dict[int, Memslot] = {}
        self._standing = dict(slots)

    @property
    def slots(self) -> SlotMap:
        """The map as it will be with the changes so far."""
        return MappingProxyType(self._standing)

    def delete(self, slot: int) -> Memslot:
        """Delete a slot, and give what it was.

        Raises:
            PlanError: there is no such slot.
        """
        gone = self._at(slot)
        del self._standing[slot]
        if self._created.pop(slot, None) is None:
            self._deleted[slot] = gone
        return gone

    def create(self, slot: Memslot) -> Memslot:
        """Create a slot.

        Raises:
            PlanError: the id is taken, or the size is 0, which would be a delete.
        """
        taken = self._standing.get(slot.slot)
        if taken is not None:
            raise PlanError(f"there is a {taken} already; delete it in the same transaction, or take another id")
        if slot.memory_size <= 0:
            raise PlanError(f"slot {slot.slot} cannot be created with a size of {slot.memory_size} bytes")
        self._standing[slot.slot] = slot
        self._created[slot.slot] = slot
        return slot

    def merge(self, first: int, second: int) -> Memslot:
        """Make one slot of two, under the first one's id.

        Raises:
            PlanError: a slot does not exist, or the two are not adjacent in gpa and in userspace_addr, in the same
                order, with equal flags.
        """
        one, two = self._at(first), self._at(second)
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
        self.delete(first)
        self.delete(second)
        size = low.memory_size + high.memory_size
        return self.create(Memslot(first, one.flags, low.guest_phys_addr, size, low.userspace_addr))

    def plan(self) -> Plan:
        """Give the steps, and whether they need a hold."""
        deleted = tuple(self._deleted.values())
        created = tuple(self._created.values())
        steps: list[Step] = []
        for slot in deleted:
            if slot.is_logged:
                steps.append(Fetch(slot))
            steps.append(Delete(slot))
        steps.extend(Create(slot) for slot in created)
        needs_hold = any(slot.is_logged for slot in deleted) or any_overlap(deleted, created)
        return Plan(tuple(steps), needs_hold, dict(self._standing))

    def _at(self, slot: int) -> Memslot:
        try:
            return self._standing[slot]
        except KeyError:
            known: Mapping[int, Memslot] = self._standing
            names = ", ".join(str(number) for number in sorted(known)[:16]) or "none"
            raise PlanError(f"there is no slot {slot}; the slots are: {names}") from None
