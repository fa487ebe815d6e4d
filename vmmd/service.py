"""What serves calls, from the first connection to the last answer.

Its sockets accept from the start to the end, so that who comes too early or too late is told so. Its end is in order,
and every step of it is bounded:

    no new calls ─ holds rolled back ─ calls under way go on for a while ─ run loops ended, VMs destroyed
    ─ those that still waited get ECANCELED, and that answer goes out ─ connections closed
"""

import asyncio
import errno
import gc
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from aiohttp import web

from vmmd import __version__
from vmmd.api.methods import METHODS
from vmmd.config import Settings
from vmmd.kvm.errors import KvmError
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.listeners import Listener
from vmmd.machine.machine import Machines
from vmmd.rpc.admission import Admission
from vmmd.rpc.call_log import CallLog
from vmmd.rpc.caller import Caller
from vmmd.rpc.dispatch import Answer, CallDone, Dispatcher, DispatchLimits
from vmmd.rpc.errors import CallError
from vmmd.rpc.handlers import About, Core, execute, execute_at_once
from vmmd.rpc.journal import Journal
from vmmd.rpc.metrics import Gauges, Metrics
from vmmd.rpc.pages import page_routes
from vmmd.rpc.requests import RequestLimits, Requests
from vmmd.rpc.scope import BodyScope
from vmmd.rpc.server import make_app
from vmmd.rpc.traffic import Phase, Traffic
from vmmd.rpc.websocket import WebSocketLimits

# How long answers have to go out once every VM is gone, and how long a refused body is still read, in seconds.
_CLOSE_S = 5.0
_LINGER_S = 2.0

_DRAINING = "the daemon is shutting down and takes no new calls; nothing was done"
_BECAME = "was rolled back when the daemon was told to stop"

_log = structlog.get_logger()


@dataclass(frozen=True)
class _Inside:
    """What is there once the daemon has started."""

    core: Core
    dispatcher: Dispatcher[BodyScope]
    metrics: Metrics
    call_log: CallLog


class Service:
    """The core, and what serves it on several listeners.

    Args:
        settings: The settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._traffic = Traffic(settings.limits.calls_in_flight_per_client, settings.limits.unread_bytes)
        limits = settings.limits
        self._admission = Admission(limits.connections, limits.first_request_ms, self._traffic)
        self._runners: list[web.AppRunner] = []
        self._inside: _Inside | None = None

    async def listen(self, listeners: Sequence[Listener]) -> None:
        """Answer on these listeners that the daemon is starting."""
        limits = self._settings.limits
        for listener in listeners:
            app = make_app(
                self._dispatch,
                limits=WebSocketLimits(
                    body_bytes=limits.body_bytes,
                    calls_in_flight=limits.calls_in_flight,
                    websocket_silence_ms=limits.websocket_silence_ms,
                    unread_bytes=limits.unread_bytes,
                    unread_ms=limits.unread_ms,
                ),
                body_wait_ms=limits.body_wait_ms,
                guard=listener.guard,
                traffic=self._traffic,
                pages=page_routes(__version__, self._traffic, self._render),
                observe_refusal=self._observe_refusal,
            )
            runner = web.AppRunner(
                app,
                access_log=None,
                shutdown_timeout=_CLOSE_S,
                keepalive_timeout=limits.idle_ms / 1000,
                lingering_time=_LINGER_S,
                # A body with an encoding is refused: a small one could become a large one.
                auto_decompress=False,
                # A handler is cancelled when its client goes: what it waits for is interrupted then, see `Caller`.
                handler_cancellation=True,
            )
            self._runners.append(runner)
            await runner.setup()
            await self._admission.listen(runner, listener.socket, is_open=listener.guard is not None)

    async def start(self) -> None:
        """Make the core, and take calls."""
        settings = self._settings
        journal = Journal(settings.limits.events)
        # The engine may have to be compiled, and the event loop has others to answer meanwhile.
        kvm = await asyncio.to_thread(
            System,
            engine=settings.engine,
            cache_dir=settings.cache_dir,
            workers=settings.workers,
            limits=_core_limits(settings),
            observer=journal,
            on_translation_failure=lambda why: _log.warning("translation.failed", why=why),
        )
        self._inside = self._make_inside(kvm, journal)
        # What is there now stays: the collector need not look through all of it again and again while calls go on.
        gc.collect()
        gc.freeze()
        self._traffic.phase = Phase.READY

    def observe_lag(self, lag_s: float) -> None:
        """Take note of how late the event loop came, in seconds."""
        if self._inside is not None:
            self._inside.metrics.observe_lag(lag_s)

    async def drain(self) -> None:
        """End everything."""
        self._traffic.phase = Phase.DRAINING
        if self._inside is not None:
            self._inside.dispatcher.close(CallError(errno.ESHUTDOWN, _DRAINING, {"errno": "ESHUTDOWN"}))
            await self._end_guests(self._inside.core)
            await self._traffic.idle(_CLOSE_S)
            self._inside.call_log.close()
        self._admission.close()
        for runner in self._runners:
            await runner.cleanup()
        _log.info("daemon.stopped")

    async def _end_guests(self, core: Core) -> None:
        machines = core.machines.all()
        _log.info("daemon.draining", vms=len(machines), calls_in_flight=self._traffic.in_flight)
        for machine in machines:
            # Where one hold is rolled back, the next in line would be opened.
            machine.vm.end_line(KvmError(errno.ESHUTDOWN, _DRAINING))
            if machine.vm.open_hold is not None:
                machine.vm.expire_hold(machine.vm.open_hold, _BECAME)
        await self._traffic.idle(self._settings.limits.drain_ms / 1000)
        await core.machines.close()
        await core.kvm.close()

    def _dispatch(self, body: bytes, caller: Caller) -> Answer | Awaitable[Answer]:
        assert self._inside is not None, "no call is taken before the start"  # noqa: S101
        return self._inside.dispatcher.begin(body, caller)

    async def _render(self) -> bytes:
        assert self._inside is not None, "nothing is rendered before the start"  # noqa: S101
        return await self._inside.metrics.render()

    def _observe_refusal(self, status: int) -> None:
        if self._inside is not None:
            self._inside.metrics.observe_refusal(status)

    def _make_inside(self, kvm: System, journal: Journal) -> _Inside:
        settings, limits = self._settings, self._settings.limits
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
        core = Core(kvm, Machines(kvm), about, journal, requests)
        metrics = Metrics(core, Gauges(lambda: self._admission.connections, lambda: self._traffic.in_flight))
        call_log = CallLog(calls_per_second=settings.log.calls_per_second, reads=settings.log.level == "debug")

        def observe(calls: Sequence[CallDone]) -> None:
            metrics.observe_calls(calls)
            call_log(calls)

        dispatcher = Dispatcher(
            METHODS,
            partial(execute, core),
            partial(BodyScope, kvm.vm),
            DispatchLimits(
                batch_calls=limits.batch_calls, reply_bytes=limits.reply_bytes, json_depth=limits.json_depth
            ),
            observe,
            partial(execute_at_once, core),
        )
        return _Inside(core, dispatcher, metrics, call_log)


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
