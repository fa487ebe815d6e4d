"""Random sequences: a seed and a number give one, the same on every run over the same host.

A sequence has a theme, which weighs what is drawn. Draws aim at what is there; to aim, a drawing keeps a table of what
it believes to be set. That belief steers and judges nothing. Whatever is drawn is `askable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from tests.conformance.askable import LARGE_PAGE, Askable
from tests.conformance.draws import accesses, edges, logs, slots
from tests.conformance.draws.aim import HOST_PAGES, Aim
from tests.conformance.recording import Operation, Sequence
from tests.conformance.table import READONLY, Table
from vmmd.memory.limits import MAX_SLOT_PAGES, PAGE_SHIFT, PAGE_SIZE

_SHORTEST, _LONGEST = 20, 70
_HOLE_SIZE = (MAX_SLOT_PAGES << PAGE_SHIFT) + LARGE_PAGE

Draw = Callable[[Aim], list[Operation]]

_EVERY: dict[Draw, int] = {
    slots.create: 9,
    slots.alias: 1,
    slots.recreate: 2,
    slots.delete: 4,
    slots.move: 5,
    slots.change_flags: 5,
    slots.resize: 2,
    edges.edge: 4,
    edges.edge_id: 1,
    logs.mode: 1,
    logs.get: 7,
    logs.clear: 5,
    logs.clear_edge: 2,
    accesses.access: 28,
    accesses.border: 10,
    accesses.host_read: 2,
    accesses.host_write: 3,
    accesses.host_unmap: 1,
}

THEMES: dict[str, dict[Draw, int]] = {
    "everything": {},
    "logs": {slots.change_flags: 12, logs.mode: 4, logs.get: 20, logs.clear: 20, logs.clear_edge: 8},
    "moves": {slots.create: 14, slots.move: 25, slots.change_flags: 8},
    "aliases": {slots.alias: 12, accesses.host_write: 8, accesses.host_read: 6},
    "limits": {slots.create: 14, edges.edge: 40, edges.edge_id: 6, logs.clear_edge: 8},
    "lost pages": {accesses.host_unmap: 8, accesses.border: 30},
    "huge pages": {slots.huge: 8, slots.change_flags: 10, logs.get: 14, accesses.access: 60},
    "large slots": {slots.large: 14, edges.edge: 10},
}


def sequences(askable: Askable, seed: str, count: int) -> Iterator[Sequence]:
    """Give `count` sequences of a seed."""
    for index in range(count):
        yield sequence(askable, seed, index)


def sequence(askable: Askable, seed: str, index: int) -> Sequence:
    """Return the sequence of that number of a seed."""
    name = f"{seed}-{index}"
    rng = Random(name)
    theme = rng.choice(list(THEMES))
    drawing = _Drawing(askable, rng)
    weights = _EVERY | THEMES[theme]
    wanted = rng.randint(_SHORTEST, _LONGEST)
    for first in (logs.mode, *[slots.create] * rng.randint(0, 3)):
        drawing.add(first)
    while len(drawing.sequence["ops"]) < wanted:
        drawing.add(rng.choices(list(weights), list(weights.values()))[0])
    return {"id": name, "theme": theme} | drawing.sequence


class _Drawing:
    """One sequence being drawn."""

    def __init__(self, askable: Askable, rng: Random) -> None:
        self._askable = askable
        self._table = Table()
        self._aim = Aim(askable, rng, self._table)
        host = {name: pages << PAGE_SHIFT for name, pages in HOST_PAGES.items()}
        self.sequence: Sequence = {"host": host, "holes": {"hole": _HOLE_SIZE}, "ops": []}

    def add(self, draw: Draw) -> None:
        """Add what a draw gives and may be asked."""
        for operation in draw(self._aim):
            if self._askable.allows_next(operation, self.sequence, self._table.lost):
                self.sequence["ops"].append(operation)
                if _would_be_done(operation, self._table, self._askable):
                    self._table.take(operation)


def _would_be_done(op: Operation, table: Table, askable: Askable) -> bool:
    """Guess whether an operation that changes the table is carried out."""
    if op["op"] == "enable_cap":
        return op["arg"] in askable.log_modes
    if op["op"] != "set_user_memory_region":
        return True
    gpa, size, where = op["guest_phys_addr"], op["memory_size"], op["userspace_addr"]
    hva = where if isinstance(where, int) else where["offset"]
    if (gpa | size | hva) % PAGE_SIZE or op["flags"] & ~askable.flags or op["slot"] >= askable.slots:
        return False
    old = table.slots.get(op["slot"])
    if size == 0:
        return old is not None
    if old is not None and ((old.size, old.where) != (size, where) or (old.flags ^ op["flags"]) & READONLY):
        return False
    fits = size >> PAGE_SHIFT <= askable.affordable_pages and gpa + size <= 1 << askable.slot_bits
    return fits and not any(table.meeting(gpa, size, other_than=op["slot"]))
