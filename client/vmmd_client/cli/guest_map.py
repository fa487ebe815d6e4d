"""Guest-physical space as a drawing: slots as boxes, holes between them, in the order of their addresses.

A picture to scale would be all hole. So a box's height tells its size coarsely (a row more for every factor of 64), a
hole is one row that says how large it is, and a long run of touching slots with equal flags is one box.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from ..slots.memslots import MemFlag, Memslot
from .screen import size

MOST_BOXES = 40
"""More slots than this are drawn in runs."""

_WIDTH = 34
_ROWS_OF_64_PAGES = 6


@dataclass(frozen=True, slots=True)
class Box:
    """One box of the drawing: a slot, or a run of touching ones.

    Attributes:
        start: its first guest-physical address.
        end: the first address behind it.
        slots: the slots in it, by their addresses.
    """

    start: int
    end: int
    slots: tuple[Memslot, ...]

    @property
    def label(self) -> str:
        """What the box says about itself."""
        first, flags = self.slots[0], _marks(self.slots[0].flags)
        name = f"slot {first.slot}" if len(self.slots) == 1 else f"{len(self.slots):,} slots from {first.slot} on"
        return f"{name}  {size(self.end - self.start)}{flags}"

    @property
    def rows(self) -> int:
        """How many rows it is high: one, and one more for each factor of 64 beyond 64 pages."""
        pages = (self.end - self.start) >> 12
        return 1 + min(3, max(0, pages.bit_length() - _ROWS_OF_64_PAGES) // 6)


def draw(slots: Sequence[Memslot]) -> Text:
    """Draw the slots, in the order of their addresses; there is at least one."""
    return Text("\n".join(_lines(_boxes(slots))), no_wrap=True, overflow="ellipsis")


def _boxes(slots: Sequence[Memslot]) -> list[Box]:
    boxes: list[Box] = []
    for slot in slots:
        last = boxes[-1] if boxes else None
        alike = last is not None and last.end == slot.guest_phys_addr and last.slots[0].flags == slot.flags
        if last is not None and alike and len(slots) > MOST_BOXES:
            boxes[-1] = Box(last.start, slot.end, (*last.slots, slot))
        else:
            boxes.append(Box(slot.guest_phys_addr, slot.end, (slot,)))
    return boxes


def _lines(boxes: Sequence[Box]) -> Iterator[str]:
    yield from _hole(0, boxes[0].start)
    for number, box in enumerate(boxes):
        before = boxes[number - 1] if number else None
        touches = before is not None and before.end == box.start
        yield _edge(box.start, "├" if touches else "┌", "┤" if touches else "┐")
        for row in range(box.rows):
            text = box.label if row == 0 else ""
            yield f"{'':18}│ {text:<{_WIDTH - 2}} │"
        after = boxes[number + 1] if number + 1 < len(boxes) else None
        if after is None or after.start != box.end:
            yield _edge(box.end, "└", "┘")
            if after is not None:
                yield from _hole(box.end, after.start)


def _edge(address: int, left: str, right: str) -> str:
    return f"{address:#17x} {left}{'─' * _WIDTH}{right}"


def _hole(start: int, end: int) -> Iterator[str]:
    if start < end:
        yield f"{'':18}  hole, {size(end - start)}"


def _marks(flags: int) -> str:
    marks = [word for word, flag in (("log", MemFlag.LOG_DIRTY_PAGES), ("ro", MemFlag.READONLY)) if flags & flag]
    return f"  {' '.join(marks)}" if marks else ""
