import pytest

from vmmd_client import MemFlag, Memslot, PlanError
from vmmd_client.slots.draft import Draft
from vmmd_client.slots.plan import Create, Delete, Fetch

LOW = Memslot(0, 0, 0, 0x4000, 0x7000_0000)
HIGH = Memslot(1, 0, 0x4000, 0x2000, 0x7000_4000)
LOGGED = Memslot(2, MemFlag.LOG_DIRTY_PAGES, 0x1_0000, 0x1000, 0x7100_0000)


def draft(*slots: Memslot) -> Draft:
    return Draft({slot.slot: slot for slot in slots})


def test_every_delete_comes_before_the_first_create():
    changes = draft(LOW, HIGH)
    new = changes.create(Memslot(5, 0, 0x10_0000, 0x1000, 0x7200_0000))
    changes.delete(1)
    assert changes.plan().steps == (Delete(HIGH), Create(new))


def test_a_delete_is_the_ioctl_with_size_zero():
    assert Delete(HIGH).region == Memslot(1, 0, 0x4000, 0, 0x7000_4000)


def test_a_replacement_of_the_same_range_needs_a_hold():
    changes = draft(LOW)
    changes.delete(0)
    changes.create(Memslot(0, 0, 0, 0x2000, 0x7000_0000))
    assert changes.plan().needs_hold


def test_a_pure_create_and_a_pure_delete_elsewhere_need_none():
    changes = draft(LOW, HIGH)
    changes.delete(1)
    changes.create(Memslot(1, 0, 0x6000, 0x1000, 0x7000_6000))
    assert not changes.plan().needs_hold


def test_a_logged_slot_that_goes_is_fetched_first_and_needs_a_hold():
    changes = draft(LOW, LOGGED)
    changes.delete(2)
    plan = changes.plan()
    assert plan.steps == (Fetch(LOGGED), Delete(LOGGED))
    assert plan.needs_hold


def test_a_merge_makes_one_slot_of_two_under_the_first_ones_id_in_either_order():
    for first, second in ((0, 1), (1, 0)):
        changes = draft(LOW, HIGH)
        merged = changes.merge(first, second)
        assert merged == Memslot(first, 0, 0, 0x6000, 0x7000_0000)
        plan = changes.plan()
        assert set(plan.steps) == {Delete(LOW), Delete(HIGH), Create(merged)}
        assert plan.after == {first: merged}
        assert plan.needs_hold


@pytest.mark.parametrize(
    ("high", "why"),
    [
        (Memslot(1, 0, 0x5000, 0x1000, 0x7000_4000), "do not touch"),
        (Memslot(1, 0, 0x4000, 0x1000, 0x7000_5000), "0x70004000, but"),
        (Memslot(1, MemFlag.READONLY, 0x4000, 0x1000, 0x7000_4000), "flags are 0x0 and 0x2"),
    ],
)
def test_slots_that_are_no_neighbours_are_not_merged_and_the_draft_is_as_it_was(high: Memslot, why: str):
    changes = draft(LOW, high)
    with pytest.raises(PlanError, match=why):
        changes.merge(0, 1)
    assert changes.slots == {0: LOW, 1: high}
    assert changes.plan().steps == ()


def test_a_slot_is_not_merged_with_itself():
    with pytest.raises(PlanError, match="do not touch"):
        draft(LOW).merge(0, 0)


def test_an_unknown_slot_is_refused_with_the_known_ones():
    with pytest.raises(PlanError, match="no slot 7; the slots are: 0, 1"):
        draft(LOW, HIGH).delete(7)


def test_an_id_that_is_taken_is_refused_until_its_slot_is_deleted():
    changes = draft(LOW)
    with pytest.raises(PlanError, match="already"):
        changes.create(Memslot(0, 0, 0x8000, 0x1000, 0x7000_8000))
    changes.delete(0)
    changes.create(Memslot(0, 0, 0x8000, 0x1000, 0x7000_8000))
    assert not changes.plan().needs_hold


def test_a_create_of_no_bytes_is_refused_since_it_would_delete():
    with pytest.raises(PlanError, match="0 bytes"):
        draft().create(Memslot(0, 0, 0, 0, 0))


def test_what_the_same_draft_created_and_deleted_again_is_never_sent():
    changes = draft(LOW)
    changes.create(Memslot(5, 0, 0x10_0000, 0x1000, 0x7200_0000))
    changes.delete(5)
    assert changes.plan().steps == ()


def test_a_split_and_a_merge_of_its_halves_is_nothing_at_all():
    changes = draft(LOW)
    changes.delete(0)
    changes.create(Memslot(0, 0, 0, 0x1000, 0x7000_0000))
    changes.create(Memslot(1, 0, 0x1000, 0x3000, 0x7000_1000))
    assert changes.plan().steps == (
        Delete(LOW),
        Create(Memslot(0, 0, 0, 0x1000, 0x7000_0000)),
        Create(Memslot(1, 0, 0x1000, 0x3000, 0x7000_1000)),
    )
    changes.merge(0, 1)
    assert changes.plan().steps == ()
