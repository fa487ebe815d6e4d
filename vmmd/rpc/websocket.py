"""The WebSocket half: text frames of JSON-RPC at /ws, both ways, for as long as the connection stands.

Each frame is a body as POST /rpc has them: one call, or a batch. Bodies are carried out side by side, so that a kick
that waits does not block the resume behind it, and are answered as they end. When the connection goes, for whatever
reason, its calls are interrupted, and the holds that it has opened are rolled back and released.

What it refuses closes the connection with a code and a reason: binary frames 1003, text that is not UTF-8 1007, frames
over limits.body_bytes 1009, and the daemon's own end 1001. A peer that does not answer pings is gone, and so is one
that does not read, and one whose frame takes so long to come that no answer can.
"""

import asyncio
import errno
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from vmmd.rpc.caller import Caller, Holder, Reader
from vmmd.rpc.dispatch import Answer, Dispatch, finished
from vmmd.rpc.errors import CallError
from vmmd.rpc.jsontext import encode
from vmmd.rpc.outbox import Outbox, until_read

SOCKET_CLOSED = "was rolled back when the WebSocket that kicked it closed"
"""What became of a hold whose connection went."""

# Calls that end others: they are let in however many are under way, since they make room.
_MAKE_ROOM = frozenset({"vm.resume_all_kicked_vcpus", "rpc.cancel", "vm.stop", "kvm.destroy_vm"})

# Bodies may be waiting for a slow reader beside those that are counted; behind so many nothing more is read.
_BODIES_PER_CALL = 2

# So many answers are given at once before others have their turn.
_ANSWERS_A_TURN = 16

# Whether peers are silent is looked at, for all of them together, so many times in `websocket_silence_ms`: a timer that
# each frame sets anew would cost a tenth of a short call.
_BEATS = 4

# A frame up to this size goes out at once where nothing waits before it.
_SMALL_FRAME_BYTES = 16 << 10

# How long a slow peer has, at the daemon's end, to take the events that it has not read.
_LAST_EVENTS_S = 1.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class WebSocketLimits:
    """What a connection may amount to. The names are the configuration's: errors name them so.

    `websocket_silence_ms`: a ping goes out when no frame has come for so long; half of it later the peer is gone. Both
    may come a quarter of it late.
    `unread_bytes`: answers that are made or wait to be read; a call that may add much waits for its room.
    `unread_ms`: a peer that takes nothing for so long, while something waits for it, is gone.
    """

    body_bytes: int
    calls_in_flight: int
    websocket_silence_ms: int
    unread_bytes: int = 64 << 20
    unread_ms: int = 30_000


