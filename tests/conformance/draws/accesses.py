"""Draws of guest accesses, and of what the VMM does with host memory behind the guest's back."""

from __future__ import annotations

from tests.conformance.draws.aim import HOST_PAGES, Aim, Where, in_host
from tests.conformance.recording import Operation
from vmmd.memory.limits import PAGE_SHIFT, PAGE_SIZE

_SIZES = (1, 2, 4, 8)


def access(aim: Aim) -> list[Operation]:
    """Draw a load or store within a page, mostly in a slot."""
    found = aim.set_slot()
    size = aim.rng.choice(_SIZES)
    start, end = aim.area.start, aim.area.stop
    if found is not None and aim.rng.random() < 0.9:
        start, end = found[1].gpa, found[1].end
    page = aim.rng.randrange(start, end, PAGE_SIZE)
    return _touch(aim, page + aim.rng.randrange(PAGE_SIZE - size + 1), size)


def border(aim: Aim) -> list[Operation]:
    """Draw an access over a page's border; the ends of slots are the borders of most interest."""
    found = aim.set_slot()
    size = aim.rng.choice(_SIZES[1:])
    at = aim.gpa()
    if found is not None:
        slot = found[1]
        at = aim.rng.choice((slot.gpa, slot.end, aim.rng.randrange(slot.gpa, slot.end, PAGE_SIZE)))
    lost = aim.borders_of_lost_pages()
    if lost and aim.rng.random() < 0.4:
        at = aim.rng.choice(lost)
    gpa = at - aim.rng.randrange(1, size)
    if aim.rng.random() < 0.7:
        return _touch(aim, gpa, size)
    # What a store over a border has left behind on either side, also where it was refused.
    return _touch(aim, gpa, size) + [op for at in (gpa, gpa + size - 1) for op in _load(at, 1)]


def host_read(aim: Aim) -> list[Operation]:
    """Draw a reading of host memory."""
    where, length = _host_place(aim)
    return [{"op": "host_read", "userspace_addr": where, "length": length}]


def host_write(aim: Aim) -> list[Operation]:
    """Draw a writing of host memory, which no log takes note of."""
    where, length = _host_place(aim)
    return [{"op": "host_write", "userspace_addr": where, "data": aim.rng.randbytes(length).hex()}]


def host_unmap(aim: Aim) -> list[Operation]:
    """Draw the loss of some of a slot's host pages."""
    found = aim.set_slot()
    where = in_host(found[1]) if found is not None else None
    if found is None or where is None:
        return []
    first = aim.rng.randrange(found[1].npages)
    pages = min(aim.rng.choice((1, 1, 2, 8)), found[1].npages - first)
    place = {"at": where["at"], "offset": where["offset"] + (first << PAGE_SHIFT)}
    return [{"op": "host_unmap", "userspace_addr": place, "length": pages << PAGE_SHIFT}]


def _touch(aim: Aim, gpa: int, size: int) -> list[Operation]:
    if gpa < 0 or aim.rng.random() < 0.5:
        return _load(gpa, size)
    return [{"op": "guest_write", "gpa": gpa, "size": size, "value": aim.rng.getrandbits(8 * size)}]


def _load(gpa: int, size: int) -> list[Operation]:
    return [{"op": "guest_read", "gpa": gpa, "size": size}] if gpa >= 0 else []


def _host_place(aim: Aim) -> tuple[Where, int]:
    length = aim.rng.choice((1, 8, 8, 64))
    found = aim.set_slot()
    where = in_host(found[1]) if found is not None else None
    if found is not None and where is not None:
        return where | {"offset": where["offset"] + aim.rng.randrange(found[1].size - length)}, length
    name = aim.rng.choice(list(HOST_PAGES))
    return {"at": name, "offset": aim.rng.randrange((HOST_PAGES[name] << PAGE_SHIFT) - length)}, length
