"""A plan carried out in a hold, in as many bodies as it needs; see `commit`. Pure, without I/O.

The dirty bitmaps of slots that go come with the answer to the list call that takes them away, so the hold is as long as
two round trips, whatever the number of slots. A bitmap that is too large for that is fetched in parts, and its slot is
changed by a call of its own. Every bitmap is here before the resume is sent; until then the daemon can put it back.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Unpack

from vmmd.api.memslots import RegionListResult

from ..errors import KvmError, LogsInRings, RpcError, TransactionUnsettled, VmmdError
from ..slots.memslots import Memslot
from ..slots.plan import Change, Plan, bitmap_bytes
from ..wire import calls
from ..wire.bodies import SMALL, BodySize, Entry, cut, size_of
from ..wire.call_options import GatedChangeOptions
from .dirty import PAGE_SIZE, DirtyBitmap, DirtyView, Unsettled
from .order import Order, TransactionResult, refusal_of
from .script import LOST, NOT_SENT, Answer, Exchange, Script
from .settle import Became, ended_as, what_became

LOG_PART_PAGES = 1 << 20
"""How many pages of a dirty log are fetched by one call: 128 KiB of bitmap."""

MAX_LIST = 65_536
"""How many changes one list call takes."""

# One change's share of a list call's answer, beside the bitmap: 80 bytes, as bytes that are then put in base64.
_BESIDE_BITMAP_BYTES = 60


def commit_held(order: Order, limits: BodySize, view: DirtyView) -> Script[TransactionResult]:
    """Carry out a plan in a hold: all of it or nothing."""
    try:
        return (yield from _commit(order, limits, view, _large(order.plan)))
    except VmmdError as refused:
        if not isinstance(refused.__cause__, LogsInRings):
            raise
    # The VM logs in rings alone, where bits outlive their slots, so there is no bitmap to take along.
    return (yield from _commit(order.again(), limits, view, frozenset()))


def commit_inside(order: Order, limits: BodySize, view: DirtyView) -> Script[TransactionResult]:
    """Carry out a plan in a hold that is open already, under its name; what becomes of it is told when that ends.

    Raises:
        TransactionRefused: a step was refused; the hold has failed, and its resume undoes all.
        TransportError, ProtocolError: an answer is lost; the hold is ended, and all is rolled back.
    """
    large = _large(order.plan)
    if large:
        # A refused call would fail the hold, so it is asked before whether there are bitmaps.
        [answer] = yield Exchange((calls.list_vms(),))
        if any(info.vm == order.vm and info.dirty_log == "ring" for info in answer.result()):
            large = frozenset()
    entries = _work(order, limits, large, if_generation=order.generation)
    dirty: list[DirtyBitmap] = []
    generation = order.generation
    for body in cut(entries, limits):
        try:
            answers = yield Exchange(tuple(entry.call for entry in body))
        except (RpcError, *NOT_SENT):
            raise
        except LOST as lost:
            return (yield from _after_loss(order, view, (), lost, may_be_done=False))
        for entry, answer in zip(body, answers, strict=True):
            if answer.error is not None:
                outcome = "its hold has failed, and undoes all when it ends"
                raise _refused(order, entry, answer.error, outcome, rolled_back=True)
            if isinstance(answer.value, RegionListResult):
                generation = answer.value.generation
            elif isinstance(answer.value, int):
                generation = answer.value
        dirty += _bitmaps(order, body, answers)
    view.leave_unsettled(Unsettled(order.hold, tuple(dirty)))
    return TransactionResult(generation, None, None, _whole(order.plan, dirty))


def in_order(order: Order) -> list[Entry]:
    """Give all that the hold has where every change is a call of its own: kick, changes, resume."""
    return [_kick(order), *(_single(order, change) for change in _numbered(order.plan)), _resume(order)]


def is_small(order: Order) -> bool:
    """Tell whether a hold goes through without asking for the daemon's limits."""
    entries = [_kick(order), *_work(order, SMALL, _large(order.plan))] if order.plan.fetches else in_order(order)
    return size_of(entries).is_within(SMALL)


def log_parts(slot: Memslot) -> Iterator[tuple[int, int]]:
    """Give the parts in which a slot's dirty log is fetched: first page and number of pages, in whole words."""
    pages = bitmap_bytes(slot) * 8
    for first_page in range(0, pages, LOG_PART_PAGES):
        yield first_page, min(LOG_PART_PAGES, pages - first_page)


