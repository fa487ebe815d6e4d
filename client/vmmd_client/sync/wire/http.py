"""Calls by HTTP for threads: POST /rpc over a UNIX socket or TCP, with connections that are kept and used again.

A connection carries one call at a time and is kept only when the answer was read whole. Whatever else ends a call (its
time, an error, an exception in the thread) closes the connection, so that no later call can find the answer on it.
"""

import http.client
import threading

from ...errors import ClientClosed, Disconnected, HttpRefused
from ...wire.address import Address
from ...wire.limits import CONNECT_TIMEOUT_S, MAX_CONNECTIONS
from ...wire.protocol import Question
from .sockets import Deadline, end_socket, header_bytes, is_stale, open_socket, told_as_ours
from .websocket import SocketLink, open_link


class HttpTransport:
    """POST /rpc to one address, for any number of threads at once."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Take the daemon's address; nothing is opened before the first exchange.

        Args:
            url: "unix:///path/to/socket", or "http://host:port".
            token: the bearer token that TCP wants.

        Raises:
            ConnectError: the URL has another form.
            UnusableToken: no HTTP header can hold the token.
        """
        self._address = Address.parse(url)
        self._headers = header_bytes(token)
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        # Guards what follows.
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._links: list[SocketLink] = []
        self._closed = False

    def __repr__(self) -> str:
        return f"HttpTransport({self._address.url!r})"

    def exchange(self, question: Question, timeout_s: float) -> bytes:
        """Send one POST and give the answer's body; see `Transport.exchange`."""
        deadline = Deadline(timeout_s)
        with told_as_ours(self._address, deadline):
            if not self._free.acquire(timeout=deadline.left_s()):
                raise TimeoutError
        try:
            connection = self._connection(deadline)
            is_kept = False
            try:
                status, answer, is_kept = self._post(connection, question.body, deadline)
            except Disconnected:
                if self._closed:
                    raise ClientClosed(self._address.closed_meanwhile()) from None
                raise
            finally:
                self._give_back(connection, is_kept=is_kept)
        finally:
            self._free.release()
        if status != 200:
            raise HttpRefused(self._address.refused(status, answer), status)
        return answer

    def link(self) -> SocketLink:
        """Open a WebSocket beside the POSTs; see `Transport.link`."""
        self._refuse_if_closed()
        link = open_link(self._address, self._headers)
        with self._lock:
            self._links = [other for other in self._links if not other.closed]
            self._links.append(link)
        return link

    def close(self) -> None:
        """Close every connection; idempotent. Calls under way are ClientClosed."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            links, self._links = self._links, []
            for busy in self._busy:
                end_socket(busy.sock)
        for connection in idle:
            connection.close()
        for link in links:
            link.close()

    def _post(self, connection: http.client.HTTPConnection, body: bytes, deadline: Deadline) -> tuple[int, bytes, bool]:
        """Give status and body of the answer, and whether the connection may be used again."""
        headers = {"Content-Type": b"application/json", "Content-Length": str(len(body)).encode(), **self._headers}
        with told_as_ours(self._address, deadline):
            if connection.sock is None:
                raise ConnectionResetError("the connection was closed")
            connection.sock.settimeout(deadline.left_s())
            connection.request("POST", "/rpc", body, headers)
            connection.sock.settimeout(deadline.left_s())
            response = connection.getresponse()
            parts = []
            while part := response.read1():
                parts.append(part)
                if connection.sock is not None:
                    connection.sock.settimeout(deadline.left_s())
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            response.close()
            return response.status, b"".join(parts), not response.will_close

    def _connection(self, deadline: Deadline) -> http.client.HTTPConnection:
        """Give an idle connection, or a new one, which may take no longer than the call."""
        self._refuse_if_closed()
        while (kept := self._kept()) is not None:
            if kept.sock is not None and not is_stale(kept.sock):
                return self._used(kept)
            kept.close()
        with told_as_ours(self._address, deadline):
            left_s = deadline.left_s()
        connection = http.client.HTTPConnection(self._address.authority)
        connection.sock = open_socket(
            self._address, CONNECT_TIMEOUT_S if left_s is None else min(left_s, CONNECT_TIMEOUT_S)
        )
        return self._used(connection)

    def _used(self, connection: http.client.HTTPConnection) -> http.client.HTTPConnection:
        """Have `close` end a connection that a call is on."""
        with self._lock:
            if not self._closed:
                self._busy.add(connection)
                return connection
        connection.close()
        raise ClientClosed(self._address.closed())

    def _kept(self) -> http.client.HTTPConnection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: http.client.HTTPConnection, *, is_kept: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if is_kept and not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ClientClosed(self._address.closed())
