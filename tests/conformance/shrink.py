"""Makes a sequence that shows a difference as short and as plain as it can: first fewer operations, then plainer ones.

Delta debugging: halves of the operations are left out, then quarters, down to single ones. Then addresses move down
together, and each field takes plainer values: first in all operations that have the same value there, so that what
belongs together stays so, and then in each by itself. What still shows a difference is kept. It ends when nothing more
can be left out or made plainer, or when it has tried often enough.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from tests.conformance.recording import Operation, Sequence
from vmmd.memory.limits import PAGE_SIZE

Check = Callable[[Sequence], Awaitable[bool]]
"""Tells whether a sequence may be asked and shows a difference."""

MOST_TRIES = 2_000

_ADDRESSES = ("guest_phys_addr", "gpa")
_OF_PAGES = {"guest_phys_addr", "memory_size", "length"}


class Shrinker:
    """Shrinks one sequence; `shows` is asked about each that might be next."""

    def __init__(self, shows: Check, most_tries: int = MOST_TRIES) -> None:
        self._shows = shows
        self._left = most_tries

    async def shrink(self, sequence: Sequence) -> Sequence:
        """Return the shortest and plainest sequence found that shows a difference, as `sequence` does."""
        best = sequence
        while True:
            smaller = await self._plainer(await self._fewer(best))
            if smaller == best or not self._left:
                return smaller
            best = smaller

    async def _holds(self, sequence: Sequence) -> bool:
        if not self._left:
            return False
        self._left -= 1
        return await self._shows(sequence)

    async def _fewer(self, best: Sequence) -> Sequence:
        step = len(best["ops"])
        while step:
            start = 0
            while start < len(best["ops"]):
                shorter = best | {"ops": best["ops"][:start] + best["ops"][start + step :]}
                if await self._holds(shorter):
                    best = shorter
                else:
                    start += step
            step //= 2
        return best

    async def _plainer(self, best: Sequence) -> Sequence:
        moved = best | {"ops": _moved_down(best["ops"])}
        if moved != best and await self._holds(moved):
            best = moved
        for field in sorted({field for op in best["ops"] for field in op}):
            for together in (True, False):
                for index in range(len(best["ops"])):
                    best = await self._plainer_field(best, index, field, together=together)
        return best

    async def _plainer_field(self, best: Sequence, index: int, field: str, *, together: bool) -> Sequence:
        """Make a field of one operation plainer as far as it goes, and with it those that have the same value."""
        while True:
            old = best["ops"][index].get(field)
            for value in _plainer_values(field, old):
                ops = [
                    op | {field: value} if at == index or (together and op.get(field) == old) else op
                    for at, op in enumerate(best["ops"])
                ]
                if await self._holds(best | {"ops": ops}):
                    best = best | {"ops": ops}
                    break
            else:
                return best


def _moved_down(ops: list[Operation]) -> list[Operation]:
    """Return the operations with all guest-physical addresses moved down by the same whole pages."""
    addresses = [op[field] for op in ops for field in _ADDRESSES if field in op]
    by = min(addresses, default=0) // PAGE_SIZE * PAGE_SIZE
    return [op | {field: op[field] - by for field in _ADDRESSES if field in op} for op in ops]


def _plainer_values(field: str, value: Any) -> Iterator[Any]:
    """Give values of a field that are plainer than the one it has, the plainest first."""
    if field == "userspace_addr" and isinstance(value, dict):
        yield from ({**value, "offset": offset} for offset in _plainer_numbers(value["offset"], is_of_pages=True))
    elif field in {"bitmap", "data"} and value:
        zeroes, ones = "00" * (len(value) // 2), "ff" * (len(value) // 2)
        yield from {zeroes: (), ones: (zeroes,)}.get(value, (zeroes, ones))
    elif isinstance(value, int):
        yield from _plainer_numbers(value, is_of_pages=field in _OF_PAGES)


def _plainer_numbers(value: int, *, is_of_pages: bool) -> Iterator[int]:
    """Give smaller numbers: small ones, the half, and those with one bit less; of whole pages where the number is."""
    unit = PAGE_SIZE if is_of_pages and value % PAGE_SIZE == 0 else 1
    fewer_bits = [value & ~(1 << bit) for bit in range(value.bit_length()) if value >> bit & 1]
    plainer = {0, 1, unit, value // 2 // unit * unit, *fewer_bits}
    yield from sorted(number for number in plainer if number < value)
