"""What a draft refuses, each with what to do about it; nothing is changed by a change that is refused."""

import pytest

from vmmd_client import (
    Draft,
    MemFlag,
    Memslot,
    Misaligned,
    OutOfRange,
    PlanError,
    RangeOverlap,
    SlotTaken,
    UnknownSlot,
)
from vmmd_client.slots.draft import GPA_END, MAX_SLOT_PAGES, USERSPACE_END
from vmmd_client.slots.plan import Create, Delete, Fetch, Move, SetFlags
from vmmd_client.slots.slot_ids import MAX_SLOTS, SlotIds

PAGE = 4096
HOST = 0x7000_0000
LOG, READONLY = int(MemFlag.LOG_DIRTY_PAGES), int(MemFlag.READONLY)
LOW = Memslot(0, 0, 0, 4 * PAGE, HOST)
HIGH = Memslot(1, 0, 0x10_0000, 4 * PAGE, HOST + 0x10_0000)
LOGGED = Memslot(2, LOG, 0x20_0000, 4 * PAGE, HOST + 0x20_0000)


@pytest.fixture
def draft() -> Draft:
    return Draft({slot.slot: slot for slot in (LOW, HIGH, LOGGED)})


def slot(
    number: int = 7, flags: int = 0, gpa: int = 0x40_0000, size: int = PAGE, userspace_addr: int = HOST
) -> Memslot:
    return Memslot(number, flags, gpa, size, userspace_addr)


@pytest.mark.parametrize(
    ("bad", "error", "field", "says"),
    [
        (slot(gpa=0x40_0001), Misaligned, "guest_phys_addr", "take 0x400000 or 0x401000"),
        (slot(size=1), Misaligned, "memory_size", "take 0x0 or 0x1000"),
        (slot(size=PAGE - 1), Misaligned, "memory_size", "take 0x0 or 0x1000"),
        (slot(size=PAGE + 1), Misaligned, "memory_size", "take 0x1000 or 0x2000"),
        (slot(userspace_addr=HOST + 8), Misaligned, "userspace_addr", "take 0x70000000"),
        (slot(size=0), OutOfRange, "memory_size", "delete it instead"),
        (slot(size=-PAGE), OutOfRange, "memory_size", "0x1000 to 0x7fffffff000"),
        (slot(size=(MAX_SLOT_PAGES + 1) * PAGE), OutOfRange, "memory_size", "0x1000 to 0x7fffffff000"),
        (slot(size=1 << 70), OutOfRange, "memory_size", "0x1000 to 0x7fffffff000"),
        (slot(gpa=-PAGE), OutOfRange, "guest_phys_addr", "from 0x0 to 0xffffffffff000"),
        (slot(gpa=GPA_END), OutOfRange, "guest_phys_addr", "from 0x0 to 0xffffffffff000"),
        (slot(gpa=(1 << 64) - PAGE, size=2 * PAGE), OutOfRange, "guest_phys_addr", "to 0xfffffffffe000"),
        (slot(userspace_addr=USERSPACE_END), OutOfRange, "userspace_addr", "from 0x0 to 0x7fffffffe000"),
        (slot(number=MAX_SLOTS), OutOfRange, "slot", "from 0 to 32763"),
        (slot(number=-1), OutOfRange, "slot", "from 0 to 32763"),
        (slot(flags=4), OutOfRange, "flags", r"LOG_DIRTY_PAGES \(1\) and READONLY \(2\)"),
        (slot(size=4096.0), OutOfRange, "memory_size", "give an integer"),  # type: ignore[arg-type]
        (slot(gpa=True), OutOfRange, "guest_phys_addr", "give an integer"),
        (slot(number="7"), OutOfRange, "slot", "no slot id '7'"),  # type: ignore[arg-type]
    ],
)
def test_a_slot_that_kvm_cannot_have_is_refused_by_the_field_that_is_wrong(
    draft: Draft, bad: Memslot, error: type[Misaligned | OutOfRange], field: str, says: str
):
    before = dict(draft.slots)
    with pytest.raises(error, match=says) as caught:
        draft.create(bad)
    assert caught.value.field == field
    assert draft.slots == before
    assert draft.plan().steps == ()


def test_the_largest_and_the_last_slot_there_can_be_are_taken():
    largest = slot(gpa=0, size=MAX_SLOT_PAGES * PAGE)
    last = slot(8, gpa=GPA_END - PAGE, userspace_addr=USERSPACE_END - PAGE)
    draft = Draft({})
    draft.create(largest)
    draft.create(last)
    assert draft.plan().steps == (Create(largest), Create(last))


def test_a_slot_that_is_named_twice_is_refused_and_the_first_stands(draft: Draft):
    draft.create(slot())
    with pytest.raises(SlotTaken, match="take another id") as caught:
        draft.create(slot(gpa=0x50_0000))
    assert caught.value.slot == 7
    draft.delete(1)
    with pytest.raises(UnknownSlot, match="this transaction has deleted it") as gone:
        draft.delete(1)
    assert gone.value.slot == 1
    with pytest.raises(UnknownSlot):
        draft.grow(1, PAGE)
    assert sorted(draft.slots) == [0, 2, 7]


def test_two_slots_that_would_overlap_are_told_when_the_plan_is_made_and_room_may_come_later(draft: Draft):
    draft.move(0, 0x10_0000)
    with pytest.raises(RangeOverlap, match=r"slot 0 .* and slot 1 .* would overlap; shrink, move or delete") as caught:
        draft.plan()
    assert caught.value.slots == (0, 1)
    draft.move(1, 0)
    assert {step.slot for step in draft.plan().changes if isinstance(step, Create)} == {
        Memslot(0, 0, 0x10_0000, 4 * PAGE, HOST),
        Memslot(1, 0, 0, 4 * PAGE, HOST + 0x10_0000),
    }


