"""The library's own waits, which are an event loop's here and a thread's in `sync.wire.waiting`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import NestedTurn, TurnTimeout

# The event loop alone does not keep a task alive: here are those that go on when whoever started them was cancelled.
_going_on: set[asyncio.Future[Any]] = set()


class Turn:
    """What makes others wait: one holder at a time, first come first served, and nobody waits for himself."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._holder: asyncio.Task[Any] | None = None

    def refuse_nesting(self, what: str) -> None:
        """Refuse what could only wait for itself.

        Raises:
            NestedTurn: this task has the turn already.
        """
        if self._holder is not None and self._holder is asyncio.current_task():
            raise NestedTurn(what)

    async def take(self, what: str, wait_s: float) -> None:
        """Wait for the turn, which lasts until `give_back`.

        Args:
            what: what it is about, for people.
            wait_s: for how long, in seconds.

        Raises:
            NestedTurn: this task has it already.
            TurnTimeout: it did not come.
        """
        self.refuse_nesting(what)
        try:
            async with asyncio.timeout(wait_s):
                await self._lock.acquire()
        except TimeoutError:
            raise TurnTimeout(what, wait_s) from None
        self._holder = asyncio.current_task()

    def give_back(self) -> None:
        """Let the next one have it."""
        self._holder = None
        self._lock.release()


async def sleep(seconds: float) -> None:
    """Wait for so many seconds."""
    await asyncio.sleep(seconds)


async def try_to_its_end(attempt: Callable[[], Awaitable[Any]]) -> None:
    """Wait for an attempt that goes on when the wait is cancelled; what it gives or raises is told to nobody."""
    going_on = asyncio.ensure_future(attempt())
    _going_on.add(going_on)
    going_on.add_done_callback(_forget)
    await asyncio.wait({going_on})


def _forget(ended: "asyncio.Future[Any]") -> None:
    _going_on.discard(ended)
    if not ended.cancelled():
        ended.exception()  # read, so that the event loop does not complain of it
