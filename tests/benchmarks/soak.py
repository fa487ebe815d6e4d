"""A daemon under mixed calls, failing clients, and VMs made and destroyed: what is left of it?

Whatever clients do, the daemon has to come out as it went in: no VM, no connection, no descriptor and no task more, and
its memory flat from the first quarter on. Its own metrics tell; they are read on the same socket.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from socket import SHUT_RDWR
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from tests.benchmarks.rpc import Server, vmmd

DEFAULT_S = 600.0
EACH = 4
"""How many clients of each kind there are at a time."""

KINDS = ("vm_life", "reads", "half_sent", "left_hold", "lonely_run")
"""The kinds of clients, by their methods below."""

PAGE = 4096
SIZE = 16 * PAGE
COUNTING = "1: addi a0, a0, 1\n   sd a0, 0x100(zero)\n   j 1b"
GROWTH_BYTES = 24 << 20
"""What the allocator may take more at the end than after the first quarter."""

_SETTLE_S = 20.0


@dataclass
class Summary:
    """What was done, and what is left.

    Attributes:
        done: How often each kind of client did its work.
        errors: What calls answered with that were to succeed.
        before, after: The daemon's gauges before the first client, and after the last.
        quarter_bytes: Its resident memory after the first quarter, VMs and all.
    """

    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    quarter_bytes: float = 0

    @property
    def left_over(self) -> dict[str, float]:
        """What there is more of than there was, memory aside."""
        names = ("vmmd_vms", "vmmd_connections", "vmmd_rpc_in_flight", "vmmd_event_loop_tasks", "process_open_fds")
        return {name: more for name in names if (more := self.after[name] - self.before[name]) > 0}

    @property
    def growth_bytes(self) -> float:
        """By how much the resident memory has grown since the first quarter."""
        return self.after["process_resident_memory_bytes"] - self.quarter_bytes


class _Soak:
    """The clients of one daemon."""

    def __init__(self, daemon: Server, session: aiohttp.ClientSession, until_s: float) -> None:
        self.summary = Summary()
        self._path = daemon.path
        self._session = session
        self._until_s = until_s
        self._random = random.Random(7)
        self._names = itertools.count()

    async def gauges(self) -> dict[str, float]:
        async with self._session.get("/metrics") as response:
            text = await response.text()
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }

    async def keep(self, kind: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do one kind of work until the time is over."""
        while time.monotonic() < self._until_s:
            await work()
            self.summary.done[kind] += 1

    async def ask(self, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
        """Ask a batch; give the results, and count what went wrong."""
        batch = [{"jsonrpc": "2.0", "id": index, "method": name, "params": p} for index, (name, p) in enumerate(calls)]
        async with self._session.post("/rpc", json=batch) as response:
            answers = await response.json()
        for (name, _), one in zip(calls, answers, strict=True):
            if "error" in one:
                self.summary.errors[f"{name}: {one['error']['message']:.100}"] += 1
        return [one.get("result") for one in answers]

    async def vm_life(self) -> None:
        """A VM from its creation to its end: memory, vCPUs that run, an atomic update, its dirty log."""
        ((made,),) = (await self.ask(("kvm.create_vm", {"name": "soak"})),)
        vm = {"vm": made["vm"]}
        mapped, assembled = await self.ask(
            ("vm.map_host_memory", vm | {"size": SIZE}), ("isa.assemble", {"source": COUNTING})
        )
        slot = {"slot": 0, "flags": 1, "guest_phys_addr": 0, "memory_size": SIZE}
        region = vm | slot | {"userspace_addr": mapped["userspace_addr"]}
        hold = {"hold": f"soak {next(self._names)}"}
        await self.ask(
            ("vm.set_user_memory_region", region),
            ("vm.write_guest_memory", vm | {"guest_phys_addr": 0, "data": assembled["code"]}),
            ("vm.create_vcpu", vm | {"vcpu": 0}),
            ("vm.create_vcpu", vm | {"vcpu": 1}),
            ("vm.start", vm),
        )
        await self.ask(
            ("vm.kick_all_running_vcpus", vm | hold | {"wait_ms": 20_000}),
            ("vm.set_user_memory_region", region | hold | {"memory_size": 0}),
            ("vm.set_user_memory_region", region | hold),
            ("vm.resume_all_kicked_vcpus", vm | hold),
        )
        await self.ask(("vm.get_dirty_log", vm | {"slot": 0}), ("vm.get_stats", vm), ("kvm.destroy_vm", vm))

    async def reads(self) -> None:
        """Calls that only read, some of them wrong, and a scrape."""
        calls = ("kvm.list_vms", "made.up")
        bodies = [json.dumps({"jsonrpc": "2.0", "id": 1, "method": name}).encode() for name in calls]
        for body in (b"{", *bodies):
            async with self._session.post("/rpc", data=body, headers={"Content-Type": "application/json"}) as response:
                await response.read()
        await self.gauges()

    async def half_sent(self) -> None:
        """A client that dies with a request half sent: in its head, in its body, or before the answer comes."""
        _, writer = await asyncio.open_unix_connection(str(self._path))
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "kvm.list_vms", "params": {}}).encode()
        head = f"POST /rpc HTTP/1.1\r\nHost: v\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        whole = head.encode() + body
        writer.write(whole[: self._random.randrange(len(whole) + 1)])
        with suppress(ConnectionError):
            await writer.drain()
        if self._random.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        # One that is answered, so that they do not come faster than they are accepted.
        await self.ask(("kvm.get_api_version", {}))

    async def left_hold(self) -> None:
        """A client that kicks over a WebSocket and dies: its hold is rolled back."""
        (made,) = await self.ask(("kvm.create_vm", {}))
        vm = {"vm": made["vm"]}
        async with self._session.ws_connect("/ws") as ws:
            hold = {"hold": f"left {next(self._names)}"}
            await ws.send_json({"jsonrpc": "2.0", "id": 1, "method": "vm.kick_all_running_vcpus", "params": vm | hold})
            await ws.receive()
            if self._random.random() < 0.5:
                ws.get_extra_info("socket").shutdown(SHUT_RDWR)
        await self.ask(("kvm.destroy_vm", vm))

    async def with_translated_code(self) -> dict[str, float]:
        """Have the daemon start all that it keeps, its translating process among it, and read the gauges then."""
        for _ in range(_MOST_WARM_RUNS):
            gauges = await self.gauges()
            if gauges["vmmd_translations_total"]:
                break
            await self.lonely_run()
        return gauges

    async def lonely_run(self) -> None:
        """A client that goes while a vCPU of its runs for it."""
        (made,) = await self.ask(("kvm.create_vm", {}))
        vm = {"vm": made["vm"]}
        (mapped, assembled, _) = await self.ask(
            ("vm.map_host_memory", vm | {"size": PAGE}),
            ("isa.assemble", {"source": COUNTING}),
            ("vm.create_vcpu", vm | {"vcpu": 0}),
        )
        slot = {"slot": 0, "flags": 0, "guest_phys_addr": 0, "memory_size": PAGE}
        await self.ask(
            ("vm.set_user_memory_region", vm | slot | {"userspace_addr": mapped["userspace_addr"]}),
            ("vm.write_guest_memory", vm | {"guest_phys_addr": 0, "data": assembled["code"]}),
        )
        run = {"jsonrpc": "2.0", "id": 1, "method": "vcpu.run", "params": vm | {"vcpu": 0}}
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05), self._session.post("/rpc", json=run) as response:
                await response.read()
        await self.ask(("kvm.destroy_vm", vm))


