"""The daemon's events, as an iterator that goes on across lost connections: `async for event in vmmd.events()`.

Each iterator has a WebSocket of its own, also where calls go by HTTP, so a slow reader holds no answer back. When the
connection is lost it is made anew and continues behind the last event that was given. What the daemon has forgotten
meanwhile, or forgot because it was started anew, comes as one `GapEvent`: nothing is left out in silence, and nothing
comes twice. The events' models are those of `vmmd.api.events`; of a type that they do not have comes an `OtherEvent`.
A checker of types tells them apart by `isinstance`, and by `type`: behind `event.type == "hold.expired"` it is a
`HoldExpiredEvent`.
"""

import math
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import ValidationError

from vmmd.api.events import EVENT_ADAPTER, Event
from vmmd.api.types import Count, Result

from .errors import (
    CallTimeout,
    ClientClosed,
    ConnectError,
    ConnectTimeout,
    Disconnected,
    ProtocolError,
    UnusableArgument,
    VmmdError,
)
from .wire import calls
from .wire.channel import Channel, Reply
from .wire.protocol import notification
from .wire.transport import Link
from .wire.waiting import sleep

RECONNECT_TIMEOUT_S = 30.0
"""For how long a lost connection is tried anew, in seconds, before its error is raised."""

RECONNECT_DELAYS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""The waits between the tries, in seconds; the last one repeats."""


class OtherEvent(Result):
    """An event of a later daemon, of a type that this library does not know.

    Attributes:
        type: "other", which is no type of the wire, so that every other `type` is that of one class alone.
        wire_type: its type as the daemon names it.
        fields: what else it has, in JSON's types.
    """

    type: Literal["other"] = "other"
    seq: Count
    time: str
    vm: str | None = None
    wire_type: str
    fields: dict[str, Any]


AnyEvent = Event | OtherEvent
"""What an iterator gives."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place among a daemon's events.

    Attributes:
        seq: the number of the last event before it.
        epoch: which start of the daemon counted so; a later start counts from 1 again.
    """

    seq: int
    epoch: str | None = None


class Events:
    """An iterator over events; `Client.events` and `Vm.events` make one.

    It subscribes when its block is entered, so that nothing which a call inside the block causes can be missed; without
    a block, with the first event that is asked for. It is for one reader at a time.
    """

    def __init__(self, channel: Channel, vm: str | None = None, since: Place | None = None) -> None:
        if since is not None and not isinstance(since, Place):
            raise UnusableArgument("since", f"a Place is wanted, as Events.place gives it or Place(5), not {since!r}")
        self._channel = channel
        self._vm = vm
        self._place = since
        # Of the connection that stands: it becomes the place's epoch with the first event that is given from it, since
        # until then the place's number is the old epoch's.
        self._epoch: str | None = None
        self._link: Link | None = None
        self._came: deque[AnyEvent] = deque()
        self._begun = False
        self._ended = False
        self._is_read = False

    def __repr__(self) -> str:
        return f"Events(vm={self._vm!r}, place={self._place})"

    @property
    def place(self) -> Place | None:
        """Where the next event comes from: `since` of an iterator that is to go on here. None before it has begun."""
        return self._place

    async def receive(self, timeout_s: float | None = None) -> AnyEvent:
        """Give the next event.

        Args:
            timeout_s: how long to wait for it, in seconds; None: for as long as it takes. A connection that is being
                opened may take up to CONNECT_TIMEOUT_S longer.

        Raises:
            UnusableArgument: the time is no number.
            VmmdError: somebody else is receiving; nothing was taken from them.
            CallTimeout: none came in time; the iterator stands and may be asked again.
            ClientClosed: the iterator, or its client, was closed.
            TransportError: the connection was lost, and not made anew in time; the iterator may be asked again.
            ProtocolError: what came is no event.
            RpcError: the daemon refused the subscription.
        """
        self._refuse_if_ended()
        if not isinstance(timeout_s, int | float | None) or (timeout_s is not None and math.isnan(timeout_s)):
            raise UnusableArgument("timeout_s", f"a number of seconds is wanted, or None, and not {timeout_s!r}")
        if self._is_read:
            raise VmmdError("these events have a reader, who is receiving; give each reader an iterator of its own")
        self._is_read = True
        try:
            return await self._next(timeout_s)
        finally:
            self._is_read = False

    async def _next(self, timeout_s: float | None) -> AnyEvent:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._came:
            link = self._link or await self._subscribed(deadline)
            # What came behind the answer to the subscription is there already.
            if self._came:
                break
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0)
            try:
                self._take(await link.receive(left_s))
            except CallTimeout:
                raise CallTimeout(f"no event came within {timeout_s:g} s; the subscription stands") from None
            except Disconnected:
                await self._drop()
                # It may be our own doing: whoever closes need not be who waits.
                self._refuse_if_ended()
        event = self._came.popleft()
        self._place = Place(event.seq, self._epoch)
        return event

    async def aclose(self) -> None:
        """End the subscription; idempotent. The iteration ends."""
        self._ended = True
        await self._drop()

    async def __aenter__(self) -> Self:
        await self._subscribe()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyEvent:
        try:
            return await self.receive()
        except ClientClosed:
            if self._ended:
                raise StopAsyncIteration from None
            raise

    async def _subscribe(self) -> Link:
        """Subscribe on a new link, behind the last event that was given."""
        place = self._place or Place(0)
        begins = self._place is None
        link = await self._channel.link()
        try:
            reply = Reply(calls.subscribe(self._vm, None if begins else place.seq, place.epoch))
            question = self._channel.dialogue.ask(reply.call)
            await link.send(question.body)
            deadline = time.monotonic() + self._channel.timeout_s
            # Events may come before the answer to the subscription that they come by.
            while notification(message := await link.receive(max(deadline - time.monotonic(), 0))) is not None:
                self._take(message)
            reply.settle(question.outcomes(message)[0])
            standing = reply.result()
        except BaseException:
            self._came.clear()
            await link.aclose()
            raise
        self._epoch = standing.epoch
        self._begun = True
        if begins:
            self._place = Place(standing.seq, standing.epoch)
        self._link = link
        return link

    async def _subscribed(self, wanted_by: float | None) -> Link:
        """Subscribe; again for as long as it may take where it did before, and at most until an event is wanted by."""
        deadline = time.monotonic() + RECONNECT_TIMEOUT_S
        if wanted_by is not None:
            deadline = min(deadline, wanted_by)
        tries = 0
        while True:
            try:
                return await self._subscribe()
            except ClientClosed:
                raise
            except (ConnectError, ConnectTimeout, Disconnected, CallTimeout):
                left_s = deadline - time.monotonic()
                if not self._begun or left_s <= 0:
                    raise
            await sleep(min(RECONNECT_DELAYS_S[min(tries, len(RECONNECT_DELAYS_S) - 1)], left_s))
            tries += 1

    def _refuse_if_ended(self) -> None:
        if self._ended:
            raise ClientClosed("these events were closed; another iterator goes on with since=events.place")

    async def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()

    def _take(self, message: bytes) -> None:
        """Keep the event that a message is."""
        told = notification(message)
        if told is None:
            raise ProtocolError(f"a message on a subscription is no notification; it begins with {message[:60]!r}")
        if told["method"] == "event":
            try:
                self._came.append(read_event(told.get("params")))
            except ValidationError as error:
                problems = error.errors(include_url=False)[:3]
                doubt = "is the daemon of another version?"
                raise ProtocolError(f"an event has another shape ({doubt}): {problems}") from None


def read_event(params: Any) -> AnyEvent:
    """Make the event of a notification's parameters.

    Raises:
        ValidationError: they are none.
    """
    try:
        return EVENT_ADAPTER.validate_python(params)
    except ValidationError as error:
        if {problem["type"] for problem in error.errors()} != {"union_tag_invalid"}:
            raise
    named = {name: params[name] for name in ("seq", "time", "vm") if name in params}
    rest = {name: value for name, value in params.items() if name not in {*named, "type"}}
    return OtherEvent.model_validate({**named, "wire_type": params["type"], "fields": rest})
