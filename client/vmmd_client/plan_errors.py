"""What is wrong with a transaction that cannot be meant: the branch of `PlanError` in the tree that `errors` draws."""

# ruff: noqa: N818 -- the names say what happened; "Error" behind each of them would say it twice.

from .errors import PlanError


class UnknownSlot(PlanError):
    """A transaction names a slot that is not there, or that it has deleted. Nothing was sent.

    Attributes:
        slot: the id.
    """

    def __init__(self, message: str, slot: int) -> None:
        super().__init__(message)
        self.slot = slot


class SlotTaken(PlanError):
    """A transaction creates a slot under an id that has one, also one of its own. Nothing was sent.

    Attributes:
        slot: the id.
    """

    def __init__(self, message: str, slot: int) -> None:
        super().__init__(message)
        self.slot = slot


class RangeOverlap(PlanError):
    """Two slots would share a guest-physical page when the transaction has ended. Nothing was sent.

    Attributes:
        slots: the ids of both, the lower range's first; where a region of an address space would lie over a slot of
            somebody else's: that one's.
    """

    def __init__(self, message: str, slots: tuple[int, ...]) -> None:
        super().__init__(message)
        self.slots = slots


class Misaligned(PlanError):
    """An address or a size is not a multiple of 4096. Nothing was sent.

    Attributes:
        field: the field's name, "memory_size".
        value: what it was given.
    """

    def __init__(self, message: str, field: str, value: int) -> None:
        super().__init__(message)
        self.field = field
        self.value = value


class OutOfRange(PlanError):
    """An address, a size, a slot id or flags that no memslot can have. Nothing was sent.

    Attributes:
        field: the field's name, "memory_size".
        value: what it was given.
    """

    def __init__(self, message: str, field: str, value: object) -> None:
        super().__init__(message)
        self.field = field
        self.value = value


class PlanTooLarge(PlanError):
    """A transaction goes into no body that the daemon takes. Nothing was sent."""
