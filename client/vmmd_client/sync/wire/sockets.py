"""Blocking sockets to a daemon's address, and the time that is left for what is done on them.

An error of a socket becomes one of `TransportError`'s classes here, in the words that the asynchronous twin has.
"""

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPException
from urllib.parse import urlsplit

from ...errors import CallTimeout, ConnectError, ConnectTimeout, Disconnected
from ...wire.address import Address, authorization
from ...wire.limits import CONNECT_TIMEOUT_S

LONGEST_WAIT_S = 2_000_000.0
"""The longest wait of one step, in seconds, some 23 days: poll(2) takes no more milliseconds than an int has."""


class Deadline:
    """When something has to be over."""

    def __init__(self, timeout_s: float | None) -> None:
        """Begin now.

        Args:
            timeout_s: for how long, in seconds; None: for good.
        """
        self.timeout_s = timeout_s
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Give the seconds that are left, LONGEST_WAIT_S at most; None: as many as it takes.

        Raises:
            TimeoutError: none are.
        """
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, LONGEST_WAIT_S)


def open_socket(address: Address, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """Connect to an address.

    Raises:
        ConnectError: nobody listens there.
        ConnectTimeout: the connection did not come about in its time.
    """
    try:
        if address.socket_path is not None:
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                opened.settimeout(timeout_s)
                opened.connect(address.socket_path)
            except BaseException:
                opened.close()
                raise
            return opened
        parts = urlsplit(address.rpc_url)
        host, port = parts.hostname or "", parts.port or (443 if address.tls else 80)
        opened = socket.create_connection((host, port), timeout_s)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return ssl.create_default_context().wrap_socket(opened, server_hostname=host) if address.tls else opened
    except TimeoutError:
        raise ConnectTimeout(address.no_connection(timeout_s)) from None
    except OSError as error:
        raise ConnectError(address.no_listener(error.strerror or str(error))) from None


def wait_readable(opened: socket.socket, deadline: Deadline) -> None:
    """Wait until a socket has something to read, or has ended.

    Raises:
        TimeoutError: the time was up.
    """
    if not isinstance(opened, ssl.SSLSocket) or not opened.pending():
        left_s = deadline.left_s()
        if not _readable(opened, None if left_s is None else left_s * 1000):
            raise TimeoutError


def end_socket(opened: socket.socket | None) -> None:
    """End a connection under whoever waits on it in another thread; that one closes the socket."""
    if opened is not None:
        with contextlib.suppress(OSError):
            # Not the method of a TLS socket, which would take the encryption away under the other thread.
            socket.socket.shutdown(opened, socket.SHUT_RDWR)


def header_bytes(token: str | None) -> dict[str, bytes]:
    """Give the header that bears a token, in UTF-8 as the asynchronous twin sends it.

    Raises:
        UnusableToken: no header can hold it.
    """
    return {name: value.encode() for name, value in authorization(token).items()}


def is_stale(opened: socket.socket) -> bool:
    """Tell whether the other side has ended a connection on which nothing is awaited."""
    return _readable(opened, 0)


def _readable(opened: socket.socket, timeout_ms: float | None) -> bool:
    poll = select.poll()
    poll.register(opened, select.POLLIN)
    return bool(poll.poll(timeout_ms))


@contextlib.contextmanager
def told_as_ours(address: Address, deadline: Deadline) -> Iterator[None]:
    """Turn what a socket raises into what the library raises.

    Raises:
        CallTimeout: the time was up.
        Disconnected: the connection ended.
    """
    try:
        yield
    except TimeoutError:
        raise CallTimeout(address.no_answer(deadline.timeout_s or 0)) from None
    except (OSError, HTTPException) as error:
        raise Disconnected(address.hung_up(str(error) or type(error).__name__)) from None
