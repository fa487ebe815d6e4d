"""Who was somewhere, and when: inside KVM_RUN or in guest mode, by the order of events and not by their times.

Recorders print one line after another, and two of them can bear one time; the number of an event is what tells which
came first. A log keeps what a window that is still open may ask for, and forgets the rest.
"""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .events import Run

FOR_EVER = 1 << 62
"""The number of an event that has not come yet."""

_FEW = 64


@dataclass(slots=True, eq=False)
class Stay:
    """One time that a thread was there.

    Attributes:
        thread: the thread's id.
        begun: the number of the event with which it began.
        ended: the number of the event with which it ended; `FOR_EVER` while it has not.
        run: the KVM_RUN that it is, of a stay inside KVM_RUN.
    """

    thread: int
    begun: int
    ended: int = FOR_EVER
    run: Run | None = None


class StayLog:
    """The stays of any number of threads; each thread is in one place at a time.

    Args:
        needed_since: tells the event from which on a window may still ask; `FOR_EVER` while none will.
    """

    def __init__(self, needed_since: Callable[[], int]) -> None:
        self._needed_since = needed_since
        self._of_thread: dict[int, list[Stay]] = {}
        self._full: dict[int, int] = {}

    def add(self, stay: Stay) -> None:
        """Add a stay that has just begun; now and then forget those of its thread for which nobody will ask."""
        stays = self._of_thread.get(stay.thread)
        if stays is None:
            stays = self._of_thread[stay.thread] = []
        if len(stays) >= self._full.get(stay.thread, _FEW):
            del stays[: bisect.bisect_right(stays, self._needed_since(), key=_ended)]
            self._full[stay.thread] = max(_FEW, 2 * len(stays))
        stays.append(stay)

    def between(self, begin: int, end: int) -> Iterator[Stay]:
        """Give the stays that had begun before the one event and had not ended by the other."""
        for stays in self._of_thread.values():
            first = bisect.bisect_right(stays, begin, key=_ended)
            yield from stays[first : bisect.bisect_left(stays, end, key=_begun)]


def _begun(stay: Stay) -> int:
    return stay.begun


def _ended(stay: Stay) -> int:
    return stay.ended
