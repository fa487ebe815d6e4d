"""The daemon's process: what it listens on, when it starts, and when it ends.

Everything is bound before anything is served, so that a daemon that cannot listen has done nothing. SIGTERM, SIGINT
and SIGHUP drain it; a second one of any ends the process at once. A service manager is told of all of it.
"""

import asyncio
import os
import signal
import sys

import structlog

from vmmd import __version__
from vmmd.config import Settings, unknown_variables
from vmmd.listeners import bound
from vmmd.rpc.heartbeat import Heartbeat
from vmmd.rpc.listen import UnixListener
from vmmd.service import Service
from vmmd.systemd import Notifier, passed_sockets

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that ask for the end. SIGHUP too: the settings are read once, and a terminal that closes is an end."""

_log = structlog.get_logger()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, and drain.

    When it is ready it prints one line on the standard output: the URLs that it answers at, with a space between them.

    Args:
        settings: The settings.

    Raises:
        ConfigError: TCP was asked for, and there is no token to be had.
        BindError: It cannot listen where it was told to.
        ActivationError: The sockets that the service manager has passed are not to be listened on.
    """
    for variable in unknown_variables(os.environ):
        _log.warning(
            "settings.unknown_variable", variable=variable, advice="there is no such setting; is another meant?"
        )
    end = _End()
    notifier = Notifier(os.environ)
    service = Service(settings)
    loop = asyncio.get_running_loop()

    def on_beat(lag_s: float) -> None:
        service.observe_lag(lag_s)
        notifier.alive(loop.time())

    beat = Heartbeat(on_beat)
    with bound(settings, passed_sockets()) as listeners:
        end.socket = next((listener.file for listener in listeners if listener.file is not None), None)
        beat.start()
        try:
            await service.listen(listeners)
            await service.start()
            urls = [listener.url for listener in listeners]
            _log.info("daemon.ready", version=__version__, urls=urls, engine=settings.engine)
            sys.stdout.write(" ".join(urls) + "\n")
            sys.stdout.flush()
            notifier.ready(f"answers at {' '.join(urls)}")
            await end.wait()
        finally:
            notifier.stopping("draining: calls under way are answered, VMs are destroyed")
            await service.drain()
            beat.stop()


class _End:
    """When it is to end: the first signal asks for it, the second ends the process at once.

    Attributes:
        socket: The UNIX socket's file that was made here: a process that ends at once removes it too.
    """

    def __init__(self) -> None:
        self.socket: UnixListener | None = None
        self._asked = asyncio.Event()
        for number in ENDING:
            asyncio.get_running_loop().add_signal_handler(number, self._first)

    async def wait(self) -> None:
        """Wait until it is asked for."""
        await self._asked.wait()

    def _first(self) -> None:
        self._asked.set()
        for number in ENDING:
            asyncio.get_running_loop().remove_signal_handler(number)
            # One that the event loop does not have to come round for.
            signal.signal(number, self._second)

    def _second(self, number: int, _frame: object) -> None:
        if self.socket is not None:
            self.socket.unlink()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
