"""Faults at exact places of a coroutine: what is thrown into it where it waits for the n-th time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class Fault(Exception):  # noqa: N818  (it is what is injected)
    """Something that nobody expects."""


FAULTS: dict[str, type[BaseException]] = {"exception": Fault, "cancellation": asyncio.CancelledError}


class Faulty:
    """An awaitable that runs a coroutine, and throws into it at its n-th wait, counted from 0.

    Attributes:
        was_reached: whether the coroutine waited that often.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], position: int, fault: type[BaseException]) -> None:
        self.was_reached = False
        self._coroutine = coroutine
        self._position = position
        self._fault = fault

    def __await__(self) -> Generator[Any, Any, Any]:
        waits = 0
        resume = lambda: self._coroutine.send(None)  # noqa: E731
        while True:
            try:
                waiting = resume()
            except StopIteration as done:
                return done.value
            if waits == self._position:
                self.was_reached = True
                if asyncio.isfuture(waiting):
                    waiting.cancel()
                resume = lambda: self._coroutine.throw(self._fault("injected"))  # noqa: E731
            else:
                yield waiting
                resume = lambda: self._coroutine.send(None)  # noqa: E731
            waits += 1