def _commit(order: Order, limits: BodySize, view: DirtyView, large: frozenset[int]) -> Script[TransactionResult]:
    """Carry out a plan in a hold, with the bitmaps of the `large` slots fetched in parts."""
    bodies = _bodies(order, limits, large)
    dirty: list[DirtyBitmap] = []
    kick_ns = 0
    for number, body in enumerate(bodies):
        is_last = number == len(bodies) - 1
        try:
            answers = yield Exchange(tuple(entry.call for entry in body))
        except (RpcError, *NOT_SENT):
            # Nothing of this body was executed; of those before it the hold is open.
            if number:
                yield from _roll_back(order)
            raise
        except LOST as lost:
            return (yield from _after_loss(order, view, tuple(dirty), lost, may_be_done=is_last))
        if any(answer.error for answer in answers):
            raise (yield from _refusal(order, body, answers, is_last=is_last))
        if number == 0:
            kick_ns = answers[0].value.kick_ns
        dirty += _bitmaps(order, body, answers)
    resumed = answers[-1].value
    view.carry(tuple(dirty))
    return TransactionResult(resumed.generation, resumed.pause_ns, kick_ns, _whole(order.plan, dirty))


def _large(plan: Plan) -> frozenset[int]:
    """Give the ids of the slots whose bitmap is fetched in parts."""
    return frozenset(slot.slot for slot in plan.fetches if bitmap_bytes(slot) * 8 > LOG_PART_PAGES)


def _kick(order: Order) -> Entry:
    return Entry(calls.kick_all_running_vcpus(order.vm, order.hold, order.wait_ms, if_generation=order.generation))


def _resume(order: Order) -> Entry:
    return Entry(calls.resume_all_kicked_vcpus(order.vm, order.hold))


def _numbered(plan: Plan) -> list[tuple[int, Change]]:
    """Give the steps that change the map, with their numbers in the plan."""
    return list(enumerate(plan.changes, len(plan.fetches)))


def _single(order: Order, numbered: tuple[int, Change]) -> Entry:
    step, change = numbered
    return Entry(calls.set_user_memory_region(order.vm, change.region, hold=order.hold), step)


