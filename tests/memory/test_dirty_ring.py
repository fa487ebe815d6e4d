"""A dirty ring by itself: entries go in, are harvested in order, and are free again by a reset."""

from __future__ import annotations

import pytest

from vmmd.memory.ring import ENTRY, RESERVED_ENTRIES, DirtyRing

ENTRIES = 1024


@pytest.fixture
def ring() -> DirtyRing:
    return DirtyRing(ENTRIES * ENTRY.size)


def test_entries_come_out_in_the_order_in_which_they_went_in(ring: DirtyRing) -> None:
    for page in range(5):
        ring.push(7, page)
    assert ring.harvest(3) == [(7, 0), (7, 1), (7, 2)]
    assert ring.harvest(10) == [(7, 3), (7, 4)]
    assert ring.harvest(10) == []


def test_only_harvested_entries_are_reset(ring: DirtyRing) -> None:
    for page in range(5):
        ring.push(1, page)
    ring.harvest(2)
    assert list(ring.reset()) == [(1, 0), (1, 1)]
    assert list(ring.reset()) == []


def test_a_ring_is_full_softly_before_it_is_full(ring: DirtyRing) -> None:
    for page in range(ENTRIES - RESERVED_ENTRIES - 1):
        ring.push(0, page)
    assert not ring.is_soft_full
    ring.push(0, 0)
    assert ring.is_soft_full
    ring.harvest(ENTRIES)
    assert ring.is_soft_full
    list(ring.reset())
    assert not ring.is_soft_full


def test_a_ring_goes_round_without_losing_or_inventing_entries(ring: DirtyRing) -> None:
    pushed, harvested = 0, []
    while pushed < 5 * ENTRIES:
        for _ in range(300):
            ring.push(pushed % 3, pushed)
            pushed += 1
        harvested += ring.harvest(ENTRIES)
        list(ring.reset())
    assert harvested == [(page % 3, page) for page in range(pushed)]
