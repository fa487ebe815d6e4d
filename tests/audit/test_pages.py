"""What an update comes to, beside an account that is kept page by page."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audit.lines import slot, updates

PAGE = 0x1000

# A slot's id, its first page and how many pages it has; none deletes it.
CALLS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4)), max_size=24)


def pages(first: int, count: int) -> set[int]:
    return set(range(first, first + count))


class Account:
    """A map page by page: who covers what, and by which call a page was lost and came back."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int]] = {}
        self.begin()

    def begin(self) -> None:
        """Begin an update."""
        self.before = self.covered
        self.calls: list[tuple[int, int, int]] = []
        self.deleted: set[int] = set()
        self.added: set[int] = set()
        self._lost: dict[int, int] = {}
        self._holes: set[tuple[int, int, int]] = set()

    @property
    def covered(self) -> set[int]:
        return {page for place in self.slots.values() for page in pages(*place)}

    def take(self, number: int, first: int, count: int) -> None:
        """Take a call, unless KVM would refuse it."""
        old = self.slots.get(number)
        others = self.covered - (pages(*old) if old else set())
        if pages(first, count) & others or (old is None and not count) or old == (first, count):
            return
        covered = self.covered
        self.slots.pop(number, None)
        self.deleted |= pages(*old) if old else set()
        if count:
            self.slots[number] = first, count
            self.added |= pages(first, count)
        for page in covered - self.covered:
            self._lost[page] = len(self.calls)
        for page in (self.covered - covered) & self._lost.keys():
            self._holes.add((page, self._lost.pop(page), len(self.calls)))
        self.calls.append((number, first, count))

    @property
    def holes(self) -> set[tuple[int, int, int]]:
        """Pages that had memory before and have some now, with the calls between which they had none."""
        return {hole for hole in self._holes if hole[0] in self.before & self.covered}


def lines(begin: float, calls: list[tuple[int, int, int]]) -> list[str]:
    return [
        slot(begin + at * 1e-5, number, first * PAGE, count * PAGE) for at, (number, first, count) in enumerate(calls)
    ]


@settings(deadline=None, max_examples=300)
@given(CALLS, CALLS)
def test_holes_and_the_need_of_a_hold_are_those_of_an_account_page_by_page(
    earlier: list[tuple[int, int, int]], later: list[tuple[int, int, int]]
) -> None:
    account = Account()
    for call in earlier:
        account.take(*call)
    made = [(number, *place) for number, place in account.slots.items()]
    account.begin()
    for call in later:
        account.take(*call)
    if not account.calls:
        return
    update = updates([*lines(0.0, made), *lines(1.0, account.calls)])[-1]
    found = {
        (page, hole.opened_by, hole.filled_by)
        for hole in update.holes
        for page in pages(hole.guest_phys_addr // PAGE, hole.size // PAGE)
    }
    assert found == account.holes
    assert update.needs_hold == bool(account.deleted & account.added)
