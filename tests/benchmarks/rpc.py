"""Calls a second through the daemon beside those of a bare aiohttp handler, and how long a call takes under load.

Both servers are processes on UNIX sockets, asked in turn by the same client, so that what else the machine does falls
on both; a ratio is of two turns that follow each other. The daemon runs as it is shipped, its log included.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.benchmarks.wire_load import Framing, Http, WebSocket, body, connect, drive

RUNS = 5
SHORT_RUNS = 3
TURN_S = 1.0
CONNECTIONS = 8
VCPUS = 64
LATENCY_TURN_S = 2.0
MANY_CONNECTIONS = 1000
PAGE = 4096
SPIN = "1: addi a0, a0, 1\n   j 1b"


@dataclass(frozen=True)
class Server:
    """A server's process, and its socket."""

    path: Path
    pid: int

    def cpu_s(self) -> float:
        """Seconds of processor time that it has taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def call(self, method: str, **params: Any) -> Any:
        """Make one call on a connection of its own."""
        framing = Http()
        with connect(self.path, framing) as connection:
            connection.sendall(framing.frame(body(method, **params)))
            received = bytearray()
            while not framing.end(received):
                received += connection.recv(1 << 16)
        answer = json.loads(received[received.index(b"\r\n\r\n") :])
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        return answer["result"]


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[Server]:
    """Run a server that takes its socket as the last argument, and says with a line that it is ready."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        path = Path(folder) / "socket"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("VMMD_")}
        process = subprocess.Popen(
            [sys.executable, *arguments, str(path)], stdout=subprocess.PIPE, stderr=log, env=clean
        )
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"no server: {(Path(folder) / 'log').read_text()}")
            yield Server(path, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def vmmd() -> contextlib.AbstractContextManager[Server]:
    """Run a daemon as it is shipped."""
    return server("-m", "vmmd", "serve", "--socket")


def slot_changes(daemon: Server) -> list[list[bytes]]:
    """Make a VM, and for each connection the calls that create and delete a slot of its own."""
    vm = daemon.call("kvm.create_vm")["vm"]
    hva = int(daemon.call("vm.map_host_memory", vm=vm, size=CONNECTIONS * PAGE)["userspace_addr"], 16)
    bodies = []
    for slot in range(CONNECTIONS):
        fields = {
            "vm": vm,
            "slot": slot,
            "flags": 0,
            "guest_phys_addr": slot * PAGE,
            "userspace_addr": hva + slot * PAGE,
        }
        bodies.append([body("vm.set_user_memory_region", **fields, memory_size=size) for size in (PAGE, 0)])
    return bodies


def side_by_side(
    table: Table, bare: Server, daemon: Server, framing: Framing, bodies: list[list[bytes]], runs: int
) -> None:
    """Add a row: what is called, how, calls a second of both, their ratio, and processor time a call of both."""
    rates: list[tuple[float, float]] = []
    costs: list[tuple[float, float]] = []
    for _ in range(runs):
        measured = []
        for asked in (bare, daemon):
            before_s = asked.cpu_s()
            calls = len(drive(asked.path, framing, bodies, TURN_S))
            measured.append((calls / TURN_S, (asked.cpu_s() - before_s) / calls * 1e6))
        rates.append((measured[0][0], measured[1][0]))
        costs.append((measured[0][1], measured[1][1]))
    ratios = [ours / theirs for theirs, ours in rates]
    cost = [statistics.median(column) for column in zip(*costs, strict=True)]
    table.add_row(
        f"{json.loads(bodies[0][0])['method']}, {type(framing).__name__}",
        f"{statistics.median(theirs for theirs, _ in rates):,.0f}",
        f"{statistics.median(ours for _, ours in rates):,.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        f"{cost[0]:.0f}, {cost[1]:.0f} = {cost[0] / cost[1]:.2f}",
    )


def under_guests(daemon: Server) -> list[list[float]]:
    """Give the latencies of calls, a list a run, while vCPUs run on every core."""
    vm = daemon.call("kvm.create_vm")["vm"]
    hva = daemon.call("vm.map_host_memory", vm=vm, size=PAGE)["userspace_addr"]
    region = {"slot": 0, "flags": 0, "guest_phys_addr": 0, "memory_size": PAGE, "userspace_addr": hva}
    daemon.call("vm.set_user_memory_region", vm=vm, **region)
    code = daemon.call("isa.assemble", source=SPIN)["code"]
    daemon.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=code)
    for vcpu in range(VCPUS):
        daemon.call("vm.create_vcpu", vm=vm, vcpu=vcpu)
    daemon.call("vm.start", vm=vm)
    runs = [drive(daemon.path, Http(), [[body("kvm.get_api_version")]], LATENCY_TURN_S) for _ in range(RUNS)]
    daemon.call("kvm.destroy_vm", vm=vm)
    return runs


def percentile_ms(latencies_s: Sequence[float], percent: float) -> float:
    """Give a percentile, in milliseconds."""
    return sorted(latencies_s)[int(len(latencies_s) * percent / 100)] * 1000


async def measure(*, short: bool = False) -> Table:
    """Measure calls a second side by side, latency under guests, and many connections; the first alone if `short`."""
    table = Table(
        "what", "bare a second", "vmmd a second", "ratio", "CPU µs a call: bare, vmmd", title="calls through the daemon"
    )
    with server("-m", "tests.benchmarks.bare_server") as bare, vmmd() as daemon:
        versions = [[body("kvm.get_api_version")]] * CONNECTIONS
        changes = slot_changes(daemon)
        for framing in (Http(), WebSocket()):
            for bodies in (versions, changes):
                side_by_side(table, bare, daemon, framing, bodies, SHORT_RUNS if short else RUNS)
        if short:
            return table
        runs = under_guests(daemon)
        p50, p99 = ([percentile_ms(run, percent) for run in runs] for percent in (50, 99))
        table.add_section()
        table.add_row(
            f"a call while {VCPUS} vCPUs run",
            "",
            "",
            f"p50 {statistics.median(p50):.2f} ms",
            f"p99 {statistics.median(p99):.2f} ({min(p99):.2f}-{max(p99):.2f}) ms, median of {RUNS} runs",
        )
        latencies_s = drive(daemon.path, Http(), [[body("kvm.get_api_version")]] * MANY_CONNECTIONS, TURN_S)
        table.add_row(
            f"{MANY_CONNECTIONS:,} connections",
            "",
            f"{len(latencies_s) / TURN_S:,.0f}",
            f"p50 {percentile_ms(latencies_s, 50):.0f} ms",
            f"p99 {percentile_ms(latencies_s, 99):.0f} ms",
        )
    return table
