"""The alignment that every check goes through."""

from __future__ import annotations

import pytest

from vmmd.memory.limits import PAGE_SIZE, U64, USERSPACE_END, is_page_aligned


@pytest.mark.parametrize(
    ("value", "aligned"),
    [(0, True), (1, False), (4095, False), (4096, True), (4097, False), (U64, False), (U64 - 4095, True)],
)
def test_whole_pages_are_aligned_and_nothing_else_is(value: int, aligned: bool) -> None:
    assert is_page_aligned(value) is aligned


def test_userspace_ends_a_page_below_the_canonical_hole_as_on_x86() -> None:
    assert USERSPACE_END + PAGE_SIZE == 1 << 47
