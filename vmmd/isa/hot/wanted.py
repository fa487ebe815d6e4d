"""What is hot and waits to be translated, the hottest first.

Workers count the jump targets that their vCPUs met, and put what was met often in line, with the code around it; the
translator's thread takes from it. What waits is counted on, so whatever guests come to most often is next.

Nothing here knows what a region is. The line is short and holds copies of guest code, never a view.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

_AGAIN = 64
"""How many times that it takes for an address that was asked for before: its bytes may have changed."""

_MOST_COUNTED = 1 << 14
_MOST_WAITING = 256
"""Wishes in line; each holds 16 KiB of guest code."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A region that is asked for.

    Attributes:
        pc: where it is to begin.
        code_at: where `code` lies in guest-physical memory.
        code: the bytes around it.
        is_exit: whether regions are left for it; else it is of use only where no region has it inside.
    """

    pc: int
    code_at: int
    code: bytes
    is_exit: bool


class Wanted:
    """Counts of jump targets, and wishes in line.

    Args:
        hot: how many samples of an address it is asked for at.
    """

    def __init__(self, hot: int) -> None:
        self._hot = hot
        self._changed = threading.Condition()
        self._heat: Counter[int] = Counter()
        self._waiting: dict[int, Wish] = {}
        self._met: dict[int, int] = {}
        self._is_closed = False

    def count(self, samples: Counter[int]) -> list[int]:
        """Count samples; return those of addresses that have become hot and are not in line."""
        hot = []
        with self._changed:
            if len(self._heat) > _MOST_COUNTED:
                self._heat.clear()
            for sample, times in samples.items():
                pc = sample & ~3
                if pc in self._waiting:
                    self._met[pc] += times
                    continue
                self._heat[pc] += times
                if self._heat[pc] >= self._hot and len(self._waiting) < _MOST_WAITING:
                    # The next time that it is asked for, something has changed or nothing helps.
                    self._heat[pc] = -_AGAIN * self._hot
                    hot.append(sample)
        return hot

    def put(self, wish: Wish) -> None:
        """Put a wish in line; one for the same address that waits already is replaced."""
        with self._changed:
            self._waiting[wish.pc] = wish
            self._met.setdefault(wish.pc, self._hot)
            self._changed.notify()

    def take(self) -> Wish | None:
        """Wait for a wish, and take the one that was met most often out of the line; None once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return None
            pc = max(self._met, key=self._met.__getitem__)
            del self._met[pc]
            return self._waiting.pop(pc)

    def close(self) -> None:
        """Have nothing taken any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
