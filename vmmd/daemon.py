"""The daemon put together: core, handlers and listeners are made here, started in order, and drained in order.

Start: bind everything before anything is served, so that a daemon that cannot listen has done nothing. Drain, on
SIGTERM or SIGINT: stop accepting, end every run loop, destroy every VM (whoever waits in one gets ECANCELED, and that
answer still goes out), then close the connections and remove the socket. A second signal ends the process at once.
"""

import asyncio
import gc
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

import structlog
from aiohttp import web

from vmmd import __version__, log
from vmmd.api.methods import METHODS
from vmmd.config import Settings, tcp_token
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.machine.machine import Machines
from vmmd.rpc.dispatch import Dispatcher, DispatchLimits
from vmmd.rpc.handlers import About, Core, execute
from vmmd.rpc.journal import Journal
from vmmd.rpc.listen import UnixListener, bind_tcp, is_loopback, tcp_url, url_host
from vmmd.rpc.requests import RequestLimits, Requests
from vmmd.rpc.scope import BodyScope
from vmmd.rpc.server import TcpGuard, make_app
from vmmd.rpc.websocket import Dispatch, WebSocketLimits

# How long connections have, once every VM is gone, to take their last answers.
_CLOSE_S = 5.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class _Listener:
    """A socket that is bound, and who may ask there; no guard: whoever can open it."""

    socket: socket.socket
    url: str
    guard: TcpGuard | None


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, and drain.

    When it is ready it prints one line on the standard output: the URLs that it answers at, with a space between them.

    Args:
        settings: The settings.

    Raises:
        ConfigError: TCP was asked for, and there is no token to be had.
        BindError: It cannot listen where it was told to.
    """
    log.configure(settings.log.level, settings.log.format)
    stop = _stop_on_signals()
    with _bound(settings) as listeners:
        journal = Journal(settings.limits.events)
        kvm = System(
            engine=settings.engine,
            cache_dir=settings.cache_dir,
            workers=settings.workers,
            limits=_core_limits(settings),
            observer=journal,
        )
        machines = Machines(kvm)
        dispatch = _make_dispatcher(settings, kvm, machines, journal).dispatch
        runners = [_make_runner(listener, dispatch, settings) for listener in listeners]
        try:
            for runner, listener in zip(runners, listeners, strict=True):
                await runner.setup()
                await web.SockSite(runner, listener.socket).start()
            # What is here now stays: a collection that walked over it would stop every call for a tenth of a second.
            gc.freeze()
            urls = [listener.url for listener in listeners]
            _log.info("daemon.ready", version=__version__, urls=urls, engine=settings.engine)
            sys.stdout.write(" ".join(urls) + "\n")
            sys.stdout.flush()
            await stop.wait()
        finally:
            await _drain(runners, machines, kvm)


@contextmanager
def _bound(settings: Settings) -> Iterator[Sequence[_Listener]]:
    """Bind every listener; at the end close them and remove the UNIX socket's file."""
    with ExitStack() as stack:
        listeners = []
        if settings.port is not None:
            guard = _make_guard(settings)
            tcp = stack.enter_context(bind_tcp(settings.host, settings.port))
            listeners.append(_Listener(tcp, tcp_url(settings.host, tcp), guard))
        unix = UnixListener(settings.socket)
        stack.callback(unix.unlink)
        stack.enter_context(unix.socket)
        yield [_Listener(unix.socket, unix.url, None), *listeners]


def _make_guard(settings: Settings) -> TcpGuard:
    token = tcp_token(settings, on_purpose=not is_loopback(settings.host))
    hosts = set(settings.allowed_hosts)
    if not _is_any_address(settings.host):
        hosts.add(url_host(settings.host))
    return TcpGuard(token, frozenset(hosts), frozenset(settings.allowed_origins))


def _is_any_address(host: str) -> bool:
    """Tell whether a host stands for every address of the machine, as 0.0.0.0 does: no request is addressed to it."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def _core_limits(settings: Settings) -> Limits:
    limits = settings.limits
    return Limits(
        guest_memory_bytes=limits.guest_memory_bytes,
        vms=limits.vms,
        vcpus_per_vm=limits.vcpus_per_vm,
        wait_ms=limits.wait_ms,
        max_wait_ms=limits.max_wait_ms,
        lease_ms=limits.lease_ms,
        max_lease_ms=limits.max_lease_ms,
        sparse_mapping_bytes=limits.sparse_mapping_bytes,
        sparse_mapping_bytes_per_vm=limits.sparse_mapping_bytes_per_vm,
    )


def _make_dispatcher(settings: Settings, kvm: System, machines: Machines, journal: Journal) -> Dispatcher[BodyScope]:
    limits = settings.limits
    about = About(
        version=__version__, engine=settings.engine, started_ns=time.monotonic_ns(), limits=limits.model_dump()
    )
    requests = Requests(
        RequestLimits(
            request_ids=limits.request_ids,
            request_id_bytes=limits.request_id_bytes,
            request_id_ms=limits.request_id_ms,
        )
    )
    return Dispatcher(
        METHODS,
        partial(execute, Core(kvm, machines, about, journal, requests)),
        partial(BodyScope, kvm.vm),
        DispatchLimits(batch_calls=limits.batch_calls, reply_bytes=limits.reply_bytes, json_depth=limits.json_depth),
    )


def _make_runner(listener: _Listener, dispatch: Dispatch, settings: Settings) -> web.AppRunner:
    limits = WebSocketLimits(
        body_bytes=settings.limits.body_bytes,
        calls_in_flight=settings.limits.calls_in_flight,
        websocket_silence_ms=settings.limits.websocket_silence_ms,
    )
    app = make_app(dispatch, version=__version__, limits=limits, guard=listener.guard)
    # A handler is cancelled when its client goes: what it waits for is interrupted then, see `Caller`.
    return web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_S, handler_cancellation=True)


async def _drain(runners: Sequence[web.AppRunner], machines: Machines, kvm: System) -> None:
    """Stop accepting, end what runs, and close."""
    _log.info("daemon.draining", vms=len(machines.all()))
    for runner in runners:
        for site in list(runner.sites):
            await site.stop()
    await machines.close()
    await kvm.close()
    for runner in runners:
        await runner.cleanup()
    _log.info("daemon.stopped")


def _stop_on_signals() -> asyncio.Event:
    """Give an event that the first SIGTERM or SIGINT sets; the second has the system's meaning again."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def first() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, first)
    return stop