def _work(
    order: Order, limits: BodySize, large: frozenset[int], **options: Unpack[GatedChangeOptions]
) -> Iterator[Entry]:
    """Give what is done between kick and resume: fetches in parts, then the changes as lists.

    Args:
        order: the order.
        limits: what a body may come to.
        large: the slots whose bitmap is fetched in parts, and which are changed by calls of their own.
        **options: what the first change says beside its hold.
    """
    for step, slot in enumerate(order.plan.fetches):
        if slot.slot in large:
            for first_page, num_pages in log_parts(slot):
                call = calls.get_dirty_log(order.vm, slot.slot, first_page, num_pages, hold=order.hold)
                yield Entry(call, step, num_pages // 8)
    for is_large, run in itertools.groupby(_numbered(order.plan), lambda numbered: numbered[1].slot.slot in large):
        for entry in map(partial(_single, order), run) if is_large else _lists(order, limits, list(run)):
            # The first change alone can name the generation: it leaves another one behind.
            yield replace(entry, call=replace(entry.call, params={**entry.call.params, **options}))
            options = {}


def _lists(order: Order, limits: BodySize, changes: list[tuple[int, Change]]) -> Iterator[Entry]:
    """Give successive changes as list calls, each of which goes into one body behind a renewal of the hold."""
    regions = [change.region for _, change in changes]
    wanted = {region.slot for region in regions}
    bitmaps = sum(bitmap_bytes(slot) for slot in order.plan.fetches if slot.slot in wanted)
    call = calls.set_user_memory_region_list(order.vm, regions, hold=order.hold)
    entry = Entry(call, changes[0][0], bitmaps + len(regions) * _BESIDE_BITMAP_BYTES)
    is_taken = len(changes) <= MAX_LIST and size_of([_kick(order), entry]).is_within(limits)
    if is_taken or len(changes) == 1:
        yield entry
        return
    middle = len(changes) // 2
    yield from _lists(order, limits, changes[:middle])
    yield from _lists(order, limits, changes[middle:])


def _bodies(order: Order, limits: BodySize, large: frozenset[int]) -> list[list[Entry]]:
    """Cut what the hold has into bodies; every bitmap is here before the resume is sent."""
    renew = Entry(calls.kick_all_running_vcpus(order.vm, order.hold))
    singly = in_order(order)
    if not order.plan.fetches and size_of(singly).is_within(limits):
        return [singly]
    entries = [_kick(order), *_work(order, limits, large)]
    if not order.plan.fetches:
        return cut([*entries, _resume(order)], limits, renew)
    return [*cut(entries, limits, renew), [renew, _resume(order)]]


def _refusal(order: Order, body: list[Entry], answers: list[Answer], *, is_last: bool) -> Script[VmmdError]:
    """Give what is raised for a body of which something was refused; the hold is over then."""
    rolled_back = is_last and ended_as(answers[-1].error) is Became.ROLLED_BACK
    entry, error = next(
        (entry, answer.error) for entry, answer in zip(body, answers, strict=True) if answer.error is not None
    )
    is_first_kick = entry is body[0] and "if_generation" in entry.call.params
    if not is_last and not is_first_kick:
        rolled_back = yield from _roll_back(order)
    if entry.step is None:
        return error
    outcome = "all was rolled back, the map is as it was" if rolled_back else "read the map anew"
    return _refused(order, entry, error, outcome, rolled_back=rolled_back)


def _refused(order: Order, entry: Entry, error: RpcError, outcome: str, *, rolled_back: bool) -> VmmdError:
    """Give what is raised for a refused call; of a list, the error says which change it is."""
    within = error.index if isinstance(error, KvmError) and error.index is not None else 0
    return refusal_of(order, (entry.step or 0) + within, error, outcome, rolled_back=rolled_back)


def _roll_back(order: Order) -> Script[bool]:
    """Have the hold rolled back; where the daemon cannot be reached, False: the end of its lease will."""
    try:
        return (yield from what_became(order.vm, order.hold, order.wait_ms)) is Became.ROLLED_BACK
    except VmmdError:
        return False


def _after_loss(
    order: Order, view: DirtyView, dirty: tuple[DirtyBitmap, ...], lost: Exception, *, may_be_done: bool
) -> Script[TransactionResult]:
    """Learn what became of a hold of which an answer is lost; what is still open is rolled back."""
    try:
        became = yield from what_became(order.vm, order.hold, order.wait_ms)
    except VmmdError as error:
        if may_be_done and dirty:
            view.leave_unsettled(Unsettled(order.hold, dirty))
        raise TransactionUnsettled(
            f"an answer to a transaction is lost ({lost}), and what became of it could not be learned ({error}); "
            "it was done whole or not at all: read the map anew"
        ) from lost
    if became is Became.ROLLED_BACK:
        lost.add_note("nothing was done: the map is as it was")
        raise lost
    view.carry(dirty)
    whole = _whole(order.plan, list(dirty))
    [answer] = yield Exchange((calls.get_memory_regions(order.vm, 0, 0),))
    return TransactionResult(answer.result().generation, None, None, whole, answer_was_lost=True)


def _bitmaps(order: Order, body: list[Entry], answers: list[Answer]) -> Iterator[DirtyBitmap]:
    for entry, answer in zip(body, answers, strict=True):
        if isinstance(answer.value, RegionListResult):
            yield from logs_of(answer.value)
        elif isinstance(answer.value, bytes) and entry.step is not None:
            slot = order.plan.steps[entry.step].slot
            offset = entry.call.params["first_page"] * PAGE_SIZE
            yield DirtyBitmap(slot.slot, slot.guest_phys_addr + offset, answer.value)


def logs_of(done: RegionListResult) -> tuple[DirtyBitmap, ...]:
    """Give the bitmaps of the slots that went by a list call."""
    return tuple(DirtyBitmap(log.slot, log.guest_phys_addr, log.bitmap) for log in done.dirty)


def _whole(plan: Plan, parts: list[DirtyBitmap]) -> tuple[DirtyBitmap, ...]:
    """Put the parts of each slot's bitmap together; a VM that logs in rings alone has none."""
    bitmaps: dict[int, list[bytes]] = {}
    for part in parts:
        bitmaps.setdefault(part.slot, []).append(part.bitmap)
    return tuple(
        DirtyBitmap(slot.slot, slot.guest_phys_addr, b"".join(bitmaps[slot.slot]))
        for slot in plan.fetches
        if slot.slot in bitmaps
    )
