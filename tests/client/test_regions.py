"""Trees of regions, and what they flatten to; without a VM."""

from __future__ import annotations

from typing import Any

import pytest

from vmmd_client import (
    Memslot,
    Misaligned,
    PlanError,
)
from vmmd_client.address_space import MemoryRegion, alias, container, ram, reservation
from vmmd_client.address_space.flat_view import flatten, slots_of
from vmmd_client.errors import OutOfRange

PAGE = 4096


def test_the_rest_of_a_page_of_which_a_part_is_hidden_is_no_slot():
    root = container("system", 1 << 30)
    root.add(ram("ram", 3 * PAGE, 0x7000_0000), 0)
    root.add(reservation("registers", 0x800), 0, priority=1)
    assert list(slots_of(flatten(root))) == [Memslot(0, 0, PAGE, 2 * PAGE, 0x7000_1000)]


@pytest.mark.parametrize(
    ("size", "userspace_addr", "error"),
    [
        (100, 0x7000_0000, Misaligned),
        (PAGE, 0x7000_0800, Misaligned),
        (PAGE, None, OutOfRange),
        (PAGE, "0x1000", OutOfRange),
        (PAGE, True, OutOfRange),
        (PAGE, -PAGE, OutOfRange),
        (0, 0x7000_0000, OutOfRange),
        ("4K", 0x7000_0000, OutOfRange),
        (None, 0x7000_0000, OutOfRange),
    ],
)
def test_memory_that_cannot_be_had_is_refused_where_it_is_made(size: Any, userspace_addr: Any, error: type[PlanError]):
    with pytest.raises(error, match="region 'odd'"):
        ram("odd", size, userspace_addr)


@pytest.mark.parametrize("target", [None, "ram"])
def test_an_alias_of_nothing_is_refused_where_it_is_made(target: Any):
    with pytest.raises(PlanError, match="give the region that it is to show"):
        alias("window", target, 0, PAGE)
    with pytest.raises(OutOfRange, match="from 0"):
        alias("window", ram("ram", PAGE, 0x7000_0000), -PAGE, PAGE)


@pytest.mark.parametrize(("addr", "priority"), [("0x1000", 0), (None, 0), (0, "high")])
def test_a_place_that_is_no_integer_is_refused(addr: Any, priority: Any):
    root = container("system", 1 << 30)
    with pytest.raises(OutOfRange, match="give integers"):
        root.add(ram("ram", PAGE, 0x7000_0000), addr, priority=priority)
    assert root.children == ()


def test_memory_behind_the_end_of_its_container_is_refused_and_not_left_out():
    root = container("system", 1 << 30)
    dimm = root.add(ram("dimm", PAGE, 0x7000_0000), 1 << 30)
    with pytest.raises(OutOfRange, match="behind the end of 'system'"):
        flatten(root)
    dimm.enabled = False
    assert flatten(root).ranges == ()


def test_a_range_larger_than_the_largest_slot_becomes_several():
    root = container("system", 1 << 52)
    root.add(ram("ram", 9 << 40, 0), 0)
    largest = (2**31 - 1) * PAGE
    assert [(slot.guest_phys_addr, slot.memory_size) for slot in slots_of(flatten(root))] == [
        (0, largest),
        (largest, (9 << 40) - largest),
    ]


def test_of_equal_priority_the_last_one_hides_and_a_container_hides_nothing():
    root = container("system", 1 << 30)
    first = root.add(ram("first", 4 * PAGE, 0x1000_0000), 0)
    second = root.add(ram("second", PAGE, 0x2000_0000), PAGE)
    root.add(container("empty", 4 * PAGE), 0, priority=9)
    assert [flat.region for flat in flatten(root).ranges] == [first, second, first]


def test_a_tree_that_cannot_be_is_refused():
    root = container("system", 1 << 30)
    below = root.add(container("below", PAGE), 0)
    with pytest.raises(PlanError, match="lies in 'system' already; show it by an alias"):
        root.add(below, PAGE)
    with pytest.raises(PlanError, match="does not lie in 'below'"):
        below.remove(root)
    below.add(alias("itself", root, 0, PAGE), 0)
    with pytest.raises(PlanError, match="lies in itself: system → below → itself → system"):
        flatten(root)
    for size in (0, -1, (1 << 64) + 1):
        with pytest.raises(OutOfRange, match="cannot have"):
            container("nothing", size)
    with pytest.raises(OutOfRange, match="cannot lie at"):
        root.add(reservation("low", PAGE), -PAGE)


def test_regions_are_known_by_themselves_and_not_by_what_they_are():
    one, other = ram("same", PAGE, 0), ram("same", PAGE, 0)
    assert one != other
    assert isinstance(one, MemoryRegion)
