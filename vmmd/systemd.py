"""What a service manager and the daemon tell each other: the sockets that it passes, and how the daemon is doing.

Both protocols are systemd's, sd_listen_fds(3) and sd_notify(3). They are a few environment variables and a datagram a
message, less than what a library for them would bring; without the variables nothing is passed and nothing is told.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

_FIRST_DESCRIPTOR = 3
_NAMES = ("unix", "tcp")


class ActivationError(Exception):
    """The sockets that were passed are not what the daemon can listen on. The message says what to change."""


@dataclass(frozen=True)
class PassedSockets:
    """The sockets that the service manager has bound; None where it has not."""

    unix: socket.socket | None = None
    tcp: socket.socket | None = None


def passed_sockets() -> PassedSockets:
    """Take the sockets that were passed to this process, by the names unix and tcp (FileDescriptorName=).

    The variables are taken too: what this process starts is not passed anything.

    Raises:
        ActivationError: A name is another, is there twice, or its socket is of another kind or does not listen.
    """
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return PassedSockets()
    found: dict[str, socket.socket] = {}
    for descriptor, name in zip(range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)), names, strict=False):
        if name not in _NAMES or name in found:
            raise ActivationError(
                f"a socket named {name!r} was passed; FileDescriptorName= must be unix or tcp, each once"
            )
        found[name] = _listening(descriptor, name)
    if len(found) != int(count):
        raise ActivationError(f"{count} sockets were passed and {len(found)} named; each needs its FileDescriptorName=")
    return PassedSockets(found.get("unix"), found.get("tcp"))


def _listening(descriptor: int, name: str) -> socket.socket:
    try:
        passed = socket.socket(fileno=descriptor)
        families = (socket.AF_UNIX,) if name == "unix" else (socket.AF_INET, socket.AF_INET6)
        fit = passed.family in families and passed.type == socket.SOCK_STREAM
        if fit and passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            os.set_inheritable(descriptor, False)
            return passed
    except OSError as error:
        raise ActivationError(f"the socket {name}, descriptor {descriptor}, cannot be used: {error}") from None
    raise ActivationError(f"the socket {name}, descriptor {descriptor}, is no listening stream socket of that kind")


class Notifier:
    """Tells the service manager how the daemon is doing.

    Args:
        environment: Where it says whom to tell, NOTIFY_SOCKET, and how often to be alive, WATCHDOG_USEC.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte of an abstract address.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        period = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Twice as often as it has to be, as sd_watchdog_enabled(3) wants.
        self._watchdog_s = int(period) / 2e6 if ours and period.isdecimal() and int(period) else None
        self._alive_until = 0.0

    def ready(self, status: str) -> None:
        """Tell that the daemon is ready."""
        self._send("READY=1", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """Tell that the daemon stops."""
        self._send("STOPPING=1", f"STATUS={status}")

    def alive(self, now_s: float) -> None:
        """Tell that the event loop turns, if it is time to tell; `now_s` is of any clock."""
        if self._watchdog_s is not None and now_s >= self._alive_until:
            self._alive_until = now_s + self._watchdog_s
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                # A service manager that does not listen, or is behind, is no reason to stop serving.
                return
