"""The library's own waits, for a thread: the twin of `vmmd_client.wire.waiting`."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ...errors import NestedTurn, TurnTimeout, VmmdError


class Turn:
    """What makes others wait: one holder at a time, first come first served, and nobody waits for himself."""

    def __init__(self) -> None:
        # The head of the line has the turn; a lock of the standard library alone serves whoever comes first.
        self._line: deque[object] = deque()
        self._holder: int | None = None
        self._moved = threading.Condition()

    def refuse_nesting(self, what: str) -> None:
        """Refuse what could only wait for itself.

        Raises:
            NestedTurn: this thread has the turn already.
        """
        if self._holder == threading.get_ident():
            raise NestedTurn(what)

    def take(self, what: str, wait_s: float) -> None:
        """Wait for the turn, which lasts until `give_back`.

        Args:
            what: what it is about, for people.
            wait_s: for how long, in seconds.

        Raises:
            NestedTurn: this thread has it already.
            TurnTimeout: it did not come.
        """
        self.refuse_nesting(what)
        ticket = object()
        with self._moved:
            self._line.append(ticket)
            try:
                if not self._moved.wait_for(lambda: self._line[0] is ticket, wait_s):
                    raise TurnTimeout(what, wait_s)
            except BaseException:
                self._line.remove(ticket)
                self._moved.notify_all()
                raise
            self._holder = threading.get_ident()

    def give_back(self) -> None:
        """Let the next one have it."""
        with self._moved:
            self._holder = None
            self._line.popleft()
            self._moved.notify_all()


def sleep(seconds: float) -> None:
    """Wait for so many seconds."""
    time.sleep(seconds)


def try_to_its_end(attempt: Callable[[], Any]) -> None:
    """Make an attempt; what it gives or raises is told to nobody."""
    with contextlib.suppress(VmmdError):
        attempt()
