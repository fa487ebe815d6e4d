"""Draws of KVM_SET_USER_MEMORY_REGION: what VMMs do, and the refusals next to it."""

from __future__ import annotations

from typing import Any

from tests.conformance.askable import LARGE_PAGE, LARGEST_SLOT_GPA
from tests.conformance.draws.aim import AROUND_WORDS, SMALL, Aim
from tests.conformance.recording import Operation
from tests.conformance.replay import U64
from tests.conformance.table import LOG_DIRTY, READONLY, Slot
from vmmd.memory.limits import MAX_SLOT_PAGES, PAGE_SHIFT, PAGE_SIZE

_MOST_LOGGED_PAGES = 1 << 16


def create(aim: Aim) -> list[Operation]:
    """Draw a new slot, free or not, overlapping or not."""
    npages = aim.rng.choice(SMALL if aim.rng.random() < 0.6 else AROUND_WORDS)
    return [aim.new_slot(npages).operation(aim.free_id())]


def alias(aim: Aim) -> list[Operation]:
    """Draw a slot over the same host memory as another, a store through the one, and what is seen through both."""
    found = aim.set_slot()
    if found is None:
        return []
    old_id, old = found
    new_id, new = aim.free_id(), Slot(aim.gpa(), old.size, old.where, aim.flags())
    page = aim.rng.randrange(old.npages) << PAGE_SHIFT
    through, other = aim.rng.sample((old.gpa, new.gpa), 2)
    return [
        new.operation(new_id),
        {"op": "guest_write", "gpa": through + page, "size": 8, "value": aim.rng.getrandbits(64)},
        {"op": "guest_read", "gpa": other + page, "size": 8},
        {"op": "get_dirty_log", "slot": old_id},
        {"op": "get_dirty_log", "slot": new_id},
    ]


def recreate(aim: Aim) -> list[Operation]:
    """Draw what a VMM does that has no call for it: delete a slot, and make it anew, grown or shrunk."""
    found = aim.set_slot()
    if found is None:
        return []
    slot_id, slot = found
    npages = max(1, slot.npages + aim.rng.choice((-64, -1, 0, 1, 64)))
    again = Slot(slot.gpa, npages << PAGE_SHIFT, slot.where, aim.flags())
    return [slot.operation(slot_id, memory_size=0), again.operation(slot_id)]


def delete(aim: Aim) -> list[Operation]:
    """Draw a delete: of all fields but the id and the size only the legality counts."""
    found = aim.set_slot()
    if found is None or aim.rng.random() < 0.15:
        return [aim.new_slot(1).operation(aim.some_id(), memory_size=0)]
    slot_id, slot = found
    noise: tuple[dict[str, Any], ...] = (
        {},
        {},
        {},
        {"guest_phys_addr": aim.gpa()},
        {"flags": aim.flags()},
        {"userspace_addr": aim.where(1)},
        {"flags": 1 << aim.rng.randrange(2, 32)},
        {"guest_phys_addr": slot.gpa + aim.rng.choice((1, 2048, 4095))},
        {"userspace_addr": aim.askable.userspace_end + PAGE_SIZE},
    )
    return [slot.operation(slot_id, memory_size=0, **aim.rng.choice(noise))]


def move(aim: Aim) -> list[Operation]:
    """Draw a move: onto itself, over its own old range, next to it, onto others, anywhere."""
    found = aim.set_slot()
    if found is None:
        return []
    slot_id, slot = found
    others = [other.gpa for other in aim.table.slots.values() if other is not slot]
    places = (
        slot.gpa,
        slot.gpa + aim.rng.choice((-1, 1)) * PAGE_SIZE,
        slot.gpa + slot.size // 2 // PAGE_SIZE * PAGE_SIZE,
        slot.gpa - slot.size,
        slot.end,
        aim.gpa(),
        aim.gpa(),
        aim.rng.choice(others or [slot.gpa]),
        slot.gpa + aim.rng.choice((1, 512, 4095)),
    )
    gpa = max(aim.rng.choice(places), 0) & U64
    return [slot.operation(slot_id, guest_phys_addr=gpa, flags=slot.flags ^ aim.rng.choice((0, 0, 0, LOG_DIRTY)))]


def change_flags(aim: Aim) -> list[Operation]:
    """Draw a change of flags: logging on or off, mostly; read-only, which is refused."""
    found = aim.set_slot()
    if found is None:
        return []
    slot_id, slot = found
    bits = aim.rng.choice((LOG_DIRTY, LOG_DIRTY, LOG_DIRTY, 0, READONLY, LOG_DIRTY | READONLY))
    return [slot.operation(slot_id, flags=slot.flags ^ bits)]


def resize(aim: Aim) -> list[Operation]:
    """Draw another size or another place in host memory, which no slot can take."""
    found = aim.set_slot()
    if found is None:
        return []
    slot_id, slot = found
    size = max(PAGE_SIZE, slot.size + aim.rng.choice((-1, 1, 64, 1 << 20, MAX_SLOT_PAGES)) * PAGE_SIZE)
    changed = aim.rng.choice(({"memory_size": size}, {"userspace_addr": aim.where(slot.npages)}))
    return [slot.operation(slot_id, **changed)]


def huge(aim: Aim) -> list[Operation]:
    """Draw a slot that the kernel can map in large pages until it is logged: memory and gpa agree in their low bits."""
    npages = aim.rng.choice((512, 513, 640, 1024, 1025))
    flags = aim.flags() & ~(LOG_DIRTY if aim.rng.random() < 0.6 else 0)
    gpa = aim.area.start // LARGE_PAGE * LARGE_PAGE + aim.rng.choice((0, LARGE_PAGE))
    return [Slot(gpa, npages << PAGE_SHIFT, {"at": "b2", "offset": 0}, flags).operation(aim.free_id())]


def large(aim: Aim) -> list[Operation]:
    """Draw a slot, up to the largest, over the hole: memory that the guest reaches and the host has not."""
    most = aim.askable.affordable_pages
    npages = aim.rng.choice((1, 512, 513, 1 << 15, 1 << 16, most - 1, most))
    flags = aim.flags() if npages <= _MOST_LOGGED_PAGES else aim.flags() & ~LOG_DIRTY
    gpa = aim.rng.choice((LARGEST_SLOT_GPA, LARGEST_SLOT_GPA + PAGE_SIZE, aim.gpa()))
    where = {"at": "hole", "offset": aim.rng.choice((0, PAGE_SIZE))}
    return [Slot(gpa, npages << PAGE_SHIFT, where, flags).operation(aim.free_id())]
