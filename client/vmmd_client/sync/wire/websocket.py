"""Calls by a WebSocket at /ws for threads: one connection for all of a client's calls, which run side by side.

It behaves as `vmmd_client.wire.websocket` does. A thread of its own reads the answers for as long as the connection
stands; it is a daemon thread, so a client that nobody closes keeps no program from ending. wsproto has WebSocket's
rules, here are the socket and the locks.
"""

import concurrent.futures
import contextlib
import copy
import socket
import threading
from collections.abc import Mapping

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError as WebSocketError

from ...errors import (
    CallTimeout,
    ClientClosed,
    ConnectError,
    ConnectTimeout,
    Disconnected,
    HttpRefused,
    TransportError,
    VmmdError,
)
from ...wire.address import Address
from ...wire.limits import CONNECT_TIMEOUT_S, MAX_MESSAGE_BYTES
from ...wire.multiplex import Waiters
from ...wire.protocol import Question
from .sockets import Deadline, end_socket, header_bytes, open_socket, told_as_ours, wait_readable

STEP_TIMEOUT_S = 30.0
"""How long the daemon may take to take one message, in seconds."""

_READ_BYTES = 1 << 16

_CLOSED_MEANWHILE = "this client was closed while the call was under way; whether it was executed is not known"


def open_link(address: Address, headers: Mapping[str, bytes], wait_s: float | None = None) -> "SocketLink":
    """Open a WebSocket.

    Args:
        address: where.
        headers: what goes along.
        wait_s: how long it may take, in seconds, where that is less than CONNECT_TIMEOUT_S.

    Raises:
        TransportError: it was not opened.
    """
    timeout_s = CONNECT_TIMEOUT_S if wait_s is None else min(wait_s, CONNECT_TIMEOUT_S)
    deadline = Deadline(timeout_s)
    link = SocketLink(open_socket(address, timeout_s), address)
    try:
        link.shake_hands(headers, deadline)
    except CallTimeout:
        link.close()
        raise ConnectTimeout(address.no_connection(timeout_s)) from None
    except Disconnected as error:
        link.close()
        raise ConnectError(address.no_websocket(str(error))) from None
    except BaseException:
        link.close()
        raise
    return link


class SocketLink:
    """A WebSocket; a `Link`. One thread may receive while others send."""

    def __init__(self, opened: socket.socket, address: Address) -> None:
        self._socket = opened
        self._address = address
        self._protocol = WSConnection(ConnectionType.CLIENT)
        # Guards the protocol's state, and that what it gave goes out in its order.
        self._sending = threading.Lock()
        self._came: list[bytes] = []
        self._parts: list[str] = []
        self._length = 0
        self._closed = False
        # One time for each step on the socket, set once: the thread that receives and one that sends share it. How long
        # a message may be waited for is what `_read` waits for before it touches the socket.
        opened.settimeout(STEP_TIMEOUT_S)

    @property
    def closed(self) -> bool:
        """Whether it was closed from this side."""
        return self._closed

    def shake_hands(self, headers: Mapping[str, bytes], deadline: Deadline) -> None:
        """Have the server make a WebSocket of the connection.

        Raises:
            HttpRefused: it answered otherwise.
            CallTimeout: it did not answer.
            Disconnected: it hung up.
        """
        extra = [(name.encode(), value) for name, value in headers.items()]
        self._send(Request(host=self._address.authority, target="/ws", extra_headers=extra))
        refusal, body = None, b""
        while True:
            for event in self._read(deadline):
                if isinstance(event, AcceptConnection):
                    return
                whole = False
                if isinstance(event, RejectConnection):
                    refusal, whole = event.status_code, not event.has_body
                if isinstance(event, RejectData):
                    body += event.data
                    whole = event.body_finished
                if refusal is not None and whole:
                    raise HttpRefused(self._address.refused(refusal, body), refusal)

    def send(self, body: bytes) -> None:
        """Send one text; see `Link.send`."""
        self._send(TextMessage(data=body.decode()))

    def receive(self, timeout_s: float | None) -> bytes:
        """Give the next text; see `Link.receive`."""
        deadline = Deadline(timeout_s)
        try:
            while not self._came:
                for event in self._read(deadline):
                    self._take(event)
        except CallTimeout:
            raise CallTimeout(self._address.no_message(timeout_s or 0)) from None
        return self._came.pop(0)

    def close(self) -> None:
        """End the connection; idempotent. A thread that receives gets Disconnected."""
        if self._closed:
            return
        self._closed = True
        try:
            self._send(CloseConnection(code=1000))
            self._socket.shutdown(socket.SHUT_RDWR)
        except (TransportError, OSError):
            pass
        self._socket.close()

    def _take(self, event: Event) -> None:
        if isinstance(event, TextMessage):
            self._parts.append(event.data)
            self._length += len(event.data)
            if self._length > MAX_MESSAGE_BYTES:
                raise Disconnected(self._address.hung_up(f"a message of more than {MAX_MESSAGE_BYTES} bytes"))
            if event.message_finished:
                self._came.append("".join(self._parts).encode())
                self._parts.clear()
                self._length = 0
        elif isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, CloseConnection):
            reason = f"close code {int(event.code)}" + (f", {event.reason}" if event.reason else "")
            raise Disconnected(self._address.hung_up(reason), event.code)
        elif isinstance(event, BytesMessage):
            raise Disconnected(self._address.hung_up("a message in binary"))

    def _read(self, deadline: Deadline) -> list[Event]:
        with told_as_ours(self._address, deadline):
            wait_readable(self._socket, deadline)
            data = self._socket.recv(_READ_BYTES)
        try:
            with self._sending:
                self._protocol.receive_data(data or None)
                return list(self._protocol.events())
        except WebSocketError as error:
            raise Disconnected(self._address.hung_up(f"a breach of WebSocket's rules: {error}")) from None

    def _send(self, event: Event) -> None:
        with self._sending, told_as_ours(self._address, Deadline(STEP_TIMEOUT_S)):
            try:
                self._socket.sendall(self._protocol.send(event))
            except WebSocketError as error:
                raise Disconnected(self._address.hung_up(str(error))) from None
            except BaseException:
                # Whatever it was, the thread's KeyboardInterrupt too: a half of a message may be on its way, and
                # nothing else can follow it.
                end_socket(self._socket)
                raise


