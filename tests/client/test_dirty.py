"""Sets of dirty pages against Python's own sets, and the view that keeps what nobody has read."""

from hypothesis import given
from hypothesis import strategies as st

from vmmd_client import DirtyBitmap, DirtyPages
from vmmd_client.changes.dirty import DirtyView, Unsettled

PAGE = 4096
pages = st.integers(0, 300)


def of(bitmap_of: list[int], first: int) -> DirtyBitmap:
    bits = sum(1 << page for page in set(bitmap_of))
    return DirtyBitmap(0, first * PAGE, bits.to_bytes(-(-max([*bitmap_of, 0]) // 64) * 8 + 8, "little"))


@given(st.lists(st.tuples(pages, st.lists(pages))), st.lists(st.tuples(pages, pages)))
def test_pages_are_added_by_bitmap_at_any_address_and_taken_by_range(
    bitmaps: list[tuple[int, list[int]]], takes: list[tuple[int, int]]
):
    dirty, model = DirtyPages(), set[int]()
    for first, bits in bitmaps:
        dirty.add_bitmap(of(bits, first))
        model |= {(first + bit) * PAGE for bit in bits}
        assert list(of(bits, first).dirty_pages()) == sorted({(first + bit) * PAGE for bit in bits})
    for first, count in takes:
        taken = dirty.take(first * PAGE, count * PAGE)
        assert list(taken) == sorted(gpa for gpa in model if first * PAGE <= gpa < (first + count) * PAGE)
        model -= set(taken)
        assert list(dirty) == sorted(model)
    assert len(dirty) == len(model)
    assert all((page * PAGE in dirty) == (page * PAGE in model) for page in range(310))


@given(pages, pages)
def test_a_range_has_every_page_that_it_touches(first: int, count: int):
    dirty = DirtyPages()
    dirty.add_range(first * PAGE + 1, count * PAGE)
    assert list(dirty) == [page * PAGE for page in range(first, first + count + bool(count))]


def test_sets_are_added_to_one_another():
    one, other = DirtyPages(), DirtyPages()
    one.add_range(0, PAGE)
    other.add_range(64 * PAGE, PAGE)
    one.add(other)
    assert list(one) == [0, 64 * PAGE]
    assert list(other) == [64 * PAGE]


def test_bits_of_a_transaction_whose_end_is_not_known_count_once_it_is_known_to_be_done():
    view = DirtyView()
    view.leave_unsettled(Unsettled("one", (of([1], 0),)))
    view.leave_unsettled(Unsettled("two", (of([2], 0),)))
    assert list(view.take(0, 64 * PAGE)) == []
    view.settle("one", was_done=False)
    view.settle("two", was_done=True)
    view.settle("two", was_done=True)
    assert list(view.take(0, 64 * PAGE)) == [2 * PAGE]
    assert view.unsettled == ()