_MOST_WARM_RUNS = 200
"""Where nothing is translated then, nothing will be."""


async def soak(seconds: float) -> Summary:
    """Run a daemon under all of it for so many seconds, and see what is left."""
    with vmmd() as daemon:
        connector = aiohttp.UnixConnector(str(daemon.path), limit=0)
        async with aiohttp.ClientSession("http://vmmd", connector=connector) as session:
            run = _Soak(daemon, session, time.monotonic() + seconds)
            summary = run.summary
            summary.before = await run.with_translated_code()
            clients = [asyncio.create_task(run.keep(kind, getattr(run, kind))) for kind in KINDS for _ in range(EACH)]
            await asyncio.sleep(seconds / 4)
            summary.quarter_bytes = (await run.gauges())["process_resident_memory_bytes"]
            await asyncio.gather(*clients)
        async with aiohttp.ClientSession("http://vmmd", connector=aiohttp.UnixConnector(str(daemon.path))) as session:
            run._session = session
            # What was aborted is noticed a moment later.
            deadline_s = time.monotonic() + _SETTLE_S
            while True:
                summary.after = await run.gauges()
                if not summary.left_over or time.monotonic() > deadline_s:
                    return summary
                await asyncio.sleep(0.05)


async def measure(seconds: float = DEFAULT_S) -> Table:
    """Soak a daemon and print what came of it."""
    summary = await soak(seconds)
    table = Table("what", "figure", title=f"a soak of {seconds:g} s, {EACH} clients of each kind")
    for kind, count in sorted(summary.done.items()):
        table.add_row(kind.replace("_", " "), f"{count:,}")
    table.add_row("unexpected errors", str(dict(summary.errors) or "none"))
    table.add_row("left over", str(summary.left_over or "nothing"))
    mebibytes = [
        bytes_ / (1 << 20)
        for bytes_ in (
            summary.before["process_resident_memory_bytes"],
            summary.quarter_bytes,
            summary.after["process_resident_memory_bytes"],
        )
    ]
    table.add_row("resident memory: start, a quarter in, end (MiB)", ", ".join(f"{size:.1f}" for size in mebibytes))
    return table