def test_a_slot_grows_and_shrinks_at_either_end_with_its_host_memory(draft: Draft):
    assert draft.grow(1, PAGE) == Memslot(1, 0, 0x10_0000, 5 * PAGE, HOST + 0x10_0000)
    assert draft.grow(1, PAGE, at_start=True) == Memslot(1, 0, 0xF_F000, 6 * PAGE, HOST + 0xF_F000)
    assert draft.shrink(1, 2 * PAGE, at_start=True) == Memslot(1, 0, 0x10_1000, 4 * PAGE, HOST + 0x10_1000)
    assert draft.shrink(1, 3 * PAGE) == Memslot(1, 0, 0x10_1000, PAGE, HOST + 0x10_1000)


@pytest.mark.parametrize(
    ("by", "says"), [(0, "above 0"), (-PAGE, "above 0"), (1, "multiple"), (4 * PAGE, "leave none; delete it")]
)
def test_a_slot_is_not_shrunk_by_nothing_or_to_nothing(draft: Draft, by: int, says: str):
    with pytest.raises(PlanError, match=says):
        draft.shrink(0, by)
    assert draft.slots[0] == LOW


def test_a_slot_does_not_grow_below_zero(draft: Draft):
    with pytest.raises(OutOfRange, match="guest_phys_addr -0x1000"):
        draft.grow(0, PAGE, at_start=True)
    assert draft.slots[0] == LOW


def test_a_split_gives_the_lower_part_the_id_and_the_upper_one_the_lowest_that_is_free(draft: Draft):
    low, high = draft.split(0, PAGE)
    assert low == Memslot(0, 0, 0, PAGE, HOST)
    assert high == Memslot(3, 0, PAGE, 3 * PAGE, HOST + PAGE)
    assert draft.plan().steps == (Delete(LOW), Create(low), Create(high))


@pytest.mark.parametrize("at", [0, 4 * PAGE, 8 * PAGE])
def test_a_slot_is_not_split_at_its_edges_or_beyond(draft: Draft, at: int):
    with pytest.raises(OutOfRange, match="name an address inside it"):
        draft.split(0, at)


def test_a_split_in_the_middle_of_a_page_or_to_a_taken_id_changes_nothing(draft: Draft):
    with pytest.raises(Misaligned):
        draft.split(0, 5)
    with pytest.raises(SlotTaken):
        draft.split(0, PAGE, second=1)
    assert draft.plan().steps == ()


def test_a_move_to_free_space_is_kvms_own_move_and_holds_nobody(draft: Draft):
    moved = draft.move(1, 0x80_0000)
    plan = draft.plan()
    assert plan.steps == (Move(HIGH, moved),)
    assert not plan.needs_hold


def test_a_move_over_its_own_old_range_holds(draft: Draft):
    moved = draft.move(1, 0x10_1000)
    plan = draft.plan()
    assert plan.steps == (Move(HIGH, moved),)
    assert plan.reason == "[0x101000, 0x104000) goes with slot 1 and comes again with slot 1"


def test_a_logged_slot_that_moves_is_made_anew_so_that_its_bits_stay_where_the_stores_were(draft: Draft):
    moved = draft.move(2, 0x80_0000)
    assert draft.plan().steps == (Fetch(LOGGED), Delete(LOGGED), Create(moved))
    assert draft.plan().needs_hold


def test_logging_is_switched_by_one_call_and_read_only_by_two(draft: Draft):
    logs = draft.set_flags(0, log_dirty=True)
    assert draft.plan().steps == (SetFlags(LOW, logs),)
    assert not draft.plan().needs_hold
    draft.set_flags(0, log_dirty=False)
    silent = draft.set_flags(2, log_dirty=False)
    assert draft.plan().steps == (Fetch(LOGGED), SetFlags(LOGGED, silent))
    assert draft.plan().reason == "the dirty log of slot 2 [0x200000, 0x204000) goes, and has to be exact"
    draft.set_flags(2, log_dirty=True)
    readonly = draft.set_flags(1, readonly=True)
    assert readonly.flags == READONLY
    assert draft.plan().steps == (Delete(HIGH), Create(readonly))


def test_a_remap_puts_other_memory_behind_the_same_range(draft: Draft):
    other = draft.remap(0, HOST + 0x1000_0000)
    assert draft.plan().steps == (Delete(LOW), Create(other))
    assert draft.plan().needs_hold


def test_a_plan_is_written_for_people(draft: Draft):
    assert str(draft.plan()) == "nothing to do"
    draft.delete(2)
    assert str(draft.plan()).splitlines() == [
        "1 slot call, 8 bytes of dirty bitmap, 16 KiB of the guest's translations; in a hold, since the dirty log of "
        "slot 2 [0x200000, 0x204000) goes, and has to be exact",
        "  0  fetch the dirty log of slot 2 [0x200000, 0x204000)",
        "  1  delete slot 2 [0x200000, 0x204000)",
    ]


def test_ids_are_given_from_the_lowest_and_those_given_back_are_given_again():
    ids = SlotIds([0, 1, 3])
    assert [ids.take(), ids.take(), ids.take()] == [2, 4, 5]
    ids.give_back(1)
    ids.give_back(4)
    ids.take_this(1)
    assert [ids.take(), ids.take()] == [4, 6]


def test_where_all_ids_are_in_use_the_error_says_so_and_one_given_back_is_the_next():
    ids = SlotIds(range(MAX_SLOTS))
    with pytest.raises(SlotTaken, match="all 32764 slot ids are in use"):
        ids.take()
    ids.give_back(17)
    assert ids.take() == 17
