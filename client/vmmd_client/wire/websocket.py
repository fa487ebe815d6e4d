"""Calls by a WebSocket at /ws: one connection for all of a client's calls, which run side by side.

What it gives beside HTTP: the daemon ends a hold as soon as the connection that kicked goes, and does not wait for its
lease. The connection is made by the first call, and made anew by the first one after it was lost; calls under way when
it is lost are Disconnected. A call that is cancelled or timed out leaves the connection as it is: the daemon is told
(`rpc.cancel`), and an answer that comes all the same is dropped, because nobody waits for its id.

One WebSocket has one hold of a VM at a time: who asks for a second, and would wait for itself, gets Deadlock.
"""

import asyncio
import contextlib
import copy

import aiohttp

from ..errors import (
    CallTimeout,
    ClientClosed,
    ConnectError,
    ConnectTimeout,
    Disconnected,
    TransportError,
    VmmdError,
)
from .address import Address
from .http_session import HttpSession
from .limits import CONNECT_TIMEOUT_S, MAX_MESSAGE_BYTES
from .multiplex import Waiters
from .protocol import Question

HEARTBEAT_S = 20.0
"""How often a WebSocket is asked for a sign of life, in seconds; without one the connection counts as lost."""


async def open_link(session: aiohttp.ClientSession, address: Address) -> "SocketLink":
    """Open a WebSocket.

    Raises:
        TransportError: it was not opened.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            socket = await session.ws_connect(address.ws_url, max_msg_size=MAX_MESSAGE_BYTES, heartbeat=HEARTBEAT_S)
    except TimeoutError:
        raise ConnectTimeout(address.no_connection(CONNECT_TIMEOUT_S)) from None
    except aiohttp.ClientConnectorError as error:
        raise ConnectError(address.no_listener(error.os_error.strerror or str(error))) from None
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectError(address.no_websocket(str(error))) from None
    except aiohttp.ClientError as error:
        raise TransportError(f"{address.url} could not be asked for a WebSocket: {error}") from None
    return SocketLink(socket, address)


_CLOSED_MEANWHILE = "this client was closed while the call was under way; whether it was executed is not known"


class SocketLink:
    """A WebSocket; a `Link`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, address: Address) -> None:
        self._socket = socket
        self._address = address

    async def send(self, body: bytes) -> None:
        """Send one text; see `Link.send`."""
        try:
            await self._socket.send_frame(body, aiohttp.WSMsgType.TEXT)
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Disconnected(self._address.hung_up(str(error))) from None

    async def receive(self, timeout_s: float | None) -> bytes:
        """Give the next text; see `Link.receive`."""
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._socket.receive()
        except TimeoutError:
            raise CallTimeout(self._address.no_message(timeout_s or 0)) from None
        if message.type is aiohttp.WSMsgType.TEXT:
            text: str = message.data
            return text.encode()
        code = self._socket.close_code
        reason = f"close code {code}" + (f", {message.extra}" if message.extra else "")
        raise Disconnected(self._address.hung_up(reason), code)

    async def aclose(self) -> None:
        """End the connection; idempotent."""
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            await self._socket.close()


class WebSocketTransport:
    """One WebSocket to one address."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Take the daemon's address; nothing is opened before the first exchange.

        Args:
            url: "ws+unix:///path/to/socket", or "ws://host:port".
            token: the bearer token that TCP wants.

        Raises:
            ConnectError: the URL has another form.
            UnusableToken: no HTTP header can hold the token.
        """
        self._address = Address.parse(url)
        self._http = HttpSession(self._address, token, 0)
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"WebSocketTransport({self._address.url!r})"

    async def exchange(self, question: Question, timeout_s: float) -> bytes:
        """Send one message and give the one that answers it; see `Transport.exchange`."""
        self._http.opened()
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connected()
                return await connection.exchange(question)
        except TimeoutError:
            raise CallTimeout(self._address.no_answer(timeout_s)) from None

    async def link(self) -> SocketLink:
        """Open another WebSocket; see `Transport.link`."""
        return await open_link(self._http.opened(), self._address)

    async def aclose(self) -> None:
        """Close every connection; idempotent. Calls under way are ClientClosed."""
        self._http.end()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()
        await self._http.aclose()

    async def _connected(self) -> "_Connection":
        async with self._opening:
            if self._connection is None or self._connection.lost is not None:
                self._connection = _Connection(await self.link())
            return self._connection


class _Connection:
    """A link that answers are read from as long as it stands, by a task of its own."""

    def __init__(self, link: SocketLink) -> None:
        self._link = link
        self._waiters: Waiters[asyncio.Future[bytes]] = Waiters()
        self._cancelling: set[asyncio.Task[None]] = set()
        self.lost: VmmdError | None = None
        self._reader = asyncio.create_task(self._read())

    async def exchange(self, question: Question) -> bytes:
        if self.lost is not None:
            raise copy.copy(self.lost)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiters.add(question, answer)
        try:
            await self._link.send(question.body)
            return await answer
        except asyncio.CancelledError:
            if question.may_cancel and self.lost is None:
                cancelling = asyncio.create_task(self._cancel(question))
                self._cancelling.add(cancelling)
                cancelling.add_done_callback(self._cancelling.discard)
            raise
        finally:
            self._waiters.remove(question)

    async def _cancel(self, question: Question) -> None:
        """Tell the daemon that nobody waits any more; whoever is cancelled does not wait for this either."""
        with contextlib.suppress(Disconnected):
            await self._link.send(question.cancellation)

    async def aclose(self) -> None:
        self._reader.cancel()
        await asyncio.wait({self._reader, *self._cancelling})
        await self._link.aclose()

    async def _read(self) -> None:
        try:
            while True:
                message = await self._link.receive(None)
                waiter = self._waiters.whose(message)
                if waiter is not None and not waiter.done():
                    waiter.set_result(message)
        except VmmdError as error:
            self.lost = error
        except asyncio.CancelledError:
            self.lost = ClientClosed(_CLOSED_MEANWHILE)
            raise
        finally:
            for waiter in self._waiters.take_all():
                if not waiter.done():
                    waiter.set_exception(copy.copy(self.lost or Disconnected("the connection's reader has ended")))
            if not isinstance(self.lost, ClientClosed):
                await self._link.aclose()
