"""Which calls are taken: none before the daemon is ready, none when it drains, and so many of one client at a time.

    STARTING --ready--> READY --drain--> DRAINING
        |                                   ^
        +---------------drain---------------+

A client is, on the UNIX socket, a process, and over TCP an address: opening more connections does not make one two.
"""

import asyncio
import socket
import struct
from collections.abc import Hashable
from enum import Enum
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from aiohttp import hdrs, web

from vmmd.rpc.outbox import Outbox

_PEER_CREDENTIALS = struct.Struct("3i")

_RETRY_S = "1"


class Phase(Enum):
    """What the daemon is doing."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Client:
    """Who asks: one for all of its connections, and as long as any of them stands.

    Attributes:
        under_way: How many of its bodies are being read or answered.
        outbox: The room for its answers over HTTP.
    """

    def __init__(self, unread_bytes: int) -> None:
        self.under_way = 0
        self.outbox = Outbox(unread_bytes)


class Traffic:
    """The calls under way, over all listeners.

    Args:
        calls_in_flight_per_client: How many bodies of one client may be read or answered at a time.
        unread_bytes: How many bytes of answers over HTTP may wait for one client to read them.

    Attributes:
        phase: What the daemon is doing.
        in_flight: How many bodies are being read or answered.
        answering: The connections of which a request is being answered.
    """

    def __init__(self, calls_in_flight_per_client: int, unread_bytes: int) -> None:
        self.phase = Phase.STARTING
        self.in_flight = 0
        self.answering: set[asyncio.BaseTransport | None] = set()
        self._most = calls_in_flight_per_client
        self._unread_bytes = unread_bytes
        self._clients: WeakValueDictionary[Hashable, Client] = WeakValueDictionary()
        self._at: WeakKeyDictionary[asyncio.BaseTransport, Client] = WeakKeyDictionary()
        self._websockets: WeakSet[asyncio.BaseTransport] = WeakSet()
        self._idle: asyncio.Future[None] | None = None

    def check_open(self) -> None:
        """Refuse what comes while no call is taken.

        Raises:
            web.HTTPServiceUnavailable: The daemon is starting or draining.
        """
        if self.phase is Phase.READY:
            return
        text = {
            Phase.STARTING: "The daemon is starting; ask again, GET /readyz tells when it is ready.\n",
            Phase.DRAINING: "The daemon is shutting down and takes no new calls; nothing was done.\n",
        }[self.phase]
        raise web.HTTPServiceUnavailable(headers={hdrs.RETRY_AFTER: _RETRY_S}, text=text)

    def enter(self, client: Client) -> None:
        """Count a client's call in; `leave` counts it out.

        Raises:
            web.HTTPServiceUnavailable: The daemon is starting or draining.
            web.HTTPTooManyRequests: The client has too many under way.
        """
        self.check_open()
        if client.under_way >= self._most:
            raise web.HTTPTooManyRequests(
                headers={hdrs.RETRY_AFTER: _RETRY_S},
                text=f"This client has limits.calls_in_flight_per_client = {self._most} calls under way "
                "(VMMD_LIMITS__CALLS_IN_FLIGHT_PER_CLIENT); wait for an answer, or raise the limit.\n",
            )
        client.under_way += 1
        self.begin()

    def leave(self, client: Client) -> None:
        """Count a client's call out."""
        client.under_way -= 1
        self.end()

    def begin(self) -> None:
        """Count in what no limit of a client's is for; `end` counts it out."""
        self.in_flight += 1

    def end(self) -> None:
        """Count out what `begin` has counted in."""
        self.in_flight -= 1
        if not self.in_flight and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def client_of(self, request: web.Request) -> Client:
        """Tell who asks. A connection's client stays what it is, so it is looked for once."""
        transport = request.transport
        if transport is None:
            # It has gone, and its address with it.
            return Client(self._unread_bytes)
        client = self._at.get(transport)
        if client is None:
            who = _client_at(transport)
            client = self._clients.get(who)
            if client is None:
                client = self._clients[who] = Client(self._unread_bytes)
            self._at[transport] = client
        return client

    def knows(self, transport: asyncio.BaseTransport) -> bool:
        """Tell whether a request of that connection was let in."""
        return transport in self._at

    def is_websocket(self, transport: asyncio.BaseTransport) -> bool:
        """Tell whether that connection was made a WebSocket."""
        return transport in self._websockets

    def upgrade(self, request: web.Request) -> None:
        """Take note that a connection becomes a WebSocket."""
        if request.transport is not None:
            self._websockets.add(request.transport)

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no call is under way; tell whether it came to that in so many seconds."""
        if not self.in_flight:
            return True
        if self._idle is None:
            self._idle = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait([self._idle], timeout=timeout_s)
        return bool(done)


def _client_at(transport: asyncio.BaseTransport) -> Hashable:
    """Tell who is at the other end: the process of a UNIX socket, or the address of a TCP connection."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family == socket.AF_UNIX:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        pid, _uid, _gid = _PEER_CREDENTIALS.unpack(credentials)
        return int(pid)
    return str(transport.get_extra_info("peername")[0])
