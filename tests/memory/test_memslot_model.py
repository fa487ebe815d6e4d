"""The table in chunks against a plain dict: random changes, thousands of slots, every lookup, every packed record."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.memory.plain import HVA, change, gone, packed_slots, pages, table
from vmmd.memory.errors import Refused
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.memslots import Change, Memslots
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, Region

CHUNK_SLOTS = 128


class DictModel:
    """What a table should say, by looking at every slot."""

    def __init__(self) -> None:
        self.slots: dict[int, Region] = {}
        self.generation = 0

    def expect(self, region: Region) -> Change | int:
        """Make the change, and tell which it is; or give the errno that refuses it. Fields are legal as such."""
        old = self.slots.get(region.slot)
        if not region.memory_size:
            if old is None:
                return errno.EINVAL
            del self.slots[region.slot]
            self.generation += 1
            return Change.DELETE
        if old is not None and (old.memory_size, old.userspace_addr) != (region.memory_size, region.userspace_addr):
            return errno.EINVAL
        if old is not None and old.guest_phys_addr == region.guest_phys_addr:
            if old.flags == region.flags:
                return Change.NONE
            kind = Change.FLAGS_ONLY
        else:
            if any(slot.slot != region.slot for slot in self.overlapping(region.guest_phys_addr, region.end)):
                return errno.EEXIST
            kind = Change.CREATE if old is None else Change.MOVE
        self.slots[region.slot] = region
        self.generation += 1
        return kind

    def overlapping(self, start: int, end: int) -> list[Region]:
        found = [slot for slot in self.slots.values() if slot.guest_phys_addr < end and start < slot.end]
        return sorted(found, key=lambda slot: slot.guest_phys_addr)


def fields(region: Region) -> tuple[int, int, int, int, int]:
    return region.slot, region.flags, region.guest_phys_addr, region.memory_size, region.userspace_addr


def step(memslots: Memslots, model: DictModel, region: Region) -> Memslots:
    """Make a change in both and compare what comes of it."""
    expected = model.expect(region)
    if isinstance(expected, int):
        with pytest.raises(Refused) as refusal:
            change(memslots, region)
        assert refusal.value.errno == expected
        return memslots
    after, kind = change(memslots, region)
    assert kind is expected
    return after


def compare(memslots: Memslots, model: DictModel) -> None:
    """Compare everything that costs time in proportion to the table."""
    by_address = sorted(model.slots.values(), key=lambda slot: slot.guest_phys_addr)
    assert [fields(slot) for slot in memslots] == [fields(slot) for slot in by_address]
    assert [fields(slot) for slot in memslots.by_id()] == [fields(model.slots[at]) for at in sorted(model.slots)]
    assert len(memslots) == len(model.slots)
    assert memslots.generation == model.generation
    packed = list(packed_slots(memslots))
    assert all(0 < len(chunk) <= CHUNK_SLOTS for chunk in packed)
    logs = [slot.dirty.marks.address if slot.dirty is not None else 0 for slot in memslots]
    assert [record for chunk in packed for record in chunk] == [
        (slot.guest_phys_addr, slot.memory_size, slot.userspace_addr, slot.flags, log, slot.slot)
        for slot, log in zip(by_address, logs, strict=True)
    ]
    for slot, log in zip(by_address, logs, strict=True):
        assert bool(log) is bool(slot.flags & KVM_MEM_LOG_DIRTY_PAGES)


def compare_at(memslots: Memslots, model: DictModel, start: int, end: int) -> None:
    """Compare lookups at an address and over a range."""
    holding = model.overlapping(start, start + 1)
    found = memslots.find(start)
    assert (fields(found) if found is not None else None) == (fields(holding[0]) if holding else None)
    assert [fields(slot) for slot in memslots.overlapping(start, end)] == [
        fields(slot) for slot in model.overlapping(start, end)
    ]


class SmallTable(RuleBasedStateMachine):
    """Few ids in a narrow range, so that every pair of slots meets."""

    def __init__(self) -> None:
        super().__init__()
        self.memslots = Memslots()
        self.model = DictModel()

    @rule(slot=st.integers(0, 7), first=st.integers(0, 24), count=st.integers(0, 6), flags=st.integers(0, 1))
    def set_region(self, slot: int, first: int, count: int, flags: int) -> None:
        self.memslots = step(self.memslots, self.model, pages(slot, first, count, flags=flags, hva=HVA + (slot << 30)))

    @rule(first=st.integers(0, 31), count=st.integers(1, 31))
    def look(self, first: int, count: int) -> None:
        compare_at(self.memslots, self.model, first * PAGE_SIZE, (first + count) * PAGE_SIZE)

    @invariant()
    def agree(self) -> None:
        compare(self.memslots, self.model)


TestSmallTable = SmallTable.TestCase
TestSmallTable.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)


def random_region(rng: random.Random, model: DictModel) -> Region:
    """Three in four are about a slot that is there: move it, change its flags, delete it."""
    place = rng.randrange(0x8000) * 4
    if not model.slots or rng.random() < 0.25:
        return pages(rng.randrange(32764), place, rng.randrange(1, 5), flags=rng.randrange(2), hva=HVA)
    slot = model.slots[rng.choice(tuple(model.slots))]
    size = slot.memory_size if rng.random() < 0.6 else 0
    address = place * PAGE_SIZE if rng.random() < 0.6 else slot.guest_phys_addr
    return Region(slot.slot, rng.randrange(2), address, size, slot.userspace_addr)


@pytest.mark.parametrize("seed", [1, 2])
def test_thousands_of_slots_agree_with_a_dict_through_random_changes(seed: int) -> None:
    rng = random.Random(seed)
    memslots, model = Memslots(), DictModel()
    ids = list(range(0, 32764, 9))
    rng.shuffle(ids)
    for at, slot_id in enumerate(ids):
        region = pages(slot_id, at * 8, rng.randrange(1, 7), flags=rng.randrange(2), hva=HVA)
        memslots, _ = change(memslots, region)
        model.slots[slot_id] = region
    model.generation = len(ids)
    compare(memslots, model)
    for _ in range(400):
        memslots = step(memslots, model, random_region(rng, model))
        start = rng.randrange(0x8000 * 4 * PAGE_SIZE)
        compare_at(memslots, model, start, start + rng.randrange(1, 64 * PAGE_SIZE))
    compare(memslots, model)


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_a_table_that_is_emptied_agrees_all_the_way_down(order: str) -> None:
    ids = list(range(1200))
    memslots, model = table(*(pages(slot_id, slot_id * 2, 1) for slot_id in ids)), DictModel()
    model.slots = {slot_id: pages(slot_id, slot_id * 2, 1) for slot_id in ids}
    model.generation = len(ids)
    if order == "shuffled":
        random.Random(3).shuffle(ids)
    for left, slot_id in enumerate(ids if order != "descending" else reversed(ids)):
        memslots = step(memslots, model, gone(slot_id))
        if left % 100 == 0:
            compare(memslots, model)
    compare(memslots, model)
    assert memslots.directory == b""


@pytest.mark.parametrize("descending", [False, True])
def test_the_number_of_chunks_stays_in_proportion_to_the_slots(descending: bool) -> None:
    memslots = table(*(pages(slot_id, slot_id, 1) for slot_id in range(4096)))
    leaving = [slot_id for slot_id in range(4096) if slot_id % 128]
    for slot_id in reversed(leaving) if descending else leaving:
        memslots, _ = change(memslots, gone(slot_id))
    assert len(memslots) == 32
    assert len(list(packed_slots(memslots))) <= 2
