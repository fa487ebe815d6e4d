"""A daemon in memory, for the tests of programs that use this library: no socket, no process, no time.

::

    daemon = MemoryDaemon()
    daemon.answer("kvm.create_vm", {"vm": "vm1"})
    daemon.answer("vm.map_host_memory", lambda params: {"userspace_addr": hex(0x7F00_0000_0000)})
    daemon.refuse("vm.start", errno.EBUSY, "the loops run already")
    daemon.inject(Fault.REPLY_LOST, method="kvm.create_vm")
    async with daemon.connect() as vmmd:       # or: with daemon.connect_sync() as vmmd
        await create_and_start(vmmd)           # what is to be tested
    assert [call.method for call in daemon.calls] == [...]

It answers what it was told to, and knows of the wire contract what every daemon does: JSON-RPC, batches, -32601 for a
method that it was told nothing of, a repeated `request_id`, and numbered events. It holds no VM: what KVM would allow
is for a real daemon to say (`local_daemon`).
"""

import asyncio
import enum
import json
import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from vmmd.api.codes import METHOD_NOT_FOUND
from vmmd.api.errors import errno_name

from . import sync
from .connection import Client
from .errors import CallTimeout, ConnectError, Disconnected, UnusableArgument
from .events import read_event
from .wire.protocol import KVM_API_VERSION
from .wire.retry import DEFAULT_ATTEMPTS
from .wire.transport import Link, MemoryTransport

_L = TypeVar("_L", bound="_Subscriber")

_TIME = "2026-01-02T03:04:05.678901Z"

Params = dict[str, Any]
"""The parameters of a call as they came over the wire: JSON's types, bytes as base64 text."""


class Fault(enum.Enum):
    """What may go wrong with a round trip, by where it goes wrong."""

    NOT_CONNECTED = "before sending: ConnectError, and the daemon does nothing"
    REQUEST_LOST = "behind sending: Disconnected, and the daemon does nothing"
    REPLY_LOST = "behind sending: Disconnected, and the daemon has done it"
    NO_REPLY = "behind sending: CallTimeout at once, and the daemon has done it"
    REPLY_TORN = "in the reply: half of it comes, a ProtocolError, and the daemon has done it"