class WebSockets:
    """All connections of one listener.

    Args:
        dispatch: What answers bodies.
        limits: What one connection may amount to.
    """

    def __init__(self, dispatch: Dispatch, limits: WebSocketLimits) -> None:
        self._dispatch = dispatch
        self._limits = limits
        self._connections: set[_Connection] = set()
        self._next_beat: asyncio.TimerHandle | None = None

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one connection, from its upgrade to its end."""
        socket = _Socket(self._limits)
        await socket.prepare(request)
        connection = _Connection(socket, request.transport, self._dispatch, self._limits)
        self._connections.add(connection)
        if self._next_beat is None:
            self._wait_for_beat()
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)
            await connection.leave()
        return socket

    async def close(self, _app: web.Application) -> None:
        """Close every connection: the daemon goes."""
        for connection in list(self._connections):
            await connection.go_away()

    def _wait_for_beat(self) -> None:
        beat_s = self._limits.websocket_silence_ms / 1000 / _BEATS
        self._next_beat = asyncio.get_running_loop().call_later(beat_s, self._beat)

    def _beat(self) -> None:
        self._next_beat = None
        for connection in self._connections:
            connection.beat()
        if self._connections:
            self._wait_for_beat()


class _Socket(web.WebSocketResponse):
    """aiohttp's end of the connection; it says which limit a frame was over."""

    def __init__(self, limits: WebSocketLimits) -> None:
        # Compression would let a small frame become a large one, and its state is not made for concurrent senders.
        # aiohttp's bound is the first size that is too large.
        super().__init__(
            max_msg_size=limits.body_bytes + 1,
            autoping=False,
            compress=False,
            timeout=1.0,
        )
        self._limits = limits

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Close, with a reason where aiohttp has none."""
        if code == WSCloseCode.MESSAGE_TOO_BIG:
            message = f"the frame has more than limits.body_bytes = {self._limits.body_bytes} bytes".encode()
        return await super().close(code=code, message=message, drain=drain)


class _Connection:
    """One connection: its bodies under way, its holds, its place in the events. It is the callers' `Connection`."""

    def __init__(
        self, socket: _Socket, transport: asyncio.Transport | None, dispatch: Dispatch, limits: WebSocketLimits
    ) -> None:
        self._socket = socket
        self._transport = transport
        self._dispatch = dispatch
        self._limits = limits
        self._bodies: dict[asyncio.Task[None], Caller] = {}
        self._frames = 0
        self._is_slowed_down = False
        self._is_silent = False
        self._silent_beats = 0
        self._pinging: asyncio.Task[None] | None = None
        self._outbox = Outbox(limits.unread_bytes)
        self._sending = asyncio.Lock()
        self._under_way = 0
        self._notifying: asyncio.Task[None] | None = None
        self._subscribed: Reader | None = None
        self._reader: Reader | None = None
        self._events: asyncio.Task[None] | None = None
        self._holds: dict[Holder, str] = {}

    async def serve(self) -> None:
        """Read until the peer closes, or sends what is refused."""
        async for message in self._socket:
            self._is_silent = False
            if message.type is not WSMsgType.TEXT:
                if not await self._takes(message):
                    return
                continue
            self._frames += 1
            # All frames have the request id of the upgrade: their number tells their log lines apart.
            structlog.contextvars.bind_contextvars(frame=self._frames)
            caller = Caller(connection=self, outbox=self._outbox)
            answer = self._dispatch(message.data.encode(), caller)
            if answer is None or (isinstance(answer, bytes) and self._is_read):
                await self._send_at_once(answer)
            else:
                await self._go_on(caller, answer)

    def beat(self) -> None:
        """Ping a peer of which nothing has come for so many beats, and lose one that says nothing to that."""
        self._silent_beats = self._silent_beats + 1 if self._is_silent else 0
        # While it is not read, it says nothing that could be heard.
        self._is_silent = not self._is_slowed_down
        if self._silent_beats == _BEATS:
            self._pinging = asyncio.create_task(self._ping())
        elif self._silent_beats > _BEATS * 3 // 2 and self._transport is not None:
            self._transport.abort()

    async def close(self, code: WSCloseCode, reason: str) -> None:
        """Close the connection with a code and a reason."""
        await self._socket.close(code=code, message=reason.encode())

    async def go_away(self) -> None:
        """Send the last events, where the peer takes them, and close: the daemon goes."""
        if self._events is not None and self._reader is not None:
            self._events.cancel()
            await asyncio.wait([self._events])
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_EVENTS_S):
                    await self._reader.finish(self._send_event)
        await self.close(WSCloseCode.GOING_AWAY, "the daemon goes")

    async def leave(self) -> None:
        """Interrupt all calls, roll back what they have left open, and wait until the last body is over."""
        bodies = list(self._bodies)
        for caller in list(self._bodies.values()):
            caller.leave()
        holds, self._holds = self._holds, {}
        # From here on nothing is a frame's.
        structlog.contextvars.unbind_contextvars("frame")
        _log.debug("websocket.closed", calls=len(bodies), holds=len(holds))
        for vm, hold in holds.items():
            vm.expire_hold(hold, SOCKET_CLOSED)
        if bodies:
            await asyncio.wait(bodies)
        for task in (self._notifying, self._events, self._pinging):
            if task is not None:
                task.cancel()

    # What callers ask for.

    def adopt(self, vm: Holder, hold: str) -> None:
        """See `Connection`."""
        # Others have ended meanwhile, and would keep their VMs' memory.
        self._holds = {other: name for other, name in self._holds.items() if other.has_hold(name)} | {vm: hold}

    def hold_of(self, vm: Holder) -> str | None:
        """See `Connection`."""
        hold = self._holds.get(vm)
        if hold is not None and not vm.has_hold(hold):
            # Somebody else has ended it, or its lease has.
            del self._holds[vm]
            return None
        return hold

    def check_may_begin(self, method: str) -> None:
        """See `Connection`."""
        if self._under_way >= self._limits.calls_in_flight and method not in _MAKE_ROOM:
            raise CallError(
                errno.EAGAIN,
                f"{self._under_way} calls of this WebSocket are under way, and limits.calls_in_flight = "
                f"{self._limits.calls_in_flight}; wait for an answer, or raise it",
                {"errno": "EAGAIN"},
            )

    def begin(self) -> None:
        """See `Connection`."""
        self._under_way += 1

    def end(self) -> None:
        """See `Connection`."""
        self._under_way -= 1

    def cancel(self, call_id: bytes) -> bool:
        """See `Connection`."""
        found = [caller for caller in self._bodies.values() if caller.cancel(call_id)]
        return bool(found)

    def notify(self, method: str, params: bytes) -> None:
        """See `Connection`."""
        if self._notifying is None or self._notifying.done():
            self._notifying = asyncio.create_task(self._send(_notification(method, params)))

    def subscribe(self, reader: Reader) -> None:
        """See `Connection`. The answer goes out before the first event."""
        self._subscribed = reader

    async def _takes(self, message: WSMessage) -> bool:
        """Take a frame that is no text; tell whether the connection stands."""
        if message.type is WSMsgType.PING:
            with suppress(ConnectionError):
                await self._socket.pong(message.data)
            return True
        if message.type is WSMsgType.BINARY:
            await self.close(WSCloseCode.UNSUPPORTED_DATA, "JSON-RPC comes in text frames")
        return message.type is WSMsgType.PONG

    async def _ping(self) -> None:
        with suppress(ConnectionError):
            await self._socket.ping()

    @property
    def _is_read(self) -> bool:
        """Whether nothing waits for the peer to read."""
        return self._transport is not None and not self._transport.get_write_buffer_size()

    async def _send_at_once(self, answer: Answer) -> None:
        """Send an answer that did not have to wait for anything, and give others a turn now and then."""
        if answer is not None:
            try:
                await self._socket.send_frame(answer, WSMsgType.TEXT)
            except ConnectionError:
                # As in `_send`; an object of `suppress` would cost as much as the rest of this.
                return
        if not self._frames % _ANSWERS_A_TURN:
            await asyncio.sleep(0)

    async def _go_on(self, caller: Caller, answer: Answer | Awaitable[Answer]) -> None:
        """Answer a body beside those that follow."""
        body = asyncio.create_task(self._answer(caller, answer))
        self._bodies[body] = caller
        body.add_done_callback(self._bodies.pop)
        # It begins before the next one, which may be answered at once, and may cancel it or change the same slot.
        await asyncio.sleep(0)
        if len(self._bodies) > self._limits.calls_in_flight:
            await self._slow_down()

    async def _answer(self, caller: Caller, answering: Answer | Awaitable[Answer]) -> None:
        try:
            answer = await finished(answering)
            caller.answered(len(answer or b""))
        finally:
            caller.over()
        try:
            if answer is not None:
                await self._send(answer)
        finally:
            caller.sent()
        await self._read_events()

    async def _read_events(self) -> None:
        """Begin with the reader that a body has subscribed, if there is a new one, and end the one before it."""
        reader, self._subscribed = self._subscribed, None
        if reader is None:
            return
        self._reader = reader
        if self._events is not None:
            self._events.cancel()
            await asyncio.wait([self._events])
        self._events = asyncio.create_task(self._send_events(reader))

    async def _send_events(self, reader: Reader) -> None:
        try:
            await reader.run(self._send_event)
        except Exception as error:
            # Never a silent end: whoever waits for events is told that there are no more.
            _log.error("rpc.events", exc_info=error)
            await self.close(WSCloseCode.INTERNAL_ERROR, "an error inside the daemon; its log has the details")

    async def _send_event(self, params: dict[str, Any]) -> None:
        await self._send(_notification("event", encode(params)))

    async def _send(self, text: bytes) -> None:
        # A peer that has gone misses it: the reading end sees to that.
        with suppress(ConnectionError):
            transport = self._transport
            if transport is None or (len(text) <= _SMALL_FRAME_BYTES and not transport.get_write_buffer_size()):
                await self._socket.send_frame(text, WSMsgType.TEXT)
                return
            async with self._sending:
                sending = self._socket.send_frame(text, WSMsgType.TEXT)
                await until_read(transport, sending, self._limits.unread_ms)

    async def _slow_down(self) -> None:
        """Read nothing more while so many cannot send their answers."""
        self._is_slowed_down = True
        while len(self._bodies) > _BODIES_PER_CALL * self._limits.calls_in_flight:
            await asyncio.wait(list(self._bodies), return_when=asyncio.FIRST_COMPLETED)
        self._is_slowed_down = self._is_silent = False


def _notification(method: str, params: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","method":"%b","params":%b}' % (method.encode(), params)
