"""Which connections are let in: so many at a time, over all listeners. Others are told so, and closed.

An eighth of them is kept for the UNIX socket: whoever can reach a TCP port, with a token or without, takes no room from
those who look after the daemon.

Who is let in has a while to send a first request that may be sent here: whoever has no token, or nothing to say, keeps
no connection. How long one may take for the head of a later one, and idle between two, is aiohttp's keep-alive timeout.

A client may end its sending side behind a request (`nc -N` does) and read on. Whether one that has ended it still reads
is known on a UNIX socket, and not over TCP: there a call has a second left, and is interrupted as for any caller who
has gone.
"""

import asyncio
import resource
import select
import socket

import structlog
from aiohttp import web

from vmmd.rpc.listen import BACKLOG
from vmmd.rpc.traffic import Traffic

# Descriptors that are nobody's connection: listeners, the log, the event loop's own, files that are read meanwhile.
_OWN_DESCRIPTORS = 64

# One of so many connections is kept for the UNIX socket, and one at least.
_KEPT_SHARE = 8

# A connection that is closed while something it sent is unread is reset, and its client never reads why. So those
# turned away have a moment to read it; but only few at a time, as each takes a descriptor.
_MOST_TURNED_AWAY = 16
_TURNED_AWAY_S = 1.0

# How long a peer that has ended its sending side is taken to read on, until it is looked at again; and how long until
# the first look, since what it sent last is begun a few turns of the event loop behind its end.
_HALF_CLOSED_S = 1.0
_BEGUN_S = 0.05

_log = structlog.get_logger()


class Admission:
    """Accepts connections for several listeners.

    Args:
        connections: How many may be open at a time.
        first_request_ms: How long one may take until its first request was let in, in milliseconds.
        traffic: What knows whose requests were.

    Attributes:
        turned_away: How many found no room and are still reading so.
    """

    def __init__(self, connections: int, first_request_ms: int, traffic: Traffic) -> None:
        self._most = _raise_descriptor_limit(connections)
        self.first_request_s = first_request_ms / 1000
        self.traffic = traffic
        self.turned_away = 0
        self._servers: list[web.Server] = []
        self._open: list[web.Server] = []
        self._listeners: list[asyncio.Server] = []

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(len(server.connections) for server in self._servers)

    async def listen(self, runner: web.AppRunner, bound: socket.socket, *, is_open: bool) -> None:
        """Accept connections on a socket that listens, and have a runner that was set up serve them.

        Args:
            runner: Serves the connections.
            bound: The socket.
            is_open: Whether others than the daemon's user can connect.
        """
        server = runner.server
        assert server is not None, "the runner was set up"  # noqa: S101
        self._servers.append(server)
        if is_open:
            self._open.append(server)
        listener = await asyncio.get_running_loop().create_server(
            lambda: _Arrival(self, server), sock=bound, backlog=BACKLOG
        )
        self._listeners.append(listener)

    def close(self) -> None:
        """Accept no more connections; those that are open stay so."""
        for listener in self._listeners:
            listener.close()

    def refusal(self, server: web.Server) -> bytes | None:
        """Give what a connection is told that finds no room; None where there is room."""
        used = sum(len(other.connections) for other in self._open)
        has_room = server not in self._open or used < self._most - max(1, self._most // _KEPT_SHARE)
        if has_room and self.connections < self._most:
            return None
        text = (
            f"This daemon has limits.connections = {self._most} open connections (VMMD_LIMITS__CONNECTIONS), or all "
            "of them that TCP may have; close some, or raise the limit.\n"
        )
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: {len(text)}\r\nRetry-After: 1\r\n"
        return f"{head}Content-Type: text/plain\r\nConnection: close\r\n\r\n{text}".encode()


class _Arrival(asyncio.Protocol):
    """A connection: turned away at its first moment, or one of the server's, whose handler has all that comes."""

    def __init__(self, admission: Admission, server: web.Server) -> None:
        self._admission = admission
        self._server = server
        self._handler: web.RequestHandler | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        refusal = self._admission.refusal(self._server)
        loop = asyncio.get_running_loop()
        if refusal is None:
            self._handler = self._server()
            self._handler.connection_made(transport)
            self._timer = loop.call_later(self._admission.first_request_s, self._end_silent)
            return
        self._admission.turned_away += 1
        transport.write(refusal)
        if self._admission.turned_away > _MOST_TURNED_AWAY:
            transport.close()
            return
        transport.write_eof()
        self._timer = loop.call_later(_TURNED_AWAY_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._handler is not None:
            self._handler.data_received(data)

    def eof_received(self) -> bool:
        """Tell whether the connection stands, of which nothing more will come."""
        traffic = self._admission.traffic
        if self._handler is None or traffic.is_websocket(self._transport) or _has_hung_up(self._transport):
            return False
        # It answers what it has begun, and closes then.
        self._handler.close()
        self._look_again_in(_BEGUN_S, last=False)
        return True

    def pause_writing(self) -> None:
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        if self._handler is not None:
            self._handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._handler is None:
            self._admission.turned_away -= 1
        else:
            self._handler.connection_lost(error)

    def _end_silent(self) -> None:
        if not self._admission.traffic.knows(self._transport):
            self._transport.abort()

    def _look_again_in(self, seconds: float, *, last: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look_again, last)

    def _look_again(self, last: bool) -> None:
        transport = self._transport
        is_answering = transport in self._admission.traffic.answering or transport.get_write_buffer_size()
        if not is_answering or last or _has_hung_up(transport):
            transport.close()
        else:
            self._look_again_in(_HALF_CLOSED_S, last=not _is_unix(transport) and not transport.get_write_buffer_size())


def _is_unix(transport: asyncio.Transport) -> bool:
    return bool(transport.get_extra_info("socket").family == socket.AF_UNIX)


def _has_hung_up(transport: asyncio.Transport) -> bool:
    """Tell whether a peer has ended both directions, as far as that is known here."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def _raise_descriptor_limit(connections: int) -> int:
    """Make room for so many connections in the process's limit of descriptors, and give how many there is room for."""
    wanted = connections + _OWN_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return connections
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    room = max(1, wanted - _OWN_DESCRIPTORS)
    if room < connections:
        _log.warning(
            "daemon.fewer_connections",
            connections=room,
            setting=f"limits.connections={connections}",
            advice="raise the hard limit of open files (ulimit -Hn, LimitNOFILE), or lower the setting",
        )
    return room
