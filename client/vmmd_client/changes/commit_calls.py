"""A plan carried out without a batch, by one list call or by single calls; see `commit`. Pure, without I/O."""

from typing import NoReturn

from vmmd.api.memslots import RegionListResult, RegionsResult

from ..errors import PlanTooLarge, RpcError, TooBig, TransactionUnsettled, VmmdError
from ..slots.memslots import Memslot, SlotMap, deletion_of
from ..slots.plan import Change
from ..wire import calls
from ..wire.bodies import SMALL, BodySize, Entry, size_of
from ..wire.call_options import GatedChangeOptions
from .commit_held import MAX_LIST, logs_of
from .dirty import DirtyBitmap, DirtyView
from .order import Order, TransactionResult, refusal, refusal_of
from .script import LOST, NOT_SENT, Exchange, Script
from .settle import map_of, was_done


def list_entry(order: Order, *, dry_run: bool = False) -> Entry:
    """Give the call that makes all changes of a plan, or checks them."""
    regions = [change.region for change in order.plan.changes]
    options = GatedChangeOptions(if_generation=order.generation, wait_ms=order.wait_ms)
    return Entry(calls.set_user_memory_region_list(order.vm, regions, dry_run=dry_run, **options))


def check(order: Order, limits: BodySize = SMALL) -> Script[TransactionResult]:
    """Have the daemon check a plan, which changes nothing.

    Raises:
        StaleGeneration: somebody else has changed the map.
        TransactionRefused: the daemon would refuse a step, which is named.
        PlanTooLarge: it does not go into one body.
    """
    entry = list_entry(order, dry_run=True)
    if len(order.plan.changes) > MAX_LIST or not size_of([entry]).is_within(limits):
        raise PlanTooLarge(
            f"{len(order.plan.changes)} changes need a body of {size_of([entry])}, and the daemon's limits are "
            f"{limits}; make several transactions of it, or raise them"
        )
    [answer] = yield Exchange((entry.call,))
    if isinstance(answer.error, TooBig) and order.plan.fetches:
        # The daemon looks at that last of all: the bitmaps would be fetched in parts, and no rule is broken.
        return TransactionResult(order.generation, None, None, ())
    if answer.error is not None:
        raise refusal(order, answer.error, "it was only checked, the map is as it was")
    return TransactionResult(answer.value.generation, None, None, ())


def commit_by_list(order: Order, view: DirtyView) -> Script[TransactionResult]:
    """Make all changes by one call: one publication, all or nothing."""
    try:
        [answer] = yield Exchange((list_entry(order).call,))
    except NOT_SENT:
        raise
    except LOST as lost:
        generation = yield from was_done(order.vm, order.generation, order.plan.before, order.plan.after, lost)
        return TransactionResult(generation, None, None, (), answer_was_lost=True)
    if answer.error is not None:
        raise refusal(order, answer.error, "nothing was done, the map is as it was")
    done: RegionListResult = answer.value
    return TransactionResult(done.generation, done.pause_ns, None, _carried(done, view))


def commit_by_calls(order: Order, view: DirtyView) -> Script[TransactionResult]:
    """Make the changes one after another, without a hold; where one is refused, those before it are undone."""
    changes = order.plan.changes
    if len(changes) > 1:
        # What can be refused is refused here; what is left is that somebody else changes the map in between.
        yield from check(order)
    generation = order.generation
    maps: list[SlotMap] = [order.plan.before]
    answer_was_lost = False
    for index, change in enumerate(changes):
        maps.append(_with(maps[-1], change))
        options = GatedChangeOptions(if_generation=generation, wait_ms=order.wait_ms)
        try:
            [answer] = yield Exchange((calls.set_user_memory_region(order.vm, change.region, **options),))
            generation = answer.result()
        except (RpcError, *NOT_SENT) as refused:
            yield from _end_at(order, view, maps, index, refused)
        except LOST as lost:
            try:
                generation = yield from was_done(order.vm, generation, maps[-2], maps[-1], lost)
            except LOST as not_done:
                yield from _end_at(order, view, maps, index, not_done)
            except TransactionUnsettled as unsettled:
                if index:
                    unsettled.add_note(f"the {index} steps before {change} stand; hold=True gives all or nothing")
                raise
            answer_was_lost = True
    return TransactionResult(generation, None, None, (), answer_was_lost)


def _with(slots: SlotMap, change: Change) -> SlotMap:
    after = dict(slots)
    after.pop(change.slot.slot, None)
    if change.region.memory_size:
        after[change.slot.slot] = change.slot
    return after


def _end_at(order: Order, view: DirtyView, maps: list[SlotMap], index: int, error: VmmdError) -> Script[NoReturn]:
    """Undo the changes before the one that was not done, in one call, and raise for it."""
    if index == 0:
        raise refusal(order, error, "nothing was done, the map is as it was") if isinstance(error, RpcError) else error
    undone, why = False, "others have changed the map meanwhile"
    try:
        undone = yield from _turn_back(order, view, maps[: index + 1])
    except VmmdError as failed:
        why = f"they could not be undone ({failed})"
    if undone:
        outcome = "the steps before it were undone, the map is as it was"
    else:
        then = "a new transaction reads the map and can do the rest, and one with hold=True is done whole or not at all"
        outcome = f"the steps before it stand, since {why}; {then}"
    raise refusal_of(order, index, error, outcome, rolled_back=undone)


def _turn_back(order: Order, view: DirtyView, maps: list[SlotMap]) -> Script[bool]:
    """Go back from the last of several maps to the first; tell whether what others have changed leaves room for it."""
    [answer] = yield Exchange((calls.get_memory_regions(order.vm),))
    table: RegionsResult = answer.result()
    standing = map_of(table)
    back: list[Memslot] = []
    for change, old_map, new_map in reversed(list(zip(order.plan.changes, maps[:-1], maps[1:], strict=False))):
        slot = change.slot.slot
        old, new = old_map.get(slot), new_map.get(slot)
        if standing.pop(slot, None) != new:
            return False
        if old is None and new is not None:
            back.append(deletion_of(new))
        if old is not None:
            if any(old.overlaps(other) for other in standing.values()):
                return False
            back.append(old)
            standing[slot] = old
    options = GatedChangeOptions(if_generation=table.generation, wait_ms=order.wait_ms)
    [answer] = yield Exchange((calls.set_user_memory_region_list(order.vm, back, **options),))
    _carried(answer.result(), view)
    return True


def _carried(done: RegionListResult, view: DirtyView) -> tuple[DirtyBitmap, ...]:
    dirty = logs_of(done)
    view.carry(dirty)
    return dirty
