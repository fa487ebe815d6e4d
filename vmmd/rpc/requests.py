"""Requests by their names: a repeat gets the first success again, and does nothing twice.

A name, `request_id`, is of the whole daemon and not of a VM, so that one used twice by mistake is found. A repeat is
the same method with the same parameters, however they are written; anything else by that name is EINVAL. A repeat that
comes while the first is under way waits for it. Failures are not remembered, since nothing has changed: the repeat is a
try of its own. Nor is what was undone: where the hold that a call was inside was rolled back, the repeat is a call of
its own, and meets the hold's end.

What is kept is bounded, in number, bytes and time; the oldest goes first.
"""

import asyncio
import errno
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vmmd.api.methods import Method
from vmmd.api.types import RequestOptions
from vmmd.kvm.errors import KvmError


@dataclass(frozen=True)
class RequestLimits:
    """What is remembered. The names are the configuration's."""

    request_ids: int
    request_id_bytes: int
    request_id_ms: int


class _Named:
    """A request that has a name, and what it has come to.

    How its parameters are compared with a repeat's is worked out behind the pause of a hold, or when a repeat comes.
    """

    __slots__ = ("_asked", "_what", "over", "result", "stands", "until_ns")

    def __init__(self, method: Method, params: RequestOptions, stands: Callable[[], bool]) -> None:
        self.result = b""
        self.until_ns = 0
        self.stands = stands
        self.over: asyncio.Future[None] | None = None
        self._asked: tuple[Method, RequestOptions] | None = (method, params)
        self._what = b""

    def what(self) -> bytes:
        """Give what was asked, in few bytes; the parameters are kept no longer."""
        if self._asked is not None:
            method, params = self._asked
            # How long the caller waits is no part of what is done.
            text = params.model_dump_json(exclude={"request_id", "deadline_ms"})
            self._what = hashlib.sha256(f"{method.name} {text}".encode()).digest()
            self._asked = None
        return self._what


class Requests:
    """The named requests of one daemon.

    Args:
        limits: What is remembered.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._done: OrderedDict[str, _Named] = OrderedDict()
        self._bytes = 0
        self._under_way: dict[str, _Named] = {}
        self._new: list[_Named] = []

    async def once(
        self,
        method: Method,
        params: RequestOptions,
        stands: Callable[[], bool],
        carry_out: Callable[[], Awaitable[bytes]],
    ) -> bytes:
        """Carry a named request out, or give what it came to.

        Args:
            method: The method.
            params: Its parameters, the name among them.
            stands: Tells whether a success was not undone since.
            carry_out: Does it.

        Raises:
            KvmError: EINVAL where the name is another request's; or as `carry_out`.
        """
        name, asked = params.request_id or "", _Named(method, params, stands)
        while True:
            done = self._remembered(name)
            if done is not None:
                _check_same(name, done, asked)
                return done.result
            first = self._under_way.get(name)
            if first is None:
                break
            _check_same(name, first, asked)
            if first.over is None:
                first.over = asyncio.get_running_loop().create_future()
            await asyncio.wait([first.over])
        self._under_way[name] = asked
        try:
            asked.result = await carry_out()
            self._remember(name, asked)
            return asked.result
        finally:
            del self._under_way[name]
            if asked.over is not None:
                asked.over.set_result(None)

    def _forget_old(self) -> None:
        now_ns = time.monotonic_ns()
        while self._done:
            oldest = next(iter(self._done))
            if self._done[oldest].until_ns >= now_ns:
                return
            self._forget(oldest)

    def _remembered(self, name: str) -> _Named | None:
        done = self._done.get(name)
        if done is not None and (done.until_ns < time.monotonic_ns() or not done.stands()):
            self._forget(name)
            return None
        return done

    def _remember(self, name: str, done: _Named) -> None:
        done.until_ns = time.monotonic_ns() + self._limits.request_id_ms * 1_000_000
        if not self._new:
            asyncio.get_running_loop().call_soon(self._settle)
        self._new.append(done)
        self._done[name] = done
        self._bytes += len(done.result)
        while len(self._done) > self._limits.request_ids or self._bytes > self._limits.request_id_bytes:
            self._forget(next(iter(self._done)))

    def _settle(self) -> None:
        """Do what need not be done in the pause of a hold, for all calls of a batch at once."""
        new, self._new = self._new, []
        for done in new:
            done.what()
        self._forget_old()

    def _forget(self, name: str) -> None:
        self._bytes -= len(self._done.pop(name).result)


def _check_same(name: str, first: _Named, repeat: _Named) -> None:
    if first.what() != repeat.what():
        raise KvmError(
            errno.EINVAL,
            f"request_id {name!r} was given to another call, or to this method with other parameters; "
            "every call needs a name of its own",
        )
