"""Metrics in Prometheus's text format, in a registry of their own.

What is counted while calls go on is one addition behind the body, outside every hold's pause. What the core counts
anyway is read when somebody asks. Every label has few values: a method that is not in the table is one, "unknown", and
so is whatever else a caller could make up. VMs have no label: callers name them.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vmmd.api.codes import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
)
from vmmd.api.errors import errno_name
from vmmd.kvm.vcpu import Stats
from vmmd.rpc.call_durations import CallDurations
from vmmd.rpc.dispatch import CallDone
from vmmd.rpc.errors import CallError
from vmmd.rpc.handlers.registry import Core
from vmmd.rpc.timings import Timings

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

UNKNOWN_METHOD = "unknown"

_OUTCOMES = {
    PARSE_ERROR: "parse_error",
    INVALID_REQUEST: "invalid_request",
    METHOD_NOT_FOUND: "method_not_found",
    INVALID_PARAMS: "invalid_params",
    INTERNAL_ERROR: "internal_error",
}

_PAUSE_BUCKETS_S = (10e-6, 20e-6, 30e-6, 50e-6, 75e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 0.1, 1.0)
_LAG_BUCKETS_S = (0.5e-3, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.5, 1.0)


@dataclass(frozen=True)
class Gauges:
    """What is read of the daemon around the core when somebody asks.

    Attributes:
        connections: Open connections.
        calls_in_flight: Bodies that are being read or answered.
    """

    connections: Callable[[], int]
    calls_in_flight: Callable[[], int]


class Metrics:
    """Everything that is measured.

    Args:
        core: The core.
        gauges: What lies around it.
    """

    def __init__(self, core: Core, gauges: Gauges) -> None:
        self._core = core
        self._registry = registry = CollectorRegistry()
        self._calls = CallDurations()
        registry.register(self._calls)
        self._refusals = Counter(
            "vmmd_http_refusals",
            "HTTP requests that were refused before their body was looked at.",
            ["status"],
            registry=registry,
        )
        self._kick_s = Histogram(
            "vmmd_kick_seconds",
            "How long kicks took once their turn had come.",
            ["kind"],
            buckets=_PAUSE_BUCKETS_S,
            registry=registry,
        )
        self._pause_s = Histogram(
            "vmmd_pause_seconds",
            "How long guests were held, from the kick to the resume.",
            buckets=_PAUSE_BUCKETS_S,
            registry=registry,
        )
        self._lag_s = Histogram(
            "vmmd_event_loop_lag_seconds",
            "How late the event loop came to what was due, four times a second.",
            buckets=_LAG_BUCKETS_S,
            registry=registry,
        )
        Gauge("vmmd", "The daemon.", ["version", "engine"], registry=registry).labels(
            core.about.version, core.about.engine
        ).set(1)
        Gauge("vmmd_connections", "Open connections.", registry=registry).set_function(gauges.connections)
        Gauge("vmmd_rpc_in_flight", "Bodies that are being read or answered.", registry=registry).set_function(
            gauges.calls_in_flight
        )
        tasks = Gauge("vmmd_event_loop_tasks", "Tasks of the event loop.", registry=registry)
        tasks.set_function(lambda: len(asyncio.all_tasks()))
        self._guests = _Guests(core)
        registry.register(self._guests)
        ProcessCollector(registry=registry)

    def observe_calls(self, calls: Sequence[CallDone]) -> None:
        """Take note of the calls of a body, and of the kicks and pauses in it."""
        for call in calls:
            method = UNKNOWN_METHOD if call.method is None else call.method.name
            self._calls.add(method, "ok" if call.error is None else _outcome(call.error), call.duration_ns)
        self._take(self._core.timings)

    def observe_refusal(self, status: int) -> None:
        """Take note of an HTTP request that was refused."""
        self._refusals.labels(str(status)).inc()

    def observe_lag(self, lag_s: float) -> None:
        """Take note of how late the event loop came, in seconds."""
        self._lag_s.observe(lag_s)

    async def render(self) -> bytes:
        """Give everything as text, of the content type `CONTENT_TYPE`."""
        self._guests.stats = await self._core.totals.read(self._core.machines)
        self._take(self._core.timings)
        return generate_latest(self._registry)

    def _take(self, timings: Timings) -> None:
        while timings.kicks:
            kind, kick_ns = timings.kicks.popleft()
            self._kick_s.labels(kind).observe(kick_ns / 1e9)
        while timings.pauses:
            self._pause_s.observe(timings.pauses.popleft() / 1e9)


class _Guests(Collector):
    """What the core counts, read when somebody asks.

    Attributes:
        stats: The guests' counters, which whoever asks has to read before.
    """

    def __init__(self, core: Core) -> None:
        self.stats = Stats()
        self._core = core

    def collect(self) -> Iterable[Metric]:
        vms = [machine.vm for machine in self._core.machines.all()]
        held = sum(vm.open_hold is not None for vm in vms)
        timings = self._core.timings
        yield GaugeMetricFamily("vmmd_vms", "VMs.", len(vms))
        yield GaugeMetricFamily("vmmd_vcpus", "vCPUs of all VMs.", sum(len(vm.vcpus) for vm in vms))
        yield GaugeMetricFamily("vmmd_memslots", "Slots that are set, of all VMs.", sum(len(vm.memslots) for vm in vms))
        yield GaugeMetricFamily(
            "vmmd_guest_memory_bytes", "Host memory that is mapped for guests.", self._core.kvm.guest_memory_bytes
        )
        yield GaugeMetricFamily("vmmd_holds_open", "VMs that are held.", held)
        yield CounterMetricFamily("vmmd_holds_opened", "Holds that were opened.", timings.opened)
        ended = CounterMetricFamily(
            "vmmd_holds_ended",
            "Holds that are over: kept or rolled back by their resume, or lapsed: the lease ran out, the caller or the "
            "VM went.",
            labels=["outcome"],
        )
        resumed = dict(timings.ended)
        for outcome in ("kept", "rolled_back"):
            ended.add_metric([outcome], resumed.get(outcome, 0))
        ended.add_metric(["lapsed"], max(0, timings.opened - sum(resumed.values()) - held))
        yield ended
        stats = self.stats
        yield CounterMetricFamily("vmmd_instructions", "Instructions that guests have retired.", stats.instructions)
        yield CounterMetricFamily("vmmd_stray_exits", "MMIO exits that no device owned.", stats.stray_exits)
        yield CounterMetricFamily("vmmd_vcpu_kicks", "Times that a vCPU was kicked out of guest mode.", stats.kicks)
        exits = CounterMetricFamily("vmmd_exits", "Exits to userspace by their reason.", labels=["reason"])
        for reason, count in sorted(stats.exits.items()):
            exits.add_metric([reason], count)
        yield exits
        translations = self._core.kvm.translations
        yield GaugeMetricFamily("vmmd_translated_code_bytes", "Machine code of guest code.", translations.code_bytes)
        yield CounterMetricFamily(
            "vmmd_translations", "Regions of guest code that were translated.", translations.translated
        )
        yield CounterMetricFamily(
            "vmmd_translation_failures", "Times that the translating process failed.", translations.failures
        )
        yield CounterMetricFamily(
            "vmmd_translation_seconds",
            "How long the translating process was waited for.",
            translations.translating_ns / 1e9,
        )


def _outcome(error: CallError) -> str:
    """Give the label for what a call failed with: an errno's name, or the name of one of JSON-RPC's codes."""
    return _OUTCOMES.get(error.code) or errno_name(error.code) or "error"
