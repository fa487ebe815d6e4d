"""The view: what a lookup finds, and that what it found stays whatever is published since."""

from __future__ import annotations

import ctypes

import pytest

from tests.memory.plain import change, gone, new_log, packed_slots, pages, table
from vmmd.memory import access
from vmmd.memory.host import PIECE_RECORD, HostSpace, Ledger
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.memslots import Memslots
from vmmd.memory.region import Region
from vmmd.memory.view import View


def mapped(npages: int, account: Ledger | None = None) -> tuple[HostSpace, int]:
    return HostSpace().with_mapping(npages * PAGE_SIZE, account or Ledger(1 << 40))


def test_a_run_goes_on_to_the_end_of_its_slot_or_of_its_host_piece() -> None:
    host, base = mapped(8)
    host, _ = host.without(base + 5 * PAGE_SIZE, PAGE_SIZE)
    view = View(table(pages(0, 0x10, 8, hva=base)), host)
    first, lost, last = (view.find((0x10 + page) * PAGE_SIZE + 8) for page in (0, 5, 6))
    assert first is not None
    assert lost is not None
    assert last is not None
    assert (first.offset, first.size) == (8, 5 * PAGE_SIZE - 8)
    assert lost.host_address is None
    assert (last.offset, last.size) == (6 * PAGE_SIZE + 8, 2 * PAGE_SIZE - 8)
    assert first.host_address is not None
    assert last.host_address == first.host_address + 6 * PAGE_SIZE
    assert view.find(0x10 * PAGE_SIZE - 1) is None
    assert view.find(0x18 * PAGE_SIZE) is None


def test_a_slot_that_begins_below_its_mapping_finds_only_what_is_mapped() -> None:
    host, base = mapped(2)
    view = View(table(pages(0, 0, 3, hva=base - PAGE_SIZE)), host)
    below, inside = view.find(0), view.find(PAGE_SIZE)
    assert below is not None
    assert below.host_address is None
    assert inside is not None
    assert inside.size == 2 * PAGE_SIZE


def test_two_slots_may_be_aliases_of_one_page() -> None:
    host, base = mapped(1)
    view = View(table(pages(0, 0, 1, hva=base), pages(1, 9, 1, hva=base)), host)
    access.write_guest(view, 0x10, b"alias")
    assert access.read_guest(view, 9 * PAGE_SIZE + 0x10, 5) == b"alias"


def test_an_old_view_still_has_its_old_slots_mappings_and_bytes() -> None:
    host, base = mapped(2)
    memslots = table(pages(0, 0, 2, hva=base))
    old = View(memslots, host)
    access.write_guest(old, 0, b"old")
    smaller, _ = host.without(base, 2 * PAGE_SIZE)
    emptied, _ = change(memslots, gone(0))
    moved, _ = change(memslots, pages(0, 0x80, 2, hva=base))
    for memslots_after, host_after in ((emptied, host), (memslots, smaller), (moved, smaller)):
        new = View(memslots_after, host_after)
        assert new.number > old.number
        assert access.read_guest(old, 0, 3) == b"old"
        assert [slot.guest_phys_addr for slot in old.memslots] == [0]
        assert len(list(packed_slots(old.memslots))) == old.chunks == 1


def test_numbers_grow_and_none_is_used_twice() -> None:
    numbers = [View(Memslots(), HostSpace()).number for _ in range(5)]
    assert numbers == sorted(set(numbers))


def test_the_pieces_are_packed_for_lookups_in_order() -> None:
    host, base = mapped(4)
    host, _ = host.without(base + PAGE_SIZE, PAGE_SIZE)
    view = View(Memslots(), host)
    assert view.pieces == 2
    records = list(PIECE_RECORD.iter_unpack(ctypes.string_at(view.pieces_address, view.pieces * PIECE_RECORD.size)))
    assert records == [(piece.userspace_addr, piece.size, piece.host_address, 0, piece.offset) for piece in host.pieces]
    again = View(table(pages(0, 0, 1)), host)
    assert again.pieces_address == view.pieces_address


@pytest.mark.usefixtures("reference_counts_alone")
def test_a_view_alone_keeps_its_mappings_and_lets_them_go() -> None:
    account = Ledger(1 << 40)
    host, base = mapped(4, account)
    memslots, _ = Memslots().with_change(Region(0, 1, 0, 4 * PAGE_SIZE, base), new_log)
    view = View(memslots, host)
    del host
    assert account.used_bytes == 4 * PAGE_SIZE
    view = View(memslots, HostSpace())
    assert account.used_bytes == 0
    assert view.pieces == 0