class WebSocketTransport:
    """One WebSocket to one address, for any number of threads at once."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Take the daemon's address; nothing is opened before the first exchange.

        Args:
            url: "ws+unix:///path/to/socket", or "ws://host:port".
            token: the bearer token that TCP wants.

        Raises:
            ConnectError: the URL has another form, or asks for TLS, whose sockets no two threads may use at once.
            UnusableToken: no HTTP header can hold the token.
        """
        self._address = Address.parse(url)
        if self._address.tls:
            raise ConnectError(f"{url}: threads cannot share a WebSocket over TLS; give https:// in place of wss://")
        self._headers = header_bytes(token)
        # Whoever opens the connection for the calls keeps others from doing so, and nobody from closing the client.
        self._opening = threading.Lock()
        self._connection: _Connection | None = None
        # Guards what follows.
        self._lock = threading.Lock()
        self._links: list[SocketLink] = []
        self._closed = False

    def __repr__(self) -> str:
        return f"WebSocketTransport({self._address.url!r})"

    def exchange(self, question: Question, timeout_s: float) -> bytes:
        """Send one message and give the one that answers it; see `Transport.exchange`."""
        deadline = Deadline(timeout_s)
        with told_as_ours(self._address, deadline):
            return self._connected(deadline).exchange(question, deadline)

    def link(self) -> SocketLink:
        """Open another WebSocket; see `Transport.link`."""
        return self._open()

    def close(self) -> None:
        """Close every connection; idempotent. Calls under way are ClientClosed."""
        with self._lock:
            self._closed = True
            links, self._links = self._links, []
        for link in links:
            link.close()

    def _connected(self, deadline: Deadline) -> "_Connection":
        if not self._opening.acquire(timeout=deadline.left_s() or -1):
            raise TimeoutError
        try:
            if self._connection is None or self._connection.lost is not None:
                self._connection = _Connection(self._open(deadline.left_s()))
            return self._connection
        except ConnectTimeout:
            # It is the call's own time that is up, if it is.
            deadline.left_s()
            raise
        finally:
            self._opening.release()

    def _open(self, wait_s: float | None = None) -> SocketLink:
        self._refuse_if_closed()
        link = open_link(self._address, self._headers, wait_s)
        with self._lock:
            if not self._closed:
                self._links = [other for other in self._links if not other.closed]
                self._links.append(link)
                return link
        link.close()
        raise ClientClosed(self._address.closed())

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ClientClosed(self._address.closed())


class _Connection:
    """A link that answers are read from as long as it stands, by a thread of its own."""

    def __init__(self, link: SocketLink) -> None:
        self._link = link
        # Guards what follows: whoever asks after the connection was lost is told so, and waits for nothing.
        self._lock = threading.Lock()
        self._waiters: Waiters[concurrent.futures.Future[bytes]] = Waiters()
        self.lost: VmmdError | None = None
        threading.Thread(target=self._read, name="vmmd answers", daemon=True).start()

    def exchange(self, question: Question, deadline: Deadline) -> bytes:
        answer: concurrent.futures.Future[bytes] = concurrent.futures.Future()
        with self._lock:
            if self.lost is not None:
                raise copy.copy(self.lost)
            self._waiters.add(question, answer)
        try:
            self._link.send(question.body)
            return answer.result(deadline.left_s())
        except TimeoutError:
            if question.may_cancel:
                with contextlib.suppress(TransportError):
                    self._link.send(question.cancellation)
            raise
        finally:
            with self._lock:
                self._waiters.remove(question)

    def _read(self) -> None:
        lost: VmmdError = Disconnected("the connection's reader has ended")
        try:
            while True:
                message = self._link.receive(None)
                with self._lock:
                    waiter = self._waiters.whose(message)
                    if waiter is not None and not waiter.done():
                        waiter.set_result(message)
        except VmmdError as error:
            lost = ClientClosed(_CLOSED_MEANWHILE) if self._link.closed else error
        finally:
            with self._lock:
                self.lost = lost
                for waiter in self._waiters.take_all():
                    if not waiter.done():
                        waiter.set_exception(copy.copy(lost))
            self._link.close()
