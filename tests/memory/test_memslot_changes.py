"""What each kind of change makes of a table, and what it leaves to those who still read the old one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.memory.plain import HVA, PlainWords, change, contents, gone, packed_slots, pages, table
from vmmd.memory.dirty import DirtyBitmap, DirtyLog
from vmmd.memory.errors import Refused
from vmmd.memory.memslots import Change, Memslots
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, Region

RAM = pages(0, 0, 16)
LOGGED = pages(1, 0x20, 130, flags=KVM_MEM_LOG_DIRTY_PAGES)


def dirty_pages(memslots: Memslots, slot_id: int) -> set[int]:
    slot = memslots.get(slot_id)
    assert slot is not None
    assert slot.dirty is not None
    word = int.from_bytes(slot.dirty.marks.snapshot(), "little")
    return {page for page in range(slot.npages) if word >> page & 1}


def mark(memslots: Memslots, slot_id: int, page: int) -> None:
    slot = memslots.get(slot_id)
    assert slot is not None
    assert slot.dirty is not None
    slot.dirty.marks.mark(page << 12, 1)


def test_create_adds_the_slot_one_generation_on() -> None:
    before = table(RAM)
    after, kind = change(before, LOGGED)
    assert kind is Change.CREATE
    assert after.generation == before.generation + 1
    assert [slot.slot for slot in after] == [0, 1]
    assert dirty_pages(after, 1) == set()


def test_delete_takes_the_slot_and_frees_its_id_and_its_range() -> None:
    before = table(RAM, LOGGED)
    after, kind = change(before, gone(0))
    assert kind is Change.DELETE
    assert after.generation == before.generation + 1
    assert after.get(0) is None
    assert after.find(0) is None
    again, kind = change(after, pages(0, 8, 4))
    assert kind is Change.CREATE
    assert again.find(0x8000) is again.get(0)


def test_delete_ignores_every_legal_field_but_the_id() -> None:
    after, kind = change(table(RAM), Region(0, 3, 0xFFFF_FFFF_FFFF_F000, 0, 0x7000))
    assert kind is Change.DELETE
    assert len(after) == 0


def test_the_largest_id_is_usable_again_after_its_delete() -> None:
    last = pages(32763, 0x100, 1)
    memslots, _ = change(table(last), gone(32763))
    assert change(memslots, last)[1] is Change.CREATE


def test_move_takes_the_slot_elsewhere_and_keeps_its_log() -> None:
    before = table(RAM, LOGGED)
    mark(before, 1, 3)
    mark(before, 1, 129)
    after, kind = change(before, replace(LOGGED, guest_phys_addr=0x100_0000))
    assert kind is Change.MOVE
    assert after.generation == before.generation + 1
    assert after.find(0x20000) is None
    assert after.find(0x100_0000) is after.get(1)
    assert dirty_pages(after, 1) == {3, 129}


@pytest.mark.parametrize("first", [0x21, 0x1F, 0x20 + 129, 0x20 - 16])
def test_a_move_over_its_own_old_range_is_legal(first: int) -> None:
    before = table(RAM, LOGGED)
    after, kind = change(before, replace(LOGGED, guest_phys_addr=first << 12))
    assert kind is Change.MOVE
    slot = after.get(1)
    assert slot is not None
    assert [found.slot for found in after] == [0, 1]
    assert after.find(first << 12) is slot
    assert after.find(slot.end - 1) is slot
    assert after.find(slot.end) is None


def test_a_move_across_another_slot_changes_the_order() -> None:
    after, _ = change(table(pages(5, 1, 1), pages(6, 3, 1)), pages(5, 5, 1, hva=HVA + 0x1000))
    assert [slot.slot for slot in after] == [6, 5]
    assert [slot.slot for slot in after.by_id()] == [5, 6]


def test_a_move_may_turn_logging_off_with_it() -> None:
    after, kind = change(table(LOGGED), replace(LOGGED, guest_phys_addr=0, flags=0))
    slot = after.get(1)
    assert kind is Change.MOVE
    assert slot is not None
    assert slot.dirty is None


def test_a_move_may_turn_logging_on_with_it() -> None:
    after, kind = change(table(RAM), replace(RAM, guest_phys_addr=0x8000, flags=KVM_MEM_LOG_DIRTY_PAGES))
    assert kind is Change.MOVE
    assert dirty_pages(after, 0) == set()


def test_logging_off_and_on_again_begins_an_empty_log() -> None:
    first = table(LOGGED)
    mark(first, 1, 7)
    off, kind = change(first, replace(LOGGED, flags=0))
    slot = off.get(1)
    assert kind is Change.FLAGS_ONLY
    assert slot is not None
    assert slot.dirty is None
    on, kind = change(off, LOGGED)
    assert kind is Change.FLAGS_ONLY
    assert on.generation == first.generation + 2
    assert dirty_pages(on, 1) == set()
    assert dirty_pages(first, 1) == {7}


def test_a_slot_that_is_deleted_and_created_again_begins_an_empty_log() -> None:
    memslots = table(LOGGED)
    mark(memslots, 1, 0)
    memslots, _ = change(memslots, gone(1))
    memslots, _ = change(memslots, LOGGED)
    assert dirty_pages(memslots, 1) == set()


@pytest.mark.parametrize("region", [RAM, LOGGED])
def test_a_region_that_is_set_already_changes_nothing(region: Region) -> None:
    memslots = table(RAM, LOGGED)
    mark(memslots, 1, 1)
    after, kind = change(memslots, region)
    assert kind is Change.NONE
    assert after is memslots
    assert dirty_pages(after, 1) == {1}


def test_an_old_table_keeps_its_old_slots_through_every_kind_of_change() -> None:
    first = table(RAM, LOGGED)
    before = contents(first)
    second, _ = change(first, replace(RAM, guest_phys_addr=0x200000))
    third, _ = change(second, gone(1))
    fourth, _ = change(third, pages(7, 0, 32, hva=HVA))
    with pytest.raises(Refused):
        change(fourth, pages(8, 0, 1))
    change(fourth, replace(RAM, guest_phys_addr=0x200000, flags=KVM_MEM_LOG_DIRTY_PAGES))
    assert contents(first) == before
    assert [slot.slot for slot in second] == [1, 0]
    assert [slot.slot for slot in fourth] == [7, 0]


def test_a_rollback_publishes_the_same_slots_at_another_generation() -> None:
    before = table(RAM, LOGGED)
    after = before.renumbered(40)
    assert after.generation == 40
    assert contents(after)[1:] == contents(before)[1:]


def with_logs(memslots: Memslots) -> dict[int, DirtyLog]:
    return {slot.slot: slot.dirty for slot in memslots if slot.dirty is not None}


def ring_log(npages: int) -> DirtyLog:
    """The log of a slot where bitmaps stand beside rings: its marks are apart from them."""
    return DirtyLog(DirtyBitmap(npages, PlainWords()), DirtyBitmap(npages, PlainWords()))


def test_with_rings_a_moved_slots_pages_are_in_no_ring_and_its_bitmap_goes_with_it() -> None:
    before, _ = Memslots().with_change(LOGGED, ring_log)
    log = with_logs(before)[1]
    mark(before, 1, 3)
    assert log.bitmap is not None
    log.bitmap.mark(5 << 12, 1)
    after, kind = before.with_change(replace(LOGGED, guest_phys_addr=0x100_0000), ring_log)
    assert kind is Change.MOVE
    assert dirty_pages(after, 1) == set()
    assert dirty_pages(before, 1) == {3}
    assert with_logs(after)[1].bitmap is log.bitmap


def test_with_rings_another_slots_move_leaves_marks_as_they_are() -> None:
    before, _ = Memslots().with_change(LOGGED, ring_log)
    before, _ = before.with_change(RAM, ring_log)
    mark(before, 1, 3)
    after, _ = before.with_change(replace(RAM, guest_phys_addr=0x100_0000), ring_log)
    assert dirty_pages(after, 1) == {3}


def test_when_rings_alone_take_note_every_logged_slot_begins_unmarked_and_nothing_else_is_different() -> None:
    regions = [pages(slot, slot * 8, 4, flags=slot % 3 and KVM_MEM_LOG_DIRTY_PAGES) for slot in range(300)]
    before = table(*regions)
    for slot in with_logs(before):
        mark(before, slot, 2)
    after = before.with_rings_alone()
    assert after.generation == before.generation
    assert [replace(slot, dirty=None).record[:32] for slot in after] == [slot.record[:32] for slot in before]
    assert with_logs(after).keys() == with_logs(before).keys()
    for slot, log in with_logs(after).items():
        assert log.bitmap is None
        assert (dirty_pages(before, slot), dirty_pages(after, slot)) == ({2}, set())
    assert all(after.get(slot.slot) is slot for slot in after)
    records = [record for chunk in packed_slots(after) for record in chunk]
    assert [record[4] for record in records] == [slot.dirty.marks.address if slot.dirty else 0 for slot in after]
