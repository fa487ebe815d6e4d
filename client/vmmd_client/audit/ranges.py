"""Half-open ranges with a value each, apart from one another: what an update's calls have covered so far.

Neighbours of equal value are kept as one, so that what is put in over and over costs no more than once. Looking a
range up takes the logarithm of how many there are; it holds no memory map and knows no calls.
"""

import bisect
from collections.abc import Iterator
from typing import Generic, TypeVar

_V = TypeVar("_V")


class RangeMap(Generic[_V]):
    """Ranges in ascending order, none overlapping another."""

    __slots__ = ("_ends", "_starts", "_values")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[_V] = []

    def __len__(self) -> int:
        """Tell how many ranges there are."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int, _V]]:
        """Give begin, end and value of each."""
        return zip(self._starts, self._ends, self._values, strict=True)

    def overlaps(self, low: int, high: int) -> bool:
        """Tell whether any range has an address in [low, high)."""
        at = bisect.bisect_right(self._ends, low)
        return at < len(self._starts) and self._starts[at] < high

    def gaps(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Give the parts of [low, high) that no range covers."""
        at = bisect.bisect_right(self._ends, low)
        while at < len(self._starts) and self._starts[at] < high:
            if low < self._starts[at]:
                yield low, self._starts[at]
            low = self._ends[at]
            at += 1
        if low < high:
            yield low, high

    def put(self, low: int, high: int, value: _V) -> None:
        """Give the parts of [low, high) that no range covers this value; what is covered stays as it is."""
        # Ranges that only touch this one are taken along, so that they can become one with it.
        first, last = bisect.bisect_left(self._ends, low), bisect.bisect_right(self._starts, high)
        there = list(zip(self._starts[first:last], self._ends[first:last], self._values[first:last], strict=True))
        there += [(begin, end, value) for begin, end in list(self.gaps(low, high))]
        self._splice(first, last, sorted(there, key=lambda part: part[0]))

    def take(self, low: int, high: int) -> list[tuple[int, int, _V]]:
        """Take what lies in [low, high) out, and give it."""
        first, last = bisect.bisect_right(self._ends, low), bisect.bisect_left(self._starts, high)
        taken, left = [], []
        for at in range(first, last):
            begin, end, value = self._starts[at], self._ends[at], self._values[at]
            taken.append((max(begin, low), min(end, high), value))
            if begin < low:
                left.append((begin, low, value))
            if high < end:
                left.append((high, end, value))
        if taken:
            self._splice(first, last, left)
        return taken

    def _splice(self, first: int, last: int, parts: list[tuple[int, int, _V]]) -> None:
        joined: list[tuple[int, int, _V]] = []
        for begin, end, value in parts:
            if joined and joined[-1][1] == begin and joined[-1][2] == value:
                joined[-1] = (joined[-1][0], end, value)
            else:
                joined.append((begin, end, value))
        self._starts[first:last] = [part[0] for part in joined]
        self._ends[first:last] = [part[1] for part in joined]
        self._values[first:last] = [part[2] for part in joined]


def without(one: tuple[int, int], other: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Give what of the first range is not in the second: none, one or two parts."""
    for low, high in ((one[0], min(one[1], other[0])), (max(one[0], other[1]), one[1])):
        if low < high:
            yield low, high
