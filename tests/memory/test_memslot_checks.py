"""Every check of KVM_SET_USER_MEMORY_REGION that needs no guest_memfd, with its errno, in the kernel's order.

Rows are numbered as in KVM's own order: 0c flags, 1 the id, 3 size, 4 guest_phys_addr, 5 userspace_addr, 7 address
space, 8 the wrap, 9 pages, 10 delete, 12 what cannot be changed, 13 overlap, 17 the guest-physical bits.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests.memory.plain import HVA, change, contents, pages, table
from vmmd.memory.errors import Refused
from vmmd.memory.limits import GUEST_PHYS_BITS, MAX_SLOT_PAGES, PAGE_SIZE, U64, USER_MEM_SLOTS, USERSPACE_END
from vmmd.memory.memslots import Change, Memslots
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Region

TOP = 1 << GUEST_PHYS_BITS - 12
SPACE_1 = 1 << 16

PLAIN = pages(1, 0x10, 4)
READONLY = pages(2, 0x20, 2, flags=KVM_MEM_READONLY)
LOGGED = pages(3, 0x30, 3, flags=KVM_MEM_LOG_DIRTY_PAGES)
LAST = pages(4, TOP - 1, 1, hva=HVA)
NEW = pages(9, 0x100, 2)
TOO_LARGE = (MAX_SLOT_PAGES + 1) * PAGE_SIZE

E, X = errno.EINVAL, errno.EEXIST

REFUSED: list[tuple[str, Region, int, str]] = [
    ("0c: a flag of the second version", replace(NEW, flags=4), E, "flags 0x4"),
    ("0c: a flag of the kernel's own", replace(NEW, flags=1 << 16), E, "flags 0x10000"),
    ("1: the first id too large", replace(NEW, slot=USER_MEM_SLOTS), E, "slot id 32764"),
    ("1: the largest id", replace(NEW, slot=0xFFFF), E, "slot id 65535"),
    ("3: a size of no whole pages", replace(NEW, memory_size=PAGE_SIZE + 1), E, "memory_size 0x1001"),
    ("4: an unaligned address", replace(NEW, guest_phys_addr=0x100FFF), E, "guest_phys_addr 0x100fff"),
    ("5: an unaligned hva", replace(NEW, userspace_addr=HVA + 1), E, "userspace_addr 0x1000000001"),
    ("5: an end beyond userspace", replace(NEW, userspace_addr=USERSPACE_END - PAGE_SIZE), E, "beyond userspace"),
    ("5: an hva that wraps", replace(NEW, userspace_addr=U64 - PAGE_SIZE + 1), E, "beyond userspace"),
    ("7: an address space that is none", replace(NEW, slot=SPACE_1 | 9), E, "address space 1"),
    ("8: an end that wraps to 0", replace(NEW, guest_phys_addr=U64 - 2 * PAGE_SIZE + 1), E, "wraps"),
    ("8: an end that wraps beyond 0", replace(NEW, guest_phys_addr=U64 - PAGE_SIZE + 1), E, "wraps"),
    ("9: a page too many", replace(NEW, memory_size=TOO_LARGE), E, "2147483648 pages"),
    ("10: delete of what is not set", replace(NEW, memory_size=0), E, "slot 9 is not set"),
    ("12b: another hva", replace(PLAIN, userspace_addr=HVA), E, "userspace_addr of slot 1"),
    ("12c: a larger size", replace(PLAIN, memory_size=5 * PAGE_SIZE), E, "memory_size of slot 1"),
    ("12c: a smaller size", replace(PLAIN, memory_size=3 * PAGE_SIZE), E, "memory_size of slot 1"),
    ("12d: READONLY on", replace(PLAIN, flags=KVM_MEM_READONLY), E, "KVM_MEM_READONLY of slot 1"),
    ("12d: READONLY off", replace(READONLY, flags=0), E, "KVM_MEM_READONLY of slot 2"),
    ("13: create of the same range", replace(PLAIN, slot=9), X, "slot 1"),
    ("13: create over one's last page", pages(9, 0x13, 1), X, "slot 1"),
    ("13: create over one's first page", pages(9, 0x8, 9), X, "slot 1"),
    ("13: create around all", pages(9, 0, 0x200), X, "slot 1"),
    ("13: move over another's last page", replace(PLAIN, guest_phys_addr=0x32000), X, "slot 3"),
    ("13: move over another's first page", replace(PLAIN, guest_phys_addr=0x2D000), X, "slot 3"),
    ("17: create beyond the bits", pages(9, TOP, 1, hva=HVA), E, "52 guest-physical bits"),
    ("17: move across the bits' end", replace(PLAIN, guest_phys_addr=(TOP + 4) * PAGE_SIZE), E, "52 guest-physical"),
]

FIRST_OF_TWO: list[tuple[str, Region, int, str]] = [
    ("0c before 1", replace(NEW, flags=4, slot=0xFFFF), E, "flags"),
    ("1 before 3", replace(NEW, slot=0xFFFF, memory_size=1), E, "slot id"),
    ("1 before 7", replace(NEW, slot=SPACE_1 | 0xFFFF), E, "slot id"),
    ("3 before 4", replace(NEW, memory_size=1, guest_phys_addr=1), E, "memory_size"),
    ("4 before 5", replace(NEW, guest_phys_addr=1, userspace_addr=1), E, "guest_phys_addr"),
    ("5: alignment before range", replace(NEW, userspace_addr=U64), E, "not aligned"),
    ("5 before 7", replace(NEW, userspace_addr=USERSPACE_END, slot=SPACE_1), E, "beyond userspace"),
    ("7 before 8", replace(NEW, slot=SPACE_1, guest_phys_addr=U64 - PAGE_SIZE + 1), E, "address space"),
    ("8 before 9", replace(NEW, guest_phys_addr=U64 - PAGE_SIZE + 1, memory_size=TOO_LARGE), E, "wraps"),
    ("9 before 12c", replace(PLAIN, memory_size=TOO_LARGE), E, "pages exceed"),
    ("0c before 10", replace(NEW, flags=4, memory_size=0), E, "flags"),
    ("4 before delete", replace(PLAIN, guest_phys_addr=1, memory_size=0), E, "guest_phys_addr"),
    ("5 before delete", replace(PLAIN, userspace_addr=1, memory_size=0), E, "userspace_addr"),
    ("5: the range before delete", replace(PLAIN, userspace_addr=U64 - 4095, memory_size=0), E, "beyond userspace"),
    ("12b before 13", replace(PLAIN, userspace_addr=HVA, guest_phys_addr=0x30000), E, "userspace_addr"),
    ("12c before 13: no growth into a neighbour", replace(PLAIN, memory_size=32 * PAGE_SIZE), E, "memory_size"),
    ("12d before 13", replace(PLAIN, flags=KVM_MEM_READONLY, guest_phys_addr=0x30000), E, "KVM_MEM_READONLY"),
    ("13 before 17", pages(9, TOP - 1, 2, hva=HVA), X, "slot 4"),
]


@pytest.fixture
def memslots() -> Memslots:
    return table(PLAIN, READONLY, LOGGED, LAST)


@pytest.mark.parametrize(("region", "number", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_region_that_breaks_a_rule_is_refused_and_the_table_is_unchanged(
    memslots: Memslots, region: Region, number: int, said: str
) -> None:
    before = contents(memslots)
    with pytest.raises(Refused) as refusal:
        change(memslots, region)
    assert refusal.value.errno == number
    assert said in refusal.value.message
    assert contents(memslots) == before


@pytest.mark.parametrize(
    ("region", "number", "said"), [row[1:] for row in FIRST_OF_TWO], ids=[row[0] for row in FIRST_OF_TWO]
)
def test_of_two_broken_rules_the_kernels_first_is_named(
    memslots: Memslots, region: Region, number: int, said: str
) -> None:
    before = contents(memslots)
    with pytest.raises(Refused) as refusal:
        change(memslots, region)
    assert refusal.value.errno == number
    assert said in refusal.value.message
    assert contents(memslots) == before


@pytest.mark.parametrize("bit", range(2, 32))
def test_every_flag_bit_but_two_is_unknown_also_to_a_delete(memslots: Memslots, bit: int) -> None:
    for region in (NEW, replace(PLAIN, memory_size=0)):
        with pytest.raises(Refused, match="EINVAL: flags"):
            change(memslots, replace(region, flags=1 << bit))


def test_a_refusal_says_the_errno_and_both_ranges(memslots: Memslots) -> None:
    with pytest.raises(Refused) as refusal:
        change(memslots, pages(9, 0x12, 4))
    assert str(refusal.value) == "EEXIST: [0x12000, 0x16000) overlaps slot 1 at [0x10000, 0x14000)"


@pytest.mark.parametrize(
    "region",
    [
        pages(9, 0x14, 0xC),
        pages(9, 0xF, 1),
        pages(9, 0, 0x10),
        pages(9, TOP - 2, 1, hva=HVA),
        replace(NEW, userspace_addr=0),
        replace(NEW, userspace_addr=USERSPACE_END - NEW.memory_size),
        replace(NEW, userspace_addr=PLAIN.userspace_addr),
        replace(NEW, slot=USER_MEM_SLOTS - 1),
        pages(9, TOP // 2, MAX_SLOT_PAGES, hva=HVA),
        replace(NEW, flags=KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY),
    ],
    ids=[
        "between two slots, touching both",
        "touching the first from below",
        "from address 0",
        "touching the last one below the end",
        "hva 0",
        "up to the end of userspace",
        "an alias of another slot's memory",
        "the largest id",
        "the largest size",
        "both flags",
    ],
)
def test_the_last_legal_value_is_legal(memslots: Memslots, region: Region) -> None:
    after, kind = change(memslots, region)
    assert kind is Change.CREATE
    slot = after.get(region.slot)
    assert slot is not None
    assert (slot.flags, slot.guest_phys_addr, slot.memory_size, slot.userspace_addr) == (
        region.flags,
        region.guest_phys_addr,
        region.memory_size,
        region.userspace_addr,
    )