class Refusal(Exception):  # noqa: N818  (it is what is answered, and no fault of the test)
    """Raised by an answer's function: the call is answered with this error."""

    def __init__(self, code: int, message: str, **data: Any) -> None:
        """Take the error object's parts.

        Args:
            code: an errno's number, or one of JSON-RPC's codes.
            message: the sentence.
            **data: the error's data; the errno's name is put in it.
        """
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = {"errno": errno_name(code), **data} if code > 0 else data


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A call that reached the daemon.

    Attributes:
        method: the method's name.
        params: the parameters as they came.
        round_trip: the number of the round trip that brought it, from 0; the calls of a batch share one.
        repeated: whether it was a repeat by `request_id`, which was given the first success and done no second time.
    """

    method: str
    params: Params
    round_trip: int
    repeated: bool


class MemoryDaemon:
    """A daemon that does as the test says. It is for one thread at a time.

    Attributes:
        calls: every call that reached it, in order.
        pending_faults: how many injected faults have not come about yet.
    """

    def __init__(self) -> None:
        self.calls: list[RecordedCall] = []
        self._answers: dict[str, Callable[[Params], Any]] = {}
        self._progress: dict[str, tuple[tuple[int, int], ...]] = {}
        self._faults: list[_Injected] = []
        self._round_trips = 0
        self._done: dict[str, Any] = {}
        self._events: list[Params] = []
        self._last_seq = 0
        self._epoch = 1
        self._links: list[_Subscriber] = []
        self.answer("kvm.get_api_version", KVM_API_VERSION)

    # What a test says.

    def answer(self, method: str, result: Any) -> None:
        """Answer a method from now on.

        Args:
            method: its name on the wire.
            result: the result in JSON's types (addresses "0x…", bytes as base64), or a function of the parameters that
                gives it, or raises `Refusal`.
        """
        self._answers[method] = result if callable(result) else lambda params: result

    def refuse(self, method: str, code: int, message: str, **data: Any) -> None:
        """Answer a method with an error from now on; see `Refusal`."""

        def refusing(params: Params) -> Any:
            raise Refusal(code, message, **data)

        self._answers[method] = refusing

    def tell_progress(self, method: str, *told: tuple[int, int]) -> None:
        """Tell how far a method is, (done, total) one after another, before each answer to who wants to be told."""
        self._progress[method] = told

    def inject(self, fault: Fault, *, method: str | None = None, skip: int = 0) -> None:
        """Have a round trip fail, once.

        Args:
            fault: how.
            method: only one that holds a call of this method; None: any.
            skip: how many of those to let through first.
        """
        self._faults.append(_Injected(fault, method, skip))

    @property
    def pending_faults(self) -> int:
        """How many injected faults have not come about yet."""
        return len(self._faults)

    def emit(self, event_type: str, vm: str | None = None, **fields: Any) -> int:
        """Make an event, and give its number.

        Args:
            event_type: its type on the wire, "hold.opened".
            vm: the id of the VM that it is of.
            **fields: what else an event of this type has (`vmmd.api.events`), in JSON's types.

        Raises:
            UnusableArgument: an event of this type has other fields. Of a type that the library does not know it may
                have any.
        """
        event = {"seq": self._last_seq + 1, "time": _TIME, "vm": vm, "type": event_type, **fields}
        try:
            read_event(event)
        except ValidationError as error:
            problem = error.errors()[0]
            wrong = problem["loc"][-1] if problem["loc"] else "event_type"
            raise UnusableArgument(str(wrong), f"{event_type} is no such event: {problem['msg']}") from None
        return self.emit_unchecked(event)

    def emit_unchecked(self, event: Params) -> int:
        """Make an event of any shape, as of a daemon of another version, and give its number, which it is given."""
        self._last_seq += 1
        event = {**event, "seq": self._last_seq}
        self._events.append(event)
        for link in self._links:
            link.offer(event)
        return self._last_seq

    def forget_events(self) -> None:
        """Keep none of the events so far: who subscribes behind an earlier one is given a gap."""
        self._events.clear()

    def drop_links(self) -> None:
        """End every subscription's connection, as a network that fails does."""
        links, self._links = self._links, []
        for link in links:
            link.came(None)

    def restart(self) -> None:
        """Be another start of the daemon: connections end, events count from 1 again, request ids are forgotten."""
        self._epoch += 1
        self._last_seq = 0
        self._events.clear()
        self._done.clear()
        self.drop_links()

    # Clients.

    def connect(self, *, attempts: int = DEFAULT_ATTEMPTS) -> Client:
        """Give a client of this daemon."""
        return Client(MemoryTransport(self._answer_async, self._link_async), attempts=attempts)

    def connect_sync(self, *, attempts: int = DEFAULT_ATTEMPTS) -> sync.Client:
        """Give a client of the synchronous twin."""
        return sync.Client(sync.MemoryTransport(self.exchange, self._link_sync), attempts=attempts)

    def exchange(self, body: bytes) -> bytes:
        """Answer a body.

        Raises:
            TransportError: a fault was injected.
        """
        asked = json.loads(body)
        entries = asked if isinstance(asked, list) else [asked]
        fault = self._next_fault({entry["method"] for entry in entries})
        if fault is Fault.NOT_CONNECTED:
            raise ConnectError("injected: nobody listens")
        if fault is Fault.REQUEST_LOST:
            raise Disconnected("injected: the connection ended, and the call was not executed")
        answers = [self._entry(entry) for entry in entries]
        self._round_trips += 1
        reply = json.dumps(answers if isinstance(asked, list) else answers[0]).encode()
        if fault is Fault.REPLY_LOST:
            raise Disconnected("injected: the connection ended, and the call was executed")
        if fault is Fault.NO_REPLY:
            raise CallTimeout("injected: no answer came, and the call was executed")
        return reply[: len(reply) // 2] if fault is Fault.REPLY_TORN else reply

    async def _answer_async(self, body: bytes) -> bytes:
        return self.exchange(body)

    def _next_fault(self, methods: set[str]) -> Fault | None:
        for index, injected in enumerate(self._faults):
            if injected.method is None or injected.method in methods:
                if injected.skip == 0:
                    return self._faults.pop(index).fault
                injected.skip -= 1
        return None

    def _entry(self, entry: Mapping[str, Any]) -> Params:
        method, params = entry["method"], dict(entry.get("params", {}))
        request_id = str(params.get("request_id", ""))
        repeated = request_id in self._done
        self.calls.append(RecordedCall(method, params, self._round_trips, repeated))
        head = {"jsonrpc": "2.0", "id": entry["id"]}
        if repeated:
            return {**head, "result": self._done[request_id]}
        try:
            if method not in self._answers:
                raise Refusal(METHOD_NOT_FOUND, f"there is no method {method}: the test gave no answer for it")
            result = self._answers[method](params)
        except Refusal as refusal:
            return {**head, "error": {"code": refusal.code, "message": refusal.message, "data": refusal.data}}
        if request_id:
            self._done[request_id] = result
        return {**head, "result": result}

    # Links.

    def told_of(self, asked: Mapping[str, Any]) -> list[bytes]:
        """Give the notifications that come before the answer to a call on a link."""
        told = self._progress.get(asked["method"], ())
        head = {"jsonrpc": "2.0", "method": "progress"}
        words = ({"id": asked["id"], "done": done, "total": total} for done, total in told)
        return [json.dumps({**head, "params": word}).encode() for word in words]

    def subscribed(self, asked: Mapping[str, Any]) -> tuple[Params, list[Params]]:
        """Take note of a subscription; give its result, and the events that come with it."""
        params = dict(asked["params"])
        self.calls.append(RecordedCall(asked["method"], params, self._round_trips, repeated=False))
        self._round_trips += 1
        oldest = self._events[0]["seq"] if self._events else self._last_seq + 1
        standing = {"seq": self._last_seq, "oldest": oldest, "epoch": str(self._epoch)}
        since = params.get("since", self._last_seq)
        missed: int | None = max(oldest - 1 - since, 0)
        if params.get("epoch", str(self._epoch)) != str(self._epoch):
            since, missed = 0, None
        gap = {"seq": oldest - 1, "time": _TIME, "vm": None, "type": "gap", "missed": missed}
        past = [event for event in self._events if event["seq"] > since]
        return standing, past if missed == 0 else [gap, *past]

    async def _link_async(self) -> Link:
        return self._connected(_Link(self))

    def _link_sync(self) -> sync.Link:
        return self._connected(_SyncLink(self))

    def _connected(self, link: "_L") -> "_L":
        if self._next_fault({"events.subscribe"}) is not None:
            raise ConnectError("injected: the WebSocket was not opened")
        self._links.append(link)
        return link


@dataclass(slots=True)
class _Injected:
    fault: Fault
    method: str | None
    skip: int


class _Subscriber:
    """The daemon's half of a link: it answers calls, and hands events on. None is the connection's end."""

    def __init__(self, daemon: MemoryDaemon) -> None:
        self._daemon = daemon
        self._vm: str | None = None
        self._subscribed = False

    def came(self, message: bytes | None) -> None:
        """Hand a message to whoever receives."""
        raise NotImplementedError

    def offer(self, event: Params) -> None:
        """Hand an event on where the subscription is for it."""
        if self._subscribed and (event["type"] == "gap" or self._vm in {None, event["vm"]}):
            self.came(json.dumps({"jsonrpc": "2.0", "method": "event", "params": event}).encode())

    def take(self, body: bytes) -> None:
        """Answer a call, behind what is told of it."""
        asked = json.loads(body)
        if asked["method"] == "events.subscribe":
            self._subscribe(asked)
            return
        answer = self._daemon.exchange(body)
        for message in (*self._daemon.told_of(asked), answer):
            self.came(message)

    def _subscribe(self, asked: Mapping[str, Any]) -> None:
        """Answer the subscription, and hand on what it asks for of the past."""
        standing, past = self._daemon.subscribed(asked)
        self._vm, self._subscribed = asked["params"].get("vm"), True
        self.came(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": standing}).encode())
        for event in past:
            self.offer(event)


class _Link(_Subscriber):
    """A link of the asynchronous client."""

    def __init__(self, daemon: MemoryDaemon) -> None:
        super().__init__(daemon)
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()

    def came(self, message: bytes | None) -> None:
        self._messages.put_nowait(message)

    async def send(self, body: bytes) -> None:
        self.take(body)

    async def receive(self, timeout_s: float | None) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                return _message(await self._messages.get())
        except TimeoutError:
            raise CallTimeout("no event came in its time") from None

    async def aclose(self) -> None:
        self.came(None)


class _SyncLink(_Subscriber):
    """A link of the synchronous client."""

    def __init__(self, daemon: MemoryDaemon) -> None:
        super().__init__(daemon)
        self._messages: queue.Queue[bytes | None] = queue.Queue()

    def came(self, message: bytes | None) -> None:
        self._messages.put_nowait(message)

    def send(self, body: bytes) -> None:
        self.take(body)

    def receive(self, timeout_s: float | None) -> bytes:
        try:
            return _message(self._messages.get(timeout=timeout_s))
        except queue.Empty:
            raise CallTimeout("no event came in its time") from None

    def close(self) -> None:
        self.came(None)


def _message(message: bytes | None) -> bytes:
    if message is None:
        raise Disconnected("the connection ended")
    return message
