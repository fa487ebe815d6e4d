"""The touched pages of a sparse mapping: what is forgotten is counted, and the work grows with what is touched."""

from __future__ import annotations

import ctypes
import random
import time

import pytest

from vmmd.memory.limits import MAX_SLOT_PAGES
from vmmd.memory.touched import TouchedPages

BLOCK = 1 << 15
"""Pages whose bits share a page of the bitmap."""


def bits_of(touched: TouchedPages, npages: int) -> set[int]:
    """Read the bitmap as compiled code does."""
    packed = int.from_bytes(ctypes.string_at(touched.address, (npages + 63) // 64 * 8), "little")
    return {page for page in range(npages) if packed >> page & 1}


def test_a_page_is_fresh_until_it_is_added_and_again_when_it_is_removed() -> None:
    touched = TouchedPages(100)
    assert touched.fresh([3, 70, 99]) == [3, 70, 99]
    touched.add([3, 99])
    assert touched.fresh([3, 70, 99]) == [70]
    assert touched.remove(0, 99) == 1
    assert touched.fresh([3, 70, 99]) == [3, 70]


@pytest.mark.parametrize(
    ("first", "end"),
    [
        (0, 1),
        (5, 6),
        (0, BLOCK),
        (BLOCK - 1, BLOCK + 1),
        (1, BLOCK),
        (BLOCK, 2 * BLOCK),
        (7, 2 * BLOCK + 9),
        (BLOCK + 1, 3 * BLOCK),
        (0, 3 * BLOCK + 5),
        (3 * BLOCK, 3 * BLOCK + 5),
        (9, 9),
    ],
)
def test_exactly_the_pages_of_a_range_are_forgotten_wherever_its_ends_lie(first: int, end: int) -> None:
    npages = 3 * BLOCK + 5
    borders = [0, 1, 5, 6, 8, 9, *(block * BLOCK + at for block in (1, 2, 3) for at in (-2, -1, 0, 1, 4))]
    touched = TouchedPages(npages)
    touched.add(borders)
    left = {page for page in borders if not first <= page < end}
    assert touched.remove(first, end) == len(borders) - len(left)
    assert bits_of(touched, npages) == left
    assert touched.fresh(borders) == [page for page in borders if page not in left]


def test_random_adds_and_removes_agree_with_a_set() -> None:
    rng = random.Random(7)
    npages = 5 * BLOCK
    touched, model = TouchedPages(npages), set[int]()
    for _ in range(400):
        near = rng.randrange(npages)
        if rng.random() < 0.6:
            pages = [(near + step * rng.randrange(1, 9)) % npages for step in range(20)]
            fresh = touched.fresh(sorted(set(pages)))
            assert fresh == sorted(set(pages) - model)
            touched.add(fresh)
            model |= set(fresh)
        else:
            end = min(npages, near + rng.choice([1, 60, BLOCK, 3 * BLOCK]))
            gone = {page for page in model if near <= page < end}
            assert touched.remove(near, end) == len(gone)
            model -= gone
    assert bits_of(touched, npages) == model


def test_half_of_the_largest_mapping_is_forgotten_without_a_look_at_each_page() -> None:
    touched = TouchedPages(MAX_SLOT_PAGES)
    touched.add([0, 1 << 29, 1 << 30, MAX_SLOT_PAGES - 1])
    start = time.perf_counter()
    assert touched.remove(1, 1 << 30) == 1
    # A look at each page took half a minute.
    assert time.perf_counter() - start < 1
    assert touched.fresh([0, 1 << 29, 1 << 30, MAX_SLOT_PAGES - 1]) == [1 << 29]
