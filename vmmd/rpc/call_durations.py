"""How long calls took and how many there were, by method and outcome, counted in bulk.

A counter and a histogram of the metrics library, with their locks, would cost a tenth of a short call. A call is one
append here, on the event loop alone; the rest is done for many of them at a time.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_BOUNDS_NS = tuple(
    round(bound_s * 1e9)
    for bound_s in (20e-6, 50e-6, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 1.0, 10.0)
)
_MOST_WAITING = 1000


class _Histogram:
    """Counts by bucket, the last for what is over every bound, and the sum."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_NS) + 1)
        self.sum_ns = 0

    def add(self, durations_ns: list[int]) -> None:
        self.sum_ns += sum(durations_ns)
        for duration_ns in durations_ns:
            self.counts[bisect_left(_BOUNDS_NS, duration_ns)] += 1


class CallDurations(Collector):
    """The counts of calls, and their durations."""

    def __init__(self) -> None:
        self._waiting: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._calls: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._durations: defaultdict[str, _Histogram] = defaultdict(_Histogram)

    def add(self, method: str, outcome: str, duration_ns: int) -> None:
        """Count a call in; both names have to be of few."""
        waiting = self._waiting[method, outcome]
        waiting.append(duration_ns)
        if len(waiting) >= _MOST_WAITING:
            self._sort_in()

    def collect(self) -> Iterable[Metric]:
        """Give both metrics; the registry asks."""
        self._sort_in()
        calls = CounterMetricFamily(
            "vmmd_rpc_calls", "Calls by method, and by what they answered.", labels=["method", "outcome"]
        )
        for labels, count in sorted(self._calls.items()):
            calls.add_metric(labels, count)
        yield calls
        durations = HistogramMetricFamily(
            "vmmd_rpc_call_seconds",
            "How long calls took, from their turn in the body to their result.",
            labels=["method"],
        )
        bounds = [str(bound_ns / 1e9) for bound_ns in _BOUNDS_NS] + ["+Inf"]
        for method, histogram in sorted(self._durations.items()):
            buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
            durations.add_metric([method], buckets, histogram.sum_ns / 1e9)
        yield durations

    def _sort_in(self) -> None:
        for (method, outcome), durations_ns in self._waiting.items():
            self._calls[method, outcome] += len(durations_ns)
            self._durations[method].add(durations_ns)
        self._waiting.clear()
