"""Which pages hold anything: found by content, and without touching those that nobody did."""

from __future__ import annotations

import ctypes
import resource

import pytest

from vmmd.memory.contents import written_pages
from vmmd.memory.host import HostSpace, Ledger, Piece, touch
from vmmd.memory.limits import PAGE_SIZE


def write(piece: Piece, page: int, byte: int) -> None:
    touch([(piece, page * PAGE_SIZE, 1)])
    ctypes.memset(piece.host_address + page * PAGE_SIZE + 7, byte, 1)


def pages(host: HostSpace) -> list[tuple[int, int]]:
    return [(address, page[7]) for address, page in written_pages(host)]


@pytest.mark.parametrize("sparse", [False, True])
def test_pages_that_hold_anything_are_given_in_order_and_no_others(sparse: bool) -> None:
    ledger = Ledger(1 << 30)
    host, first = HostSpace().with_mapping(64 * PAGE_SIZE, ledger, sparse=sparse)
    host, second = host.with_mapping(4 * PAGE_SIZE, ledger)
    for at, page, byte in ((second, 3, 9), (first, 63, 5), (first, 0, 4), (first, 8, 0)):
        piece = host.find(at)
        assert piece is not None
        write(piece, page, byte)
    assert pages(host) == [(first, 4), (first + 63 * PAGE_SIZE, 5), (second + 3 * PAGE_SIZE, 9)]


@pytest.mark.parametrize("sparse", [False, True])
def test_a_part_that_is_left_of_a_mapping_is_read_at_its_own_addresses(sparse: bool) -> None:
    host, base = HostSpace().with_mapping(16 * PAGE_SIZE, Ledger(1 << 30), sparse=sparse)
    for page in range(16):
        write(host.pieces[0], page, page + 1)
    host, _ = host.without(base + PAGE_SIZE, 13 * PAGE_SIZE)
    assert pages(host) == [(base, 1), (base + 14 * PAGE_SIZE, 15), (base + 15 * PAGE_SIZE, 16)]


def test_a_huge_sparse_mapping_costs_what_is_touched() -> None:
    host, base = HostSpace().with_mapping(1 << 42, Ledger(1 << 30), sparse=True)
    write(host.pieces[0], 1 << 29, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert pages(host) == [(base + (1 << 41), 3)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
