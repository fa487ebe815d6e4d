"""What a transaction is asked to do, what comes of it, and how a refusal is told. Values alone, without I/O."""

from dataclasses import dataclass, replace

from vmmd.api.types import U32_MAX

from ..errors import (
    BadVm,
    HoldConflict,
    KickTimeout,
    OutOfRange,
    RpcError,
    StaleGeneration,
    TransactionRefused,
    VmmdError,
)
from ..slots.plan import Plan
from .dirty import DirtyBitmap


@dataclass(frozen=True, slots=True)
class Order:
    """A plan to be carried out.

    Attributes:
        vm: the VM's id.
        plan: the plan.
        generation: the generation of the slot table that it starts from.
        hold: an unguessable name for the hold.
        wait_ms: how long to wait for a turn, in milliseconds.
        forced: whether a hold is wanted also where none is needed.
        is_inside: whether the hold is open already, and is not ours to end.
    """

    vm: str
    plan: Plan
    generation: int
    hold: str
    wait_ms: int
    forced: bool = False
    is_inside: bool = False

    def again(self) -> "Order":
        """Give the same order for another attempt: the name of a hold that has ended cannot be used twice."""
        return replace(self, hold=f"{self.hold}-again")


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """What a transaction did.

    Attributes:
        generation: the slot table's generation behind it.
        pause_ns: for how long the vCPUs were kept out of guest mode, in nanoseconds; None where no hold was needed, or
            the answer was lost.
        kick_ns: how long it took until none was in guest mode, in nanoseconds; None where the daemon did not tell.
        dirty: the bitmaps of the logged slots that went, exact to the last store.
        answer_was_lost: whether an answer was lost on the way, and the daemon was asked what became of it.
    """

    generation: int
    pause_ns: int | None
    kick_ns: int | None
    dirty: tuple[DirtyBitmap, ...]
    answer_was_lost: bool = False

    @property
    def dirty_pages(self) -> int:
        """How many pages the bitmaps have set."""
        return sum(int.from_bytes(bitmap.bitmap).bit_count() for bitmap in self.dirty)


def check_wait_ms(wait_ms: object) -> None:
    """Check a time that the daemon is to wait for.

    Raises:
        OutOfRange: it is no number of milliseconds.
    """
    if not isinstance(wait_ms, int) or isinstance(wait_ms, bool) or not 0 <= wait_ms <= U32_MAX:
        problem = f"wait_ms is {wait_ms!r}; give a whole number of milliseconds, from 0 to {U32_MAX}"
        raise OutOfRange(problem, "wait_ms", wait_ms)


def refusal(order: Order, error: RpcError, outcome: str) -> VmmdError:
    """Give what is raised for a call that was refused and changed nothing; a lost race, or VM, is raised as it is.

    Args:
        order: what was being carried out.
        error: the daemon's error; its data may have the `index` of the change.
        outcome: what stands now.
    """
    if isinstance(error, BadVm | StaleGeneration | HoldConflict | KickTimeout):
        return error
    index = error.data.get("index", 0) if isinstance(error.data, dict) else 0
    return refusal_of(order, index + len(order.plan.fetches), error, outcome, rolled_back=True)


def refusal_of(order: Order, step: int, error: VmmdError, outcome: str, *, rolled_back: bool) -> TransactionRefused:
    """Give what is raised for a step that was not done; its cause is why."""
    refused = TransactionRefused(step, str(order.plan.steps[step]), f"{outcome}: {error}", rolled_back=rolled_back)
    refused.__cause__ = error
    return refused
