"""The daemon's events in their order: numbered, kept in a ring, and read by whoever has a place in it.

It is the core's observer. A reader is a number and nothing more, so a slow one costs no memory: what the ring has lost
meanwhile, the reader is told to have missed. What is kept are the core's own small values; a reader pays for the text.
"""

import asyncio
import secrets
import time
from typing import NamedTuple

from vmmd.kvm.observer import Event


class Entry(NamedTuple):
    """One event, with its number, its time since 1970 in nanoseconds, and its VM's id."""

    seq: int
    time_ns: int
    vm: str
    event: Event


class Journal:
    """The events of one daemon.

    Args:
        size: How many are kept.

    Attributes:
        last: The number of the last event; 0 before the first.
        epoch: What tells this journal's numbers from another's.
    """

    def __init__(self, size: int) -> None:
        self.last = 0
        self.epoch = secrets.token_hex(8)
        self._size = size
        self._ring: list[Entry] = []
        self._more: asyncio.Future[None] | None = None

    @property
    def oldest(self) -> int:
        """The number of the oldest event that is kept; of the first that will be, where there is none."""
        return max(self.last - self._size, 0) + 1

    def note(self, vm: str, event: Event) -> None:
        """Take an event down; see `Observer`."""
        self.last += 1
        entry = Entry(self.last, time.time_ns(), vm, event)
        if len(self._ring) < self._size:
            self._ring.append(entry)
        else:
            self._ring[(self.last - 1) % self._size] = entry
        if self._more is not None:
            self._more.set_result(None)
            self._more = None

    def read(self, after: int, most: int) -> tuple[int, list[Entry]]:
        """Give how many events behind number `after` are lost, and at most so many of those that come next."""
        first = max(after + 1, self.oldest)
        until = min(self.last, first + most - 1)
        return first - after - 1, [self._ring[(seq - 1) % self._size] for seq in range(first, until + 1)]

    async def until_behind(self, after: int) -> None:
        """Wait until there is an event behind number `after`."""
        while self.last <= after:
            if self._more is None:
                self._more = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._more])
