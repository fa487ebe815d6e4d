"""A plan carried out in a hold, in as many bodies as it needs; see `commit`. Pure, without I/O."""

from collections.abc import Iterator

from . import calls
from .bodies import BodySize, Entry, cut
from .dirty import PAGE_SIZE, DirtyBitmap, DirtyView, Unsettled
from .errors import RpcError, TransactionUnsettled, VmmdError
from .memslots import Memslot
from .order import Order, TransactionResult, refusal_of
from .plan import Plan, bitmap_bytes
from .script import LOST, NOT_SENT, Answer, Exchange, Script
from .settle import Became, ended_as, what_became

LOG_PART_PAGES = 1 << 20
"""How many pages of a dirty log are fetched by one call: 128 KiB of bitmap."""


def commit_held(order: Order, limits: BodySize, view: DirtyView) -> Script[TransactionResult]:
    """Carry out a plan in a hold: all of it or nothing."""
    bodies = _bodies(order, limits)
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


def in_order(order: Order) -> list[Entry]:
    """Give all that the hold has: kick, fetches, changes, resume."""
    vm, hold, plan = order.vm, order.hold, order.plan
    kick = calls.kick_all_running_vcpus(vm, hold, order.wait_ms, if_generation=order.generation)
    changes = [
        Entry(calls.set_user_memory_region(vm, change.region, hold=hold), step)
        for step, change in enumerate(plan.changes, len(plan.fetches))
    ]
    return [Entry(kick), *_fetches(order), *changes, Entry(calls.resume_all_kicked_vcpus(vm, hold))]


def log_parts(slot: Memslot) -> Iterator[tuple[int, int]]:
    """Give the parts in which a slot's dirty log is fetched: first page and number of pages, in whole words."""
    pages = bitmap_bytes(slot) * 8
    for first_page in range(0, pages, LOG_PART_PAGES):
        yield first_page, min(LOG_PART_PAGES, pages - first_page)


def _fetches(order: Order) -> Iterator[Entry]:
    for step, slot in enumerate(order.plan.fetches):
        for first_page, num_pages in log_parts(slot):
            call = calls.get_dirty_log(order.vm, slot.slot, first_page, num_pages, hold=order.hold)
            yield Entry(call, step, num_pages // 8)


def _bodies(order: Order, limits: BodySize) -> list[list[Entry]]:
    """Cut what the hold has into bodies; the answers of all fetches are here before the resume is sent."""
    entries = in_order(order)
    renew = Entry(calls.kick_all_running_vcpus(order.vm, order.hold))
    if not order.plan.fetches:
        return cut(entries, limits, renew)
    changes = len(entries) - 1 - len(order.plan.changes)
    return cut(entries[:changes], limits, renew) + cut([renew, *entries[changes:]], limits, renew)


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
    return refusal_of(order, entry.step, error, outcome, rolled_back=rolled_back)


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
        if entry.answer_bytes and entry.step is not None:
            slot = order.plan.fetches[entry.step]
            offset = entry.call.params["first_page"] * PAGE_SIZE
            yield DirtyBitmap(slot.slot, slot.guest_phys_addr + offset, answer.value)


def _whole(plan: Plan, parts: list[DirtyBitmap]) -> tuple[DirtyBitmap, ...]:
    """Put the parts of each slot's bitmap together."""
    bitmaps: dict[int, list[bytes]] = {}
    for part in parts:
        bitmaps.setdefault(part.slot, []).append(part.bitmap)
    return tuple(DirtyBitmap(slot.slot, slot.guest_phys_addr, b"".join(bitmaps[slot.slot])) for slot in plan.fetches)
