"""Which connections are let in: so many at a time, over all listeners. Others are told so, and closed.

An eighth of them is kept for the UNIX socket: whoever can reach a TCP port, with a token or without, takes no room from
those who look after the daemon.

How long one may take to send the head of a request, and idle between two, is aiohttp's keep-alive timeout.
"""

import asyncio
import resource
import socket

import structlog
from aiohttp import web

from vmmd.rpc.listen import BACKLOG

# Descriptors that are nobody's connection: listeners, the log, the event loop's own, files that are read meanwhile.
_OWN_DESCRIPTORS = 64

# One of so many connections is kept for the UNIX socket, and one at least.
_KEPT_SHARE = 8

# A connection that is closed while something it sent is unread is reset, and its client never reads why. So those
# turned away have a moment to read it; but only few at a time, as each takes a descriptor.
_MOST_TURNED_AWAY = 16
_TURNED_AWAY_S = 1.0

_log = structlog.get_logger()


class Admission:
    """Accepts connections for several listeners.

    Args:
        connections: How many may be open at a time.

    Attributes:
        turned_away: How many found no room and are still reading so.
    """

    def __init__(self, connections: int) -> None:
        self._most = _raise_descriptor_limit(connections)
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
    """A connection before it is known whether there is room: only then is it one of the server's."""

    def __init__(self, admission: Admission, server: web.Server) -> None:
        self._admission = admission
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        refusal = self._admission.refusal(self._server)
        if refusal is None:
            handler = self._server()
            transport.set_protocol(handler)
            handler.connection_made(transport)
            return
        self._admission.turned_away += 1
        transport.write(refusal)
        if self._admission.turned_away > _MOST_TURNED_AWAY:
            transport.close()
            return
        transport.write_eof()
        asyncio.get_running_loop().call_later(_TURNED_AWAY_S, transport.abort)

    def connection_lost(self, _error: Exception | None) -> None:
        # One that was let in has another protocol by now.
        self._admission.turned_away -= 1


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
