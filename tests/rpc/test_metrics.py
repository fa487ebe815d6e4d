"""Metrics: what is counted under which labels, and that no sum goes down."""

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.rpc.conftest import REQUESTS
from vmmd.api.methods import METHODS
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.machine.machine import Machines
from vmmd.rpc.caller import Caller
from vmmd.rpc.dispatch import Dispatcher, DispatchLimits, finished
from vmmd.rpc.handlers import About, Core, execute, execute_at_once
from vmmd.rpc.journal import Journal
from vmmd.rpc.metrics import Gauges, Metrics
from vmmd.rpc.requests import Requests
from vmmd.rpc.scope import BodyScope

COUNT_TO_TEN = "li a0, 10\n1: addi a0, a0, -1\n bnez a0, 1b\n sd a0, 0(s0)"


class Measured:
    """A core behind a dispatcher that is measured."""

    def __init__(self, core: Core) -> None:
        self.metrics = Metrics(core, Gauges(lambda: 3, lambda: 2))
        self._observed = 0
        limits = DispatchLimits(batch_calls=100, reply_bytes=1 << 16, json_depth=16)
        self._dispatcher = Dispatcher(
            METHODS,
            partial(execute, core),
            partial(BodyScope, core.kvm.vm),
            limits,
            self._observe,
            partial(execute_at_once, core),
        )

    def _observe(self, calls: Any) -> None:
        self._observed += len(calls)
        self.metrics.observe_calls(calls)

    async def ask(self, *calls: tuple[str, dict[str, Any]], text: str | None = None) -> list[Any]:
        """Ask a batch of calls, or what the text holds; give the answers."""
        batch = [{"jsonrpc": "2.0", "id": 1, "method": name, "params": params} for name, params in calls]
        answer = json.loads(
            await finished(self._dispatcher.begin((text or json.dumps(batch)).encode(), Caller())) or b""
        )
        return answer if isinstance(answer, list) else [answer]

    async def result(self, name: str, **params: Any) -> Any:
        (answer,) = await self.ask((name, params))
        return answer["result"]

    async def sample(self, name: str, **labels: str) -> float:
        """Give a sample's value; 0 where it is not there."""
        return (await self.samples()).get((name, labels_key(labels)), 0)

    async def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = (await self.metrics.render()).decode()
        return {
            (sample.name, labels_key(sample.labels)): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def labels_key(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


@pytest.fixture
async def measured() -> AsyncIterator[Measured]:
    limits = Limits(guest_memory_bytes=1 << 24, vms=3, vcpus_per_vm=4, wait_ms=50, max_wait_ms=1000)
    journal = Journal(100)
    kvm = System(engine="evaluated", cache_dir=None, workers=1, limits=limits, observer=journal)
    machines = Machines(kvm)
    yield Measured(Core(kvm, machines, About("1.2.3", "evaluated", 0, {}), journal, Requests(REQUESTS)))
    await machines.close()
    await kvm.close()


async def test_calls_are_counted_by_method_and_outcome(measured: Measured) -> None:
    vm = (await measured.result("kvm.create_vm"))["vm"]
    await measured.ask(("vm.resume_all_kicked_vcpus", {"vm": vm, "hold": "never"}), ("vm.get_stats", {"vm": "vm99"}))
    await measured.ask(("vm.get_stats", {}))
    for method, outcome in (
        ("kvm.create_vm", "ok"),
        ("vm.resume_all_kicked_vcpus", "EINVAL"),
        ("vm.get_stats", "EBADF"),
        ("vm.get_stats", "invalid_params"),
    ):
        assert await measured.sample("vmmd_rpc_calls_total", method=method, outcome=outcome) == 1, (method, outcome)
    assert await measured.sample("vmmd_rpc_call_seconds_count", method="kvm.create_vm") == 1


async def test_whatever_names_callers_make_up_they_are_one_label(measured: Measured) -> None:
    await measured.ask(*[(f"made.up{number}", {}) for number in range(50)])
    for text in ("{", "[]", "[1, 2]", '{"jsonrpc": "1.0", "id": 1}'):
        await measured.ask(text=text)
    labels = {dict(labels)["method"] for name, labels in await measured.samples() if name == "vmmd_rpc_calls_total"}
    assert labels == {"unknown"}
    assert await measured.sample("vmmd_rpc_calls_total", method="unknown", outcome="method_not_found") == 50
    assert await measured.sample("vmmd_rpc_calls_total", method="unknown", outcome="parse_error") == 1
    assert await measured.sample("vmmd_rpc_calls_total", method="unknown", outcome="invalid_request") == 4


async def test_holds_are_counted_by_how_they_end_and_kicks_and_pauses_measured(measured: Measured) -> None:
    vm = (await measured.result("kvm.create_vm"))["vm"]
    kick = ("vm.kick_all_running_vcpus", {"vm": vm, "hold": "kept"})
    await measured.ask(kick, ("vm.resume_all_kicked_vcpus", {"vm": vm, "hold": "kept"}))
    kick[1]["hold"] = "undone"
    await measured.ask(kick, ("made.up", {}), ("vm.resume_all_kicked_vcpus", {"vm": vm, "hold": "undone"}))
    kick[1]["hold"] = "left"
    await measured.ask(kick)
    assert await measured.sample("vmmd_holds_open") == 1
    assert await measured.sample("vmmd_holds_ended_total", outcome="lapsed") == 0
    await measured.result("kvm.destroy_vm", vm=vm)
    for outcome in ("kept", "rolled_back", "lapsed"):
        assert await measured.sample("vmmd_holds_ended_total", outcome=outcome) == 1, outcome
    assert await measured.sample("vmmd_holds_opened_total") == 3
    assert await measured.sample("vmmd_holds_open") == 0
    assert await measured.sample("vmmd_kick_seconds_count", kind="hold") == 3
    assert await measured.sample("vmmd_pause_seconds_count") == 2
    # Ten microseconds to a second, where pauses lie.
    bounds = {float(dict(key)["le"]) for name, key in await measured.samples() if name == "vmmd_pause_seconds_bucket"}
    assert {1e-5, 1e-3, 1.0} <= bounds


async def test_what_guests_did_outlives_them(measured: Measured) -> None:
    vm = (await measured.result("kvm.create_vm"))["vm"]
    hva = (await measured.result("vm.map_host_memory", vm=vm, size=4096))["userspace_addr"]
    region = {"slot": 0, "flags": 0, "guest_phys_addr": 0, "memory_size": 4096, "userspace_addr": hva}
    await measured.result("vm.set_user_memory_region", vm=vm, **region)
    code = (await measured.result("isa.assemble", source=COUNT_TO_TEN))["code"]
    await measured.result("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=code)
    await measured.result("vm.create_vcpu", vm=vm, vcpu=0)
    await measured.result("vcpu.set_regs", vm=vm, vcpu=0, regs={"s0": 0x10000})
    assert (await measured.result("vcpu.run", vm=vm, vcpu=0))["exit_reason"] == "KVM_EXIT_MMIO"
    before = await measured.sample("vmmd_instructions_total")
    assert before == 21
    assert await measured.sample("vmmd_exits_total", reason="KVM_EXIT_MMIO") == 1
    assert [await measured.sample(f"vmmd_{name}") for name in ("vms", "vcpus", "memslots")] == [1, 1, 1]
    assert await measured.sample("vmmd_guest_memory_bytes") == 4096
    await measured.result("kvm.destroy_vm", vm=vm)
    assert await measured.sample("vmmd_instructions_total") == before
    assert await measured.sample("vmmd_exits_total", reason="KVM_EXIT_MMIO") == 1
    assert [await measured.sample(f"vmmd_{name}") for name in ("vms", "vcpus", "memslots")] == [0, 0, 0]


async def test_a_vm_that_was_never_read_is_counted_when_it_goes(measured: Measured) -> None:
    for _ in range(2):
        vm = (await measured.result("kvm.create_vm"))["vm"]
        await measured.result("vm.create_vcpu", vm=vm, vcpu=0)
        await measured.ask(("vcpu.run", {"vm": vm, "vcpu": 0}))
        await measured.result("kvm.destroy_vm", vm=vm)
    exits = {key: value for (name, key), value in (await measured.samples()).items() if name == "vmmd_exits_total"}
    assert sum(exits.values()) == 2


async def test_what_lies_around_the_core_is_read_when_asked(measured: Measured) -> None:
    measured.metrics.observe_refusal(401)
    measured.metrics.observe_lag(0.003)
    assert await measured.sample("vmmd_connections") == 3
    assert await measured.sample("vmmd_rpc_in_flight") == 2
    assert await measured.sample("vmmd_http_refusals_total", status="401") == 1
    assert await measured.sample("vmmd_event_loop_lag_seconds_bucket", le="0.005") == 1
    assert await measured.sample("vmmd_event_loop_lag_seconds_bucket", le="0.002") == 0
    assert await measured.sample("vmmd", version="1.2.3", engine="evaluated") == 1
