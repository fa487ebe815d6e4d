import itertools
from pathlib import Path

import pytest

import vmmd_client
from vmmd_client import Memslot
from vmmd_client.audit import SlotCall, Update, audit_file, change
from vmmd_client.replay.layout import PAGE_SIZE, Layout, LayoutError, Relocation, Span

SHIPPED = Path(vmmd_client.__file__).parent / "data" / "qemu-7.2-pc-boot.strace.gz"


def shipped_updates() -> list[Update]:
    return audit_file(str(SHIPPED)).findings.vms[0].updates


def update(before: dict[int, Memslot], *regions: Memslot) -> Update:
    slots, made = dict(before), Update(1, 8)
    for when, region in enumerate(regions):
        made.add(change(slots, SlotCall(1, 8, when, region)))
    made.close()
    return made


def test_qemus_guest_can_walk_over_low_memory_and_all_above_one_mebibyte():
    layout = Layout.of(shipped_updates())
    assert layout.walk == (Span(0, 0xA0000), Span(0x100000, 0xFF00000))
    assert sorted(layout.base) == [0, 1]
    assert len(layout.updates) == 10


def test_the_guests_own_place_is_above_all_that_was_recorded():
    layout = Layout.of(shipped_updates())
    assert (layout.free_slot, layout.free_gpa) == (9, 4 << 30)


def test_every_recorded_address_has_a_backing_and_no_two_backings_touch():
    recorded = shipped_updates()
    layout = Layout.of(recorded)
    for low, high in itertools.pairwise(layout.backings):
        assert low.end < high.start
    for region in (step.call.region for update in recorded for step in update.changes):
        start, size = region.userspace_addr, region.memory_size
        assert any(span.start <= start and start + size <= span.end for span in layout.backings)


@pytest.mark.parametrize("walkers", [1, 3, 4, 64])
def test_no_two_walkers_share_a_page_and_each_has_pages_of_every_range(walkers: int):
    layout = Layout.of(shipped_updates())
    taken: set[int] = set()
    for walker in range(walkers):
        pages = layout.pages(walker, walkers, 24)
        assert taken.isdisjoint(pages)
        assert all(page % PAGE_SIZE == 0 for page in pages)
        assert all(any(span.start <= page < span.end for page in pages) for span in layout.walk)
        taken.update(pages)
    assert all(any(span.start <= page and page + PAGE_SIZE <= span.end for span in layout.walk) for page in taken)


def test_more_walkers_than_pages_are_refused_with_both_numbers():
    with pytest.raises(LayoutError, match="200 walkers are too many for the 160 pages at 0x0"):
        Layout.of(shipped_updates()).pages(0, 200, 24)


def test_memory_that_comes_back_at_another_host_address_is_not_walked_over():
    here, there = Memslot(0, 0, 0, 0x4000, 0x7000_0000), Memslot(0, 0, 0, 0x4000, 0x7100_0000)
    gone = Memslot(0, 0, 0, 0, 0)
    first = update({}, here)
    with pytest.raises(LayoutError, match="nothing to walk over"):
        Layout.of([first, update({0: here}, gone, there)])
    assert Layout.of([first, update({0: here}, gone, here)]).walk == (Span(0, 0x4000),)


def test_a_recording_without_a_second_update_is_refused():
    with pytest.raises(LayoutError, match="at least two"):
        Layout.of([update({}, Memslot(0, 0, 0, 0x4000, 0x7000_0000))])


def test_a_recorded_address_moves_with_its_backing():
    relocation = Relocation({Span(0x7000_0000, 0x4000): 0x10_0000, Span(0x7100_0000, 0x1000): 0x20_0000})
    assert relocation.relocate(Memslot(3, 2, 0x9000, 0x1000, 0x7000_2000)) == Memslot(3, 2, 0x9000, 0x1000, 0x10_2000)
    assert relocation.relocate(Memslot(3, 0, 0x9000, 0x1000, 0x7100_0000)).userspace_addr == 0x20_0000
