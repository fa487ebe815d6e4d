"""The library's own waits, which are an event loop's here and a thread's in `sync.waiting`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

# The event loop alone does not keep a task alive: here are those that go on when whoever started them was cancelled.
_going_on: set[asyncio.Future[Any]] = set()


Lock = asyncio.Lock
"""What makes others wait: one holder at a time."""


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
