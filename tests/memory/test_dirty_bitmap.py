"""The dirty bitmap: KVM's layout, odd page counts, and the steps of GET and CLEAR."""

from __future__ import annotations

import pytest

from tests.memory.plain import PlainWords
from vmmd.memory.dirty import DirtyBitmap, bitmap_bytes
from vmmd.memory.host import Ledger
from vmmd.memory.limits import PAGE_SIZE

LARGE = (1 << 19) + 65
"""Pages of a log that is a mapping of its own."""


def bitmap(npages: int, *, initially_set: bool = False) -> DirtyBitmap:
    return DirtyBitmap(npages, PlainWords(), initially_set=initially_set)


def bits(*pages: int, npages: int) -> bytes:
    return sum(1 << page for page in pages).to_bytes(bitmap_bytes(npages), "little")


@pytest.mark.parametrize(
    ("npages", "size"), [(1, 8), (63, 8), (64, 8), (65, 16), (128, 16), (129, 24), ((1 << 31) - 1, 1 << 28)]
)
def test_the_length_is_in_whole_words(npages: int, size: int) -> None:
    assert bitmap_bytes(npages) == size


@pytest.mark.parametrize("npages", [1, 7, 8, 9, 63, 64, 65, 127, 130, LARGE])
def test_a_new_log_is_clear(npages: int) -> None:
    log = bitmap(npages)
    assert log.size_bytes == bitmap_bytes(npages)
    assert log.snapshot() == bytes(bitmap_bytes(npages))


@pytest.mark.parametrize("npages", [1, 7, 8, 9, 63, 64, 65, 127, 130, LARGE])
def test_an_initially_set_log_has_every_page_and_a_clear_tail(npages: int) -> None:
    log = bitmap(npages, initially_set=True)
    assert log.snapshot() == ((1 << npages) - 1).to_bytes(bitmap_bytes(npages), "little")


@pytest.mark.parametrize("page", [0, 1, 7, 8, 63, 64, 129])
def test_bit_j_of_byte_k_is_page_8k_plus_j(page: int) -> None:
    log = bitmap(130)
    log.mark(page * PAGE_SIZE + 17, 1)
    read = log.snapshot()
    assert read[page // 8] == 1 << page % 8
    assert read.count(0) == len(read) - 1


@pytest.mark.parametrize(
    ("offset", "length", "pages"),
    [
        (0, 1, [0]),
        (0, PAGE_SIZE, [0]),
        (0, PAGE_SIZE + 1, [0, 1]),
        (PAGE_SIZE - 1, 2, [0, 1]),
        (62 * PAGE_SIZE, 4 * PAGE_SIZE, [62, 63, 64, 65]),
        (129 * PAGE_SIZE, PAGE_SIZE, [129]),
    ],
)
def test_every_page_that_a_store_touches_is_marked_and_no_other(offset: int, length: int, pages: list[int]) -> None:
    log = bitmap(130)
    log.mark(offset, length)
    assert log.snapshot() == bits(*pages, npages=130)


def test_a_snapshot_leaves_the_log_and_take_leaves_zeroes() -> None:
    log = bitmap(130)
    log.mark(3 * PAGE_SIZE, 1)
    log.mark(128 * PAGE_SIZE, 1)
    expected = bits(3, 128, npages=130)
    assert log.snapshot() == expected
    assert log.snapshot() == expected
    assert log.take() == expected
    assert log.take() == bytes(24)


def test_a_part_is_taken_and_the_rest_stays() -> None:
    log = bitmap(200)
    for page in (0, 63, 64, 127, 128, 199):
        log.mark(page * PAGE_SIZE, 1)
    assert log.snapshot(8, 8) == bits(0, 63, npages=64)
    assert log.take(8, 8) == bits(0, 63, npages=64)
    assert log.snapshot() == bits(0, 63, 128, 199, npages=200)
    assert log.take(16) == bits(0, 71, npages=128)
    assert log.snapshot() == bits(0, 63, npages=200)


def test_what_was_taken_is_put_back_beside_what_came_since() -> None:
    log = bitmap(130)
    log.mark(5 * PAGE_SIZE, 1)
    log.mark(70 * PAGE_SIZE, 1)
    taken = log.take()
    log.mark(6 * PAGE_SIZE, 1)
    log.put_back(taken)
    assert log.snapshot() == bits(5, 6, 70, npages=130)


def test_a_part_is_put_back_in_its_place() -> None:
    log = bitmap(130)
    log.mark(70 * PAGE_SIZE, 1)
    taken = log.take(8, 8)
    log.put_back(taken, 8)
    assert log.snapshot() == bits(70, npages=130)


def test_clear_clears_what_is_set_in_both_and_says_which() -> None:
    log = bitmap(130)
    for page in (0, 64, 65, 100):
        log.mark(page * PAGE_SIZE, 1)
    gone = log.clear(64, bits(0, 2, 36, npages=64))
    assert gone == bits(0, 36, npages=64)
    assert log.snapshot() == bits(0, 65, npages=130)


class WatchedWords(PlainWords):
    """Words that remember where bits were cleared."""

    def __init__(self) -> None:
        self.cleared: list[int] = []

    def clear(self, address: int, masks: bytes) -> bytes:
        self.cleared.append(address)
        return super().clear(address, masks)


@pytest.mark.parametrize("page", [2, 63, 64, 1000, (1 << 64) - 1])
def test_a_page_that_is_not_there_is_unmarked_without_touching_any_word(page: int) -> None:
    words = WatchedWords()
    log = DirtyBitmap(2, words)
    log.unmark(page)
    assert words.cleared == []
    log.mark(0, 2 * PAGE_SIZE)
    log.unmark(1)
    assert words.cleared == [log.address]
    assert log.snapshot() == bits(0, npages=2)


def test_a_twin_has_as_many_pages_none_of_them_marked_and_is_charged_like_it() -> None:
    account = Ledger(1 << 20)
    log = DirtyBitmap(130, PlainWords(), account, initially_set=True)
    cost = account.used_bytes
    twin = log.empty_twin()
    assert (twin.npages, twin.snapshot()) == (130, bytes(24))
    assert account.used_bytes == 2 * cost
    twin.mark(0, 1)
    assert log.snapshot() == bits(*range(130), npages=130)


@pytest.mark.parametrize("length", [0, 1, 3, 8, 9])
def test_a_mask_of_any_length_is_padded_with_zeroes(length: int) -> None:
    log = bitmap(130, initially_set=True)
    log.clear(0, b"\xff" * length)
    assert log.snapshot() == bits(*range(length * 8, 130), npages=130)


def test_a_large_log_marks_takes_and_clears_as_a_small_one() -> None:
    log = bitmap(LARGE)
    last = LARGE - 1
    log.mark(last * PAGE_SIZE, PAGE_SIZE)
    log.mark(0, 1)
    assert log.clear(last // 64 * 64, b"\xff" * 8) == (1 << last % 64).to_bytes(8, "little")
    assert log.take() == bits(0, npages=LARGE)
