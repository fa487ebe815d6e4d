"""Where the daemon listens: a UNIX socket that its user alone can open, and TCP on an address that is not the world's.

A socket that a dead daemon has left behind is taken over; one that a living daemon answers on is not. Nothing else that
lies at the path is ever removed.
"""

import errno
import os
import socket
import stat
from ipaddress import ip_address
from pathlib import Path

BACKLOG = 1024
"""Connections that may wait to be accepted: a thousand can come at once."""

_PROBE_S = 2.0


class BindError(Exception):
    """The daemon cannot listen there. The message says why, and what to do."""


class UnixListener:
    """A bound UNIX socket, and its file's life.

    Args:
        path: Where the socket's file lies. Missing directories are made, for the user alone.

    Raises:
        BindError: Another daemon listens there, something else lies there, or the system refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _remove_stale(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The mode is there from the first moment on; a chmod after the bind would leave a gap.
            umask = os.umask(0o177)
            try:
                self.socket.bind(str(path))
            finally:
                os.umask(umask)
            self.socket.listen(BACKLOG)
            self._inode = path.stat().st_ino
        except OSError as error:
            self.socket.close()
            raise BindError(
                f"cannot listen on the UNIX socket {path}: {error.strerror or error}; choose another path with --socket"
            ) from error

    @property
    def url(self) -> str:
        """The listener's URL, "unix:///run/user/1000/vmmd.sock"."""
        return f"unix://{self.path.absolute()}"

    def unlink(self) -> None:
        """Remove the socket's file, unless another has taken its place."""
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            return


def bind_tcp(host: str, port: int) -> socket.socket:
    """Bind a TCP socket and listen on it.

    Args:
        host: An address, or a name for one.
        port: The port; 0: any that is free.

    Raises:
        BindError: The system refuses.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise BindError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another with --port"
        ) from error


def tcp_url(host: str, bound: socket.socket) -> str:
    """Give the URL of a bound TCP socket, "http://127.0.0.1:8000"."""
    return f"http://{url_host(host)}:{bound.getsockname()[1]}"


def url_host(host: str) -> str:
    """Give a host as it stands in a URL and in a Host header: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host.lower()


def is_loopback(host: str) -> bool:
    """Tell whether an address is this machine's own. Of names only "localhost" is: others may lead anywhere."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody answers on."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        # There is nothing, or nothing that can be reached: the bind will say so.
        return
    if not stat.S_ISSOCK(mode):
        raise BindError(f"{path} is there and is no socket; choose another path with --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise BindError(f"cannot tell whether a daemon listens on {path}: {error}") from error
        else:
            raise BindError(f"a daemon listens on {path} already; stop it, or choose another path with --socket")
    path.unlink()
