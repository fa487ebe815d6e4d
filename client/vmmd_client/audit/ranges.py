"""Half-open ranges, apart from one another: what an update's calls have covered so far.

`Ranges` is a set of addresses; neighbours are kept as one, so that what is put in over and over costs no more than
once. `RangeMap` has a value for each range, and keeps neighbours of equal value as one. Looking a range up takes the
logarithm of how many there are; nothing here holds a memory map or knows calls.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

_V = TypeVar("_V")


class Ranges:
    """Ranges in ascending order, none overlapping or touching another."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        """Tell how many ranges there are."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Give begin and end of each."""
        return zip(self._starts, self._ends, strict=True)

    def overlaps(self, low: int, high: int) -> bool:
        """Tell whether any range has an address in [low, high)."""
        at = bisect_right(self._ends, low)
        return at < len(self._starts) and self._starts[at] < high

    def gaps(self, low: int, high: int) -> list[tuple[int, int]]:
        """Give the parts of [low, high) that no range covers."""
        found = []
        at = bisect_right(self._ends, low)
        while at < len(self._starts) and self._starts[at] < high:
            if low < self._starts[at]:
                found.append((low, self._starts[at]))
            low = self._ends[at]
            at += 1
        if low < high:
            found.append((low, high))
        return found

    def put(self, low: int, high: int) -> None:
        """Cover [low, high)."""
        # Ranges that only touch this one are taken along and become one with it.
        first, last = bisect_left(self._ends, low), bisect_right(self._starts, high)
        if first < last:
            low, high = min(low, self._starts[first]), max(high, self._ends[last - 1])
        self._starts[first:last] = (low,)
        self._ends[first:last] = (high,)


class RangeMap(Generic[_V]):
    """Ranges with a value each, in ascending order, none overlapping another."""

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

    def put(self, low: int, high: int, value: _V) -> list[tuple[int, int]]:
        """Give the parts of [low, high) that no range covers this value, and name them; what is covered stays."""
        first, last = bisect_left(self._ends, low), bisect_right(self._starts, high)
        if first == last:
            self._starts.insert(first, low)
            self._ends.insert(first, high)
            self._values.insert(first, value)
            return [(low, high)]
        gaps, parts = [], []
        for at in range(first, last):
            begin, end = self._starts[at], self._ends[at]
            if low < begin:
                gaps.append((low, begin))
                parts.append((low, begin, value))
            parts.append((begin, end, self._values[at]))
            low = end
        if low < high:
            gaps.append((low, high))
            parts.append((low, high, value))
        self._splice(first, last, parts)
        return gaps

    def take(self, low: int, high: int) -> list[tuple[int, int, _V]]:
        """Take what lies in [low, high) out, and give it."""
        first, last = bisect_right(self._ends, low), bisect_left(self._starts, high)
        taken, left = [], []
        for at in range(first, last):
            begin, end, value = self._starts[at], self._ends[at], self._values[at]
            taken.append((max(begin, low), min(end, high), value))
            if begin < low:
                left.append((begin, low, value))
            if high < end:
                left.append((high, end, value))
        if left:
            self._splice(first, last, left)
        else:
            del self._starts[first:last], self._ends[first:last], self._values[first:last]
        return taken

    def _splice(self, first: int, last: int, parts: list[tuple[int, int, _V]]) -> None:
        """Put parts, in ascending order, in the place of some ranges, and make neighbours of equal value one."""
        joined = parts[:1]
        for begin, end, value in parts[1:]:
            before = joined[-1]
            if before[1] == begin and before[2] == value:
                joined[-1] = (before[0], end, value)
            else:
                joined.append((begin, end, value))
        self._starts[first:last] = [part[0] for part in joined]
        self._ends[first:last] = [part[1] for part in joined]
        self._values[first:last] = [part[2] for part in joined]


def without(one: tuple[int, int], other: tuple[int, int]) -> list[tuple[int, int]]:
    """Give what of the first range is not in the second: none, one or two parts."""
    parts = ((one[0], min(one[1], other[0])), (max(one[0], other[1]), one[1]))
    return [part for part in parts if part[0] < part[1]]
