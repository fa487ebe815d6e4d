"""Both twins behind one asynchronous door, so that one test speaks for either; the synchronous one is in threads."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import vmmd_client
from vmmd_client import sync

TWINS = ("async", "sync")


class Driven:
    """A client, VM, vCPU, batch, hold, transaction or iterator; its methods are awaited, whatever it is."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def do(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method by its dotted name, and give a `Driven` for an object of the library."""
        found = self.inner
        for name in method.split("."):
            found = getattr(found, name)
        return _driven(await _call(found, *args, **kwargs))

    async def __aenter__(self) -> "Driven":
        if hasattr(self.inner, "__aenter__"):
            return Driven(await self.inner.__aenter__())
        return Driven(await asyncio.to_thread(self.inner.__enter__))

    async def __aexit__(self, *error: Any) -> Any:
        if hasattr(self.inner, "__aexit__"):
            return await self.inner.__aexit__(*error)
        return await asyncio.to_thread(self.inner.__exit__, *error)


def connect(twin: str, url: str, **kwargs: Any) -> Driven:
    return Driven((vmmd_client if twin == "async" else sync).connect(url, **kwargs))


async def _call(found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if inspect.iscoroutinefunction(found):
        return await found(*args, **kwargs)
    return await asyncio.to_thread(found, *args, **kwargs)


def _driven(value: Any) -> Any:
    return Driven(value) if type(value).__module__.startswith("vmmd_client") else value
