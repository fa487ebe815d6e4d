from hypothesis import given
from hypothesis import strategies as st

from vmmd_client.slots.memslots import Memslot, any_overlap, cut, deletion_of, with_call

PAGE = 4096


@st.composite
def slot_maps(draw: st.DrawFn) -> dict[int, Memslot]:
    """Slot maps over 12 pages whose slots do not overlap."""
    slots, start = {}, 0
    for slot in range(draw(st.integers(0, 4))):
        start += draw(st.integers(0, 2))
        size = draw(st.integers(1, 3))
        base = draw(st.sampled_from([0x7000_0000, 0x7100_0000]))
        slots[slot] = Memslot(slot, draw(st.sampled_from([0, 2])), start * PAGE, size * PAGE, base + start * PAGE)
        start += size
    return slots


def backing_of_page(slots: dict[int, Memslot], gpa: int) -> tuple[int, bool] | None:
    for slot in slots.values():
        if slot.guest_phys_addr <= gpa < slot.end:
            return slot.userspace_addr + gpa - slot.guest_phys_addr, slot.is_writable
    return None


@given(st.lists(slot_maps(), min_size=1, max_size=4))
def test_cut_says_of_every_page_of_every_map_what_lies_behind_it(maps: list[dict[int, Memslot]]):
    pieces = {}
    for piece in cut(maps):
        for gpa in range(piece.guest_phys_addr, piece.guest_phys_addr + piece.size, PAGE):
            assert gpa not in pieces
            pieces[gpa] = [
                None if behind is None else (behind.userspace_addr + gpa - piece.guest_phys_addr, behind.is_writable)
                for behind in piece.backings
            ]
    for gpa in range(0, 24 * PAGE, PAGE):
        expected = [backing_of_page(slots, gpa) for slots in maps]
        assert pieces.get(gpa, [None] * len(maps)) == expected


def test_a_call_gives_a_new_map_and_leaves_the_old_one():
    slot = Memslot(1, 0, 0, PAGE, 0x7000_0000)
    before: dict[int, Memslot] = {}
    with_slot = with_call(before, slot)
    assert (before, with_slot) == ({}, {1: slot})
    assert with_call(with_slot, deletion_of(slot)) == {}
    assert with_slot == {1: slot}


def test_ranges_that_only_touch_do_not_overlap():
    low, high = Memslot(0, 0, 0, PAGE, 0), Memslot(1, 0, PAGE, PAGE, 0)
    assert not low.overlaps(high)
    assert not high.overlaps(low)
    assert any_overlap([low], [high, low])
    assert not any_overlap([low], [high])
