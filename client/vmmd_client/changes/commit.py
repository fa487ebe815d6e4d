"""How a plan is carried out: the script of a transaction, from its first call to the certainty of what became of it.

Three ways, by what the plan needs:

- calls: where no vCPU can see the difference, nobody is held. A dry run first, then one call after another, each with
  the generation that the one before it left; one that is refused has those before it undone.
- hold: a batch [kick, changes, resume]. Where dirty bits have to be kept it is two: [kick, one list of all changes],
  whose answer has the bits, and then the resume. So the bits are never in an answer alone: when the second answer is
  lost, the hold's name tells whether it was done. Where one body does not take all of it, several share the hold.
- list: one call with all changes, where there are more than a batch takes and no bits to keep. The guest waits for one
  publication.

Pure, without I/O: see `script`.
"""

import enum

from ..errors import BadVm, HoldFailed, Outcome, TransactionRefused, TransactionUnsettled, VmmdError
from ..wire import calls
from ..wire.bodies import SMALL, BodySize, size_of
from .commit_calls import check, commit_by_calls, commit_by_list, list_entry
from .commit_held import MAX_LIST, commit_held, commit_inside, in_order, is_small
from .dirty import DirtyView
from .order import Order, TransactionResult
from .script import Exchange, Script

MOST_SINGLE_CALLS = 16
"""Up to so many changes that need no hold go one by one; for more of them one publication is the lesser evil."""


class Way(enum.Enum):
    """How a plan is carried out; the module says when."""

    CALLS = "calls"
    HOLD = "hold"
    LIST = "list"


def commit(order: Order, view: DirtyView) -> Script[TransactionResult]:
    """Carry out a plan, and hand the bits of slots that went to the dirty view.

    Raises (with its `outcome`):
        StaleGeneration: somebody else has changed the map; nothing was done.
        KickTimeout, HoldConflict: the turn did not come; nothing was done.
        TransactionRefused: the daemon refused a step, which is named; it says what stands.
        TransactionUnsettled: the answer is lost, and so is that to the question what became of it.
        TransportError, ProtocolError: the answer is lost; nothing was done.
        PlanTooLarge: it goes into no body that the daemon takes; nothing was sent.
    """
    way: Way | None = None
    try:
        limits = yield from _limits(order)
        if order.is_inside:
            return (yield from commit_inside(order, limits, view))
        way = way_of(order, limits)
        if way is Way.CALLS:
            return (yield from commit_by_calls(order, view))
        if way is Way.LIST:
            return (yield from commit_by_list(order, view))
        return (yield from commit_held(order, limits, view))
    except VmmdError as error:
        error.outcome = _outcome(error, way)
        raise


def dry_run(order: Order) -> Script[TransactionResult]:
    """Have the daemon check a plan; nothing is changed.

    Raises:
        StaleGeneration: somebody else has changed the map.
        TransactionRefused: the daemon would refuse a step, which is named.
        PlanTooLarge: it does not go into one body.
    """
    try:
        limits = yield from _limits(order)
        return (yield from check(order, limits))
    except VmmdError as error:
        error.outcome = _outcome(error, None)
        raise


def way_of(order: Order, limits: BodySize = SMALL) -> Way:
    """Tell how a plan is carried out."""
    plan = order.plan
    if not plan.needs_hold and not order.forced and len(plan.changes) <= MOST_SINGLE_CALLS:
        return Way.CALLS
    if plan.fetches or size_of(in_order(order)).is_within(limits):
        return Way.HOLD
    list_fits = len(plan.changes) <= MAX_LIST and size_of([list_entry(order)]).is_within(limits)
    return Way.LIST if list_fits else Way.HOLD


def _outcome(error: VmmdError, way: Way | None) -> Outcome | None:
    """Tell what became of a transaction from what it ended with."""
    if isinstance(error, BadVm):
        return None
    if isinstance(error, TransactionRefused) and not error.rolled_back:
        return Outcome.PART_DONE if way is Way.CALLS else Outcome.UNKNOWN
    is_unknown = isinstance(error, TransactionUnsettled) or (
        isinstance(error, HoldFailed) and not error.rolled_back and error.became is None
    )
    return Outcome.UNKNOWN if is_unknown else Outcome.NOTHING_DONE


def _limits(order: Order) -> Script[BodySize]:
    """Ask for the daemon's limits, where it matters what they are."""
    if is_small(order):
        return SMALL
    [answer] = yield Exchange((calls.get_info(),))
    return BodySize.of(answer.result().limits)
