"""Loads, stores and copies: borders, marks, and that what fails has written nothing."""

from __future__ import annotations

import errno

import pytest

from tests.memory.plain import new_log, pages
from vmmd.memory import access
from vmmd.memory.errors import Refused
from vmmd.memory.host import HostSpace, Ledger
from vmmd.memory.limits import PAGE_SIZE, U64
from vmmd.memory.memslots import Memslots
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from vmmd.memory.view import View

LOG, ROM = KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY


class Map:
    """Sixteen host pages. Guest pages: 0-3 logged, 4-5 plain, 6 read-only, 7 a hole, 8-9 logged and 9 unmapped."""

    def __init__(self) -> None:
        host, self.base = HostSpace().with_mapping(16 * PAGE_SIZE, Ledger(1 << 40))
        host, _ = host.without(self.base + 9 * PAGE_SIZE, PAGE_SIZE)
        memslots = Memslots()
        for slot, (first, count, flags) in enumerate([(0, 4, LOG), (4, 2, 0), (6, 1, ROM), (8, 2, LOG)]):
            region = pages(slot, first, count, flags=flags, hva=self.base + first * PAGE_SIZE)
            memslots, _ = memslots.with_change(region, new_log)
        self.view = View(memslots, host)

    def dirty(self, slot_id: int) -> int:
        slot = self.view.memslots.get(slot_id)
        assert slot is not None
        assert slot.dirty is not None
        return int.from_bytes(slot.dirty.marks.snapshot(), "little")

    def whole(self) -> bytes:
        return access.read_host(self.view, self.base, 9 * PAGE_SIZE)


@pytest.fixture
def map_() -> Map:
    return Map()


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 7, 8, 9, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE])
@pytest.mark.parametrize("address", [0, 1, 4, PAGE_SIZE - 8, PAGE_SIZE - 3, 2 * PAGE_SIZE - 1])
def test_what_was_written_is_read_again_over_any_border(map_: Map, address: int, length: int) -> None:
    data = bytes((at * 7 + 1) % 256 for at in range(length))
    access.write_guest(map_.view, address, data)
    assert access.read_guest(map_.view, address, length) == data
    assert access.read_host(map_.view, map_.base + address, length) == data
    assert map_.whole().count(0) == 9 * PAGE_SIZE - len(data) + data.count(0)


def test_a_write_marks_its_pages_in_the_logged_slot_and_says_what_it_wrote(map_: Map) -> None:
    written = access.write_guest(map_.view, 3 * PAGE_SIZE - 2, bytes(PAGE_SIZE + 10))
    assert map_.dirty(0) == 0b1100
    assert written == [
        (map_.base + 3 * PAGE_SIZE - 2, PAGE_SIZE + 2),
        (map_.base + 4 * PAGE_SIZE, 8),
    ]


def test_reads_and_writes_through_the_host_mark_nothing(map_: Map) -> None:
    access.read_guest(map_.view, 0, 4 * PAGE_SIZE)
    access.write_host(map_.view, map_.base, bytes(4 * PAGE_SIZE))
    assert map_.dirty(0) == 0


@pytest.mark.parametrize(
    ("address", "length", "said"),
    [
        (5 * PAGE_SIZE, PAGE_SIZE + 1, "slot 2 at guest_phys_addr 0x6000 is KVM_MEM_READONLY"),
        (8 * PAGE_SIZE, PAGE_SIZE + 1, "slot 3 has no host mapping at guest_phys_addr 0x9000"),
        (7 * PAGE_SIZE, 1, "no memslot holds guest_phys_addr 0x7000"),
        (9 * PAGE_SIZE + 8, 1, "slot 3 has no host mapping at guest_phys_addr 0x9008"),
        (U64, 1, "no memslot holds guest_phys_addr 0xffffffffffffffff"),
        (U64 + 1, 1, "no memslot holds"),
    ],
)
def test_a_write_is_checked_over_the_whole_range_before_anything_is_written(
    map_: Map, address: int, length: int, said: str
) -> None:
    before = map_.whole()
    with pytest.raises(Refused) as refusal:
        access.write_guest(map_.view, address, b"\xee" * length)
    assert refusal.value.errno == errno.EFAULT
    assert said in refusal.value.message
    assert map_.whole() == before
    assert (map_.dirty(0), map_.dirty(3)) == (0, 0)


@pytest.mark.parametrize(("address", "length"), [(6 * PAGE_SIZE, PAGE_SIZE + 1), (8 * PAGE_SIZE, 2 * PAGE_SIZE)])
def test_a_read_of_a_hole_or_a_lost_page_is_efault(map_: Map, address: int, length: int) -> None:
    with pytest.raises(Refused, match="EFAULT"):
        access.read_guest(map_.view, address, length)


def test_read_only_memory_is_read(map_: Map) -> None:
    access.write_host(map_.view, map_.base + 6 * PAGE_SIZE, b"rom")
    assert access.read_guest(map_.view, 6 * PAGE_SIZE, 3) == b"rom"


def test_a_host_write_is_checked_over_the_whole_range_before_anything_is_written(map_: Map) -> None:
    with pytest.raises(Refused, match=rf"EFAULT: userspace address {map_.base + 9 * PAGE_SIZE:#x} is not mapped"):
        access.write_host(map_.view, map_.base + 8 * PAGE_SIZE, b"\xee" * (PAGE_SIZE + 1))
    assert map_.whole() == bytes(9 * PAGE_SIZE)


def test_an_access_beyond_what_its_translation_covers_is_our_own_bug_and_raises(map_: Map) -> None:
    run = map_.view.find(6 * PAGE_SIZE - 4)
    lost = map_.view.find(9 * PAGE_SIZE)
    assert run is not None
    assert lost is not None
    for wrong in (run, lost):
        with pytest.raises(ValueError, match="8 bytes are more"):
            access.load(wrong, 8)
        with pytest.raises(ValueError, match="8 bytes are more"):
            access.store(wrong, bytes(8))
    assert map_.whole() == bytes(9 * PAGE_SIZE)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_single_accesses_are_little_endian_aligned_or_not(map_: Map, size: int, offset: int) -> None:
    run = map_.view.find(offset)
    assert run is not None
    data = bytes(range(1, size + 1))
    access.store(run, data)
    assert access.load(run, size) == data
    assert access.read_guest(map_.view, offset, size) == data
