"""Draws at the edges of what is legal: slot ids, address spaces, flags, sizes, and the ends of address ranges."""

from __future__ import annotations

from collections.abc import Callable

from tests.conformance.askable import LARGE_PAGE, LARGEST_SLOT_GPA, UNREACHED_GPA
from tests.conformance.draws.aim import SMALL, Aim
from tests.conformance.recording import Operation
from tests.conformance.replay import U64
from vmmd.memory.limits import MAX_SLOT_PAGES, PAGE_SHIFT, PAGE_SIZE


def edge(aim: Aim) -> list[Operation]:
    """Draw a call with one field at an edge, or two; where that is legal, sometimes with the delete behind it."""
    slot_id = aim.some_id()
    slot = aim.table.slots.get(slot_id) or aim.new_slot(aim.rng.choice(SMALL))
    op = slot.operation(slot_id)
    for _ in range(aim.rng.choice((1, 1, 1, 2))):
        op |= aim.rng.choice(_FIELDS)(aim)
    return [op, op | {"memory_size": 0}] if aim.rng.random() < 0.3 else [op]


def edge_id(aim: Aim) -> list[Operation]:
    """Draw a call on a log with a slot id at an edge."""
    named = _slot(aim)
    if aim.rng.random() < 0.5:
        return [{"op": "get_dirty_log"} | named]
    return [{"op": "clear_dirty_log", "first_page": 0, "num_pages": 64, "bitmap": "ff" * 8} | named]


def _slot(aim: Aim) -> Operation:
    ours, foreign, spaces = aim.askable.slots, aim.askable.foreign_slots, aim.askable.foreign_spaces
    slot = aim.rng.choice((0, ours - 2, ours - 1, foreign, foreign + 1, 32766, 32767, 32768, 65535))
    if aim.rng.random() < 0.4:
        slot |= aim.rng.choice((spaces, spaces + 1, 0x7FFF, 0xFFFF)) << 16
    return {"slot": slot}


def _flags(aim: Aim) -> Operation:
    return {"flags": aim.rng.choice((1 << aim.rng.randrange(2, 32), aim.rng.getrandbits(32)))}


def _size(aim: Aim) -> Operation:
    """A slot that points at the hole may have nearly any size; over the guest's code it overlaps."""
    npages = aim.rng.choice((0, 1, MAX_SLOT_PAGES - 1, MAX_SLOT_PAGES, MAX_SLOT_PAGES + 1, 1 << 32, (1 << 52) - 1))
    return {
        "memory_size": (npages << PAGE_SHIFT) + aim.rng.choice((0, 0, 0, 1, 2048, PAGE_SIZE - 1)) & U64,
        "userspace_addr": {"at": "hole", "offset": 0},
        "guest_phys_addr": aim.rng.choice((0, PAGE_SIZE, UNREACHED_GPA, LARGEST_SLOT_GPA)),
    }


def _gpa(aim: Aim) -> Operation:
    top, npages = 1 << aim.askable.slot_bits, aim.rng.choice(SMALL)
    size = npages << PAGE_SHIFT
    gpa = aim.rng.choice((top - size, top - size + PAGE_SIZE, top, U64 - size + 1, U64 - size - 4095, U64 - 4095))
    odd = aim.rng.choice((0, 0, 0, 1))
    return {"guest_phys_addr": gpa + odd & U64, "memory_size": size, "userspace_addr": aim.where(npages)}


def _hva(aim: Aim) -> Operation:
    """The address itself is under test, so the slot lies where the guest never comes."""
    end, size = aim.askable.userspace_end, aim.rng.choice(SMALL) << PAGE_SHIFT
    ends = (0, PAGE_SIZE, end - size, end - size + PAGE_SIZE, end, 1 << 47, 1 << 63, U64 - size + 1, U64 - 4095)
    hva = aim.rng.choice(ends) + aim.rng.choice((0, 0, 0, 1)) & U64
    gpa = UNREACHED_GPA + aim.rng.randrange(0, LARGE_PAGE, PAGE_SIZE)
    return {"userspace_addr": hva, "memory_size": size, "guest_phys_addr": gpa}


_FIELDS: tuple[Callable[[Aim], Operation], ...] = (_slot, _flags, _size, _gpa, _hva)
