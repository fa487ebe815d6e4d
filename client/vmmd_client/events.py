"""The daemon's events, as an iterator that goes on across lost connections: `async for event in vmmd.events()`.

Each iterator has a WebSocket of its own, also where calls go by HTTP, so a slow reader holds no answer back. When the
connection is lost it is made anew and continues behind the last event that was given. Where the daemon no longer has
what came next, the daemon says so with an event of its own: nothing is left out in silence, and nothing comes twice.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from . import calls
from .channel import Channel, Reply
from .errors import CallTimeout, ClientClosed, ConnectError, ConnectTimeout, Disconnected, ProtocolError
from .transport import Link
from .waiting import sleep

RECONNECT_TIMEOUT_S = 30.0
"""For how long a lost connection is tried anew, in seconds, before its error is raised."""

RECONNECT_DELAYS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""The waits between the tries, in seconds; the last one repeats."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in the daemon."""

    seq: int
    time: Any
    vm: str | None
    type: str
    data: Mapping[str, Any]


class Events:
    """An iterator over events; `Client.events` and `Vm.events` make one.

    It subscribes when its block is entered, so that nothing which a call inside the block causes can be missed; without
    a block, with the first event that is asked for. It is for one reader at a time.
    """

    def __init__(self, channel: Channel, vm: str | None = None, since: int | None = None) -> None:
        self._channel = channel
        self._vm = vm
        self._since = since
        self._link: Link | None = None
        self._came: list[Event] = []
        self._ended = False

    @property
    def since(self) -> int | None:
        """The number of the last event that was given: a later iterator may begin behind it."""
        return self._since

    async def receive(self, timeout_s: float | None = None) -> Event:
        """Give the next event.

        Args:
            timeout_s: how long to wait for it, in seconds; None: for as long as it takes.

        Raises:
            CallTimeout: none came in time; the iterator stands and may be asked again.
            ClientClosed: the iterator was closed.
            TransportError: the connection was lost, and not made anew within RECONNECT_TIMEOUT_S.
            ProtocolError: what came is no event.
            RpcError: the daemon refused the subscription.
        """
        if self._ended:
            raise ClientClosed("these events were closed; make a new iterator, since the last number if need be")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._came:
            try:
                link = self._link or await self._connect()
                left_s = None if deadline is None else max(deadline - time.monotonic(), 0)
                self._take(await link.receive(left_s))
            except Disconnected:
                await self._drop()
                await self._connect_anew()
        event = self._came.pop(0)
        self._since = event.seq
        return event

    async def aclose(self) -> None:
        """End the subscription; idempotent. The iteration ends."""
        self._ended = True
        await self._drop()

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._ended:
            raise StopAsyncIteration
        return await self.receive()

    async def _connect(self) -> Link:
        """Subscribe on a new link, behind the last event that was given."""
        self._came.clear()
        link = await self._channel.link()
        try:
            reply = Reply(calls.subscribe(self._vm, self._since))
            question = self._channel.dialogue.ask(reply.call)
            await link.send(question.body)
            deadline = time.monotonic() + self._channel.timeout_s
            # Events may come before the answer to the subscription that they come by.
            while _notification(message := await link.receive(max(deadline - time.monotonic(), 0))) is not None:
                self._take(message)
            reply.settle(question.outcomes(message)[0])
            result = reply.result()
            if self._since is None:
                self._since = result["seq"]
        except BaseException:
            await link.aclose()
            raise
        self._link = link
        return link

    async def _connect_anew(self) -> None:
        deadline = time.monotonic() + RECONNECT_TIMEOUT_S
        tries = 0
        while True:
            await sleep(RECONNECT_DELAYS_S[min(tries, len(RECONNECT_DELAYS_S) - 1)])
            tries += 1
            try:
                await self._connect()
            except (ConnectError, ConnectTimeout, Disconnected, CallTimeout):
                if time.monotonic() >= deadline:
                    raise
            else:
                return

    async def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()

    def _take(self, message: bytes) -> None:
        """Keep the event that a message is."""
        notification = _notification(message)
        if notification is None:
            raise ProtocolError(f"a message on a subscription is no notification; it begins with {message[:60]!r}")
        if notification["method"] == "event":
            self._came.append(_event(notification.get("params")))


def _notification(message: bytes) -> dict[str, Any] | None:
    """Read a notification; None where the message is an answer, or none of JSON-RPC's."""
    try:
        read = json.loads(message)
    except ValueError:
        return None
    return read if isinstance(read, dict) and isinstance(read.get("method"), str) else None


def _event(params: Any) -> Event:
    """Make the event of a notification's parameters.

    Raises:
        ProtocolError: they are none.
    """
    try:
        rest = {name: value for name, value in params.items() if name not in {"seq", "time", "vm", "type"}}
        return Event(params["seq"], params["time"], params["vm"], params["type"], rest)
    except (AttributeError, KeyError):
        raise ProtocolError(f"an event has another shape: {str(params)[:200]}") from None
