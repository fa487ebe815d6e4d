"""What cannot be meant, so that nothing was sent: the branch of `PlanError`."""

from .root import Outcome, VmmdError


class PlanError(VmmdError):
    """A transaction that cannot be meant: an unknown slot, a merge of slots that do not touch. Nothing was sent."""

    outcome = Outcome.NOTHING_DONE


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


class NestedTurn(PlanError):
    """A transaction, hold, update or fetch inside another block of the same VM could only wait for itself.

    Nothing was sent.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is inside another block of the same VM, which would have to end first: end that block before, or "
            "make the change a part of it; inside `vm.hold() as hold` it is hold.transaction()"
        )


class TurnTimeout(PlanError):
    """Others of this client had the VM's turn for too long. Nothing was sent.

    Attributes:
        wait_s: how long was waited, in seconds.
    """

    def __init__(self, what: str, wait_s: float) -> None:
        super().__init__(
            f"{what} waited {wait_s:g} s for the blocks of other tasks of this client on the same VM; "
            "keep those short, or give it more time: vm.with_timeout(timeout_s)"
        )
        self.wait_s = wait_s


class UnsendableParam(PlanError):
    """A parameter of a call that cannot be sent: text where bytes are wanted, bytes for text, NaN. Nothing was sent.

    Attributes:
        method: the method.
        parameter: the parameter's name.
    """

    def __init__(self, method: str, parameter: str, problem: str) -> None:
        super().__init__(f"{method}: the parameter {parameter} cannot be sent: {problem}")
        self.method = method
        self.parameter = parameter
