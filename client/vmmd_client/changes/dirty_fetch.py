"""How a VM's dirty pages are fetched by guest-physical range; the script of `DirtyLog.fetch`. Pure, without I/O.

Every call names the generation of the slot table that it was made for, so no bit is booked at an address where its slot
does not lie any more. KVM_GET_DIRTY_LOG takes the bits as it gives them: where its answer is lost, the pages that were
asked for count as dirty, and nothing is lost but exactness.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vmmd.api.memslots import RegionsResult

from ..errors import RpcError, StaleGeneration
from ..slots.memslots import Memslot
from ..slots.plan import PAGES_PER_WORD
from ..wire import calls
from ..wire.bodies import SMALL, Entry, cut
from ..wire.call_options import GatedChangeOptions
from .commit_held import LOG_PART_PAGES
from .dirty import PAGE_SIZE, DirtyBitmap, DirtyPages, DirtyView
from .script import LOST, NOT_SENT, Answer, Exchange, Script
from .settle import map_of, settle_all

_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Question:
    """Whose dirty pages are asked for.

    Attributes:
        vm: the VM's id.
        guest_phys_addr: where the range begins.
        size: its size in bytes.
        wait_ms: how long to wait while somebody is held, in milliseconds.
        manual_protect: whether the VM has KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 switched on: bits are cleared by a call of
            their own then.
    """

    vm: str
    guest_phys_addr: int
    size: int
    wait_ms: int
    manual_protect: bool


@dataclass(frozen=True, slots=True)
class _Part(Entry):
    """A fetch of a part of a slot's log."""

    slot: int = 0
    guest_phys_addr: int = 0
    first_page: int = 0
    slot_pages: int = 0

    @property
    def num_pages(self) -> int:
        """How many pages of the slot it is about; the last word of a log may have fewer than 64."""
        return min(self.answer_bytes * 8, self.slot_pages - self.first_page)


def fetch(question: Question, view: DirtyView) -> Script[DirtyPages]:
    """Fetch the pages of a range that are dirty since the last fetch, the bits of slots that went among them.

    Raises:
        StaleGeneration: others change the map all the time; what was fetched waits for the next fetch.
        HoldConflict: somebody was held for longer than `wait_ms`; likewise.
        TransactionUnsettled: what became of an earlier transaction could not be learned.
        TransportError, ProtocolError: an answer is lost; the pages that it was about count as dirty at the next fetch.
    """
    yield from settle_all(question.vm, view, question.wait_ms)
    for attempt in range(_ATTEMPTS):
        [answer] = yield Exchange((calls.get_memory_regions(question.vm),))
        table: RegionsResult = answer.result()
        try:
            for body in cut(_parts(question, table), SMALL):
                yield from _fetch_body(question, view, table.generation, body)
            break
        except StaleGeneration:
            if attempt == _ATTEMPTS - 1:
                raise
    return view.take(question.guest_phys_addr, question.size)


def _fetch_body(question: Question, view: DirtyView, generation: int, body: list[Entry]) -> Script[None]:
    parts = [entry for entry in body if isinstance(entry, _Part)]
    try:
        answers = yield Exchange(tuple(part.call for part in parts))
    except (RpcError, *NOT_SENT):
        raise
    except LOST:
        for part in parts:
            if not question.manual_protect:
                view.suppose(part.guest_phys_addr, part.num_pages * PAGE_SIZE)
        raise
    for part, answer in zip(parts, answers, strict=True):
        if answer.error is None:
            view.carry((DirtyBitmap(part.slot, part.guest_phys_addr, answer.value),))
    if question.manual_protect:
        answers += yield from _clear(question, generation, parts, answers)
    for answer in answers:
        answer.result()


def _clear(question: Question, generation: int, parts: list[_Part], answers: list[Answer]) -> Script[list[Answer]]:
    """Clear what was fetched: a page that is stored to from here on is dirty anew."""
    options = GatedChangeOptions(if_generation=generation, wait_ms=question.wait_ms)
    clears = [
        calls.clear_dirty_log(question.vm, part.slot, part.first_page, part.num_pages, answer.value, **options)
        for part, answer in zip(parts, answers, strict=True)
        if answer.error is None and any(answer.value)
    ]
    if not clears:
        return []
    return (yield Exchange(tuple(clears)))


def _parts(question: Question, table: RegionsResult) -> Iterator[_Part]:
    options = GatedChangeOptions(if_generation=table.generation, wait_ms=question.wait_ms)
    for slot in map_of(table).values():
        if not slot.is_logged:
            continue
        for first_page, num_pages in _pages_within(slot, question):
            yield _Part(
                call=calls.get_dirty_log(question.vm, slot.slot, first_page, num_pages, **options),
                answer_bytes=num_pages // 8,
                slot=slot.slot,
                guest_phys_addr=slot.guest_phys_addr + first_page * PAGE_SIZE,
                first_page=first_page,
                slot_pages=slot.memory_size // PAGE_SIZE,
            )


def _pages_within(slot: Memslot, question: Question) -> Iterator[tuple[int, int]]:
    """Give the parts of a slot's log that a range touches: first page and number of pages, in whole words."""
    start = max(question.guest_phys_addr, slot.guest_phys_addr) - slot.guest_phys_addr
    end = min(question.guest_phys_addr + question.size, slot.end) - slot.guest_phys_addr
    if start >= end:
        return
    word_bytes = PAGES_PER_WORD * PAGE_SIZE
    first = start // word_bytes * PAGES_PER_WORD
    last = -(-end // word_bytes) * PAGES_PER_WORD
    for first_page in range(first, last, LOG_PART_PAGES):
        yield first_page, min(LOG_PART_PAGES, last - first_page)
