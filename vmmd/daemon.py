"""The daemon's process: what it listens on, when it starts, and when it ends.

Everything is bound before anything is served, so that a daemon that cannot listen has done nothing. SIGTERM and SIGINT
drain it; a second one of either ends the process at once. A service manager is told of all of it.
"""

import asyncio
import os
import signal
import sys

import structlog

from vmmd import __version__, log
from vmmd.config import Settings
from vmmd.listeners import bound
from vmmd.rpc.heartbeat import Heartbeat
from vmmd.service import Service
from vmmd.systemd import Notifier, passed_sockets

_log = structlog.get_logger()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, and drain.

    When it is ready it prints one line on the standard output: the URLs that it answers at, with a space between them.

    Args:
        settings: The settings.

    Raises:
        ConfigError: TCP was asked for, and there is no token to be had.
        BindError: It cannot listen where it was told to.
        ActivationError: The sockets that the service manager has passed are not to be listened on.
    """
    log.configure(settings.log.level, settings.log.format)
    stop = _stop_on_signals()
    notifier = Notifier(os.environ)
    service = Service(settings)
    loop = asyncio.get_running_loop()

    def on_beat(lag_s: float) -> None:
        service.observe_lag(lag_s)
        notifier.alive(loop.time())

    beat = Heartbeat(on_beat)
    with bound(settings, passed_sockets()) as listeners:
        beat.start()
        try:
            await service.listen(listeners)
            await service.start()
            urls = [listener.url for listener in listeners]
            _log.info("daemon.ready", version=__version__, urls=urls, engine=settings.engine)
            sys.stdout.write(" ".join(urls) + "\n")
            sys.stdout.flush()
            notifier.ready(f"answers at {' '.join(urls)}")
            await stop.wait()
        finally:
            notifier.stopping("draining: calls under way are answered, VMs are destroyed")
            await service.drain()
            beat.stop()


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
