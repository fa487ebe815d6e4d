"""Half-open ranges, apart from one another: what an update's calls have covered so far.

`Ranges` is a set of addresses; neighbours are kept as one, so that what is put in over and over costs no more than
once. `RangeMap` has a value for each range, and keeps neighbours apart. Looking a range up takes the logarithm of how
many there are; nothing here holds a memory map or knows calls.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import itemgetter
from typing import Generic, TypeVar

_V = TypeVar("_V")


class Ranges:
    """Ranges in ascending order, none overlapping or touching another.

    They are kept as one list of their borders, begin and end in turn: the number of borders up to an address tells
    whether a range covers it, by being odd.
    """

    __slots__ = ("_borders",)

    def __init__(self) -> None:
        self._borders: list[int] = []

    def __len__(self) -> int:
        """Tell how many ranges there are."""
        return len(self._borders) // 2

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Give begin and end of each."""
        return zip(self._borders[::2], self._borders[1::2], strict=True)

    def copy(self) -> "Ranges":
        """Give the same ranges once more."""
        copied = Ranges()
        copied._borders = self._borders.copy()
        return copied

    def overlaps(self, low: int, high: int) -> bool:
        """Tell whether any range has an address in [low, high)."""
        borders = self._borders
        at = bisect_right(borders, low)
        return at % 2 == 1 or (at < len(borders) and borders[at] < high)

    def gaps(self, low: int, high: int) -> list[tuple[int, int]]:
        """Give the parts of [low, high) that no range covers."""
        first, last = bisect_right(self._borders, low), bisect_left(self._borders, high)
        if first == last:
            return [] if first % 2 else [(low, high)]
        edges = self._borders[first:last]
        if first % 2 == 0:
            edges.insert(0, low)
        if last % 2 == 0:
            edges.append(high)
        return list(zip(edges[::2], edges[1::2], strict=True))

    def uncovered(self, low: int, high: int) -> int:
        """Tell how many addresses in [low, high) no range covers."""
        first, last = bisect_right(self._borders, low), bisect_left(self._borders, high)
        if first == last:
            return 0 if first % 2 else high - low
        return sum(end - begin for begin, end in self.gaps(low, high))

    def put(self, low: int, high: int) -> None:
        """Cover [low, high)."""
        # A border that is met exactly is taken along, so that ranges which only touch become one.
        first, last = bisect_left(self._borders, low), bisect_right(self._borders, high)
        edges = [] if first % 2 else [low]
        if last % 2 == 0:
            edges.append(high)
        self._borders[first:last] = edges


_BEGIN, _END = itemgetter(0), itemgetter(1)


class RangeMap(Generic[_V]):
    """Ranges with a value each, in ascending order, none overlapping another."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, _V]] = []

    def __len__(self) -> int:
        """Tell how many ranges there are."""
        return len(self._ranges)

    def __iter__(self) -> Iterator[tuple[int, int, _V]]:
        """Give begin, end and value of each."""
        return iter(self._ranges)

    def put(self, low: int, high: int, value: _V) -> list[tuple[int, int]]:
        """Give the parts of [low, high) that no range covers this value, and name them; what is covered stays."""
        first, last = self._overlapping(low, high)
        if first == last:
            self._ranges.insert(first, (low, high, value))
            return [(low, high)]
        there = self._ranges[first:last]
        gaps = []
        for begin, end, _ in there:
            if low < begin:
                gaps.append((low, begin))
            low = end
        if low < high:
            gaps.append((low, high))
        self._ranges[first:last] = sorted([*there, *((begin, end, value) for begin, end in gaps)], key=_BEGIN)
        return gaps

    def take(self, low: int, high: int) -> list[tuple[int, int, _V]]:
        """Take what lies in [low, high) out, and give it."""
        first, last = self._overlapping(low, high)
        taken = self._ranges[first:last]
        if taken:
            left = []
            begin, end, value = taken[0]
            if begin < low:
                left.append((begin, low, value))
                taken[0] = (low, end, value)
            begin, end, value = taken[-1]
            if high < end:
                left.append((high, end, value))
                taken[-1] = (begin, high, value)
            self._ranges[first:last] = left
        return taken

    def _overlapping(self, low: int, high: int) -> tuple[int, int]:
        """Give the index of the first range that overlaps [low, high), and of the first one behind it that does not."""
        return bisect_right(self._ranges, low, key=_END), bisect_left(self._ranges, high, key=_BEGIN)


def without(one: tuple[int, int], other: tuple[int, int]) -> list[tuple[int, int]]:
    """Give what of the first range is not in the second: none, one or two parts."""
    parts = ((one[0], min(one[1], other[0])), (max(one[0], other[1]), one[1]))
    return [part for part in parts if part[0] < part[1]]
