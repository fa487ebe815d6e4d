"""The listeners that the settings ask for, each with who may ask there; those that the service manager passed first.

A socket that was passed takes the place of the one that the settings name, and its address decides as theirs would:
TCP that others can reach needs a token that was set on purpose.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import structlog

from vmmd.config import Settings, is_open_to_others, tcp_token
from vmmd.rpc.listen import UnixListener, bind_tcp, is_loopback, tcp_url, url_host
from vmmd.rpc.server import TcpGuard
from vmmd.systemd import PassedSockets

_log = structlog.get_logger()


@dataclass(frozen=True)
class Listener:
    """A socket that is bound, and who may ask there; no guard: whoever can open it.

    `file`: the UNIX socket's file, where it was made here.
    """

    socket: socket.socket
    url: str
    guard: TcpGuard | None
    file: UnixListener | None = None


@contextmanager
def bound(settings: Settings, passed: PassedSockets) -> Iterator[Sequence[Listener]]:
    """Bind every listener that was not passed; at the end close them all and remove the UNIX socket's file, if ours.

    Raises:
        ConfigError: TCP was asked for, and there is no token to be had.
        BindError: It cannot listen where it was told to.
    """
    with ExitStack() as stack:
        listeners = []
        if passed.tcp is not None or settings.port is not None:
            host = settings.host if passed.tcp is None else str(passed.tcp.getsockname()[0])
            guard = _make_guard(settings, host)
            tcp = stack.enter_context(passed.tcp or bind_tcp(host, settings.port or 0))
            listeners.append(Listener(tcp, tcp_url(host, tcp), guard))
        made: UnixListener | None = None
        if passed.unix is not None:
            unix, url = stack.enter_context(passed.unix), f"unix://{passed.unix.getsockname()}"
        else:
            made = UnixListener(settings.socket)
            stack.callback(made.unlink)
            unix, url = stack.enter_context(made.socket), made.url
        yield [Listener(unix, url, None, made), *listeners]


def _make_guard(settings: Settings, host: str) -> TcpGuard:
    token = tcp_token(settings, on_purpose=not is_loopback(host))
    if is_open_to_others(settings):
        _log.warning("settings.token_file_is_open", advice="others can read the token file; chmod 600 it")
    hosts = set(settings.allowed_hosts)
    if not _is_any_address(host):
        hosts.add(url_host(host))
    return TcpGuard(token, frozenset(hosts), frozenset(settings.allowed_origins))


def _is_any_address(host: str) -> bool:
    """Tell whether a host stands for every address of the machine, as 0.0.0.0 does: no request is addressed to it."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
