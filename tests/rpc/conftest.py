"""A real core behind a dispatcher, a VM, and memory in it."""

from collections.abc import AsyncIterator
from functools import partial

import pytest

from tests.rpc.wire import PAGE, REPLY_BYTES, Wire, set_region
from vmmd.api.methods import METHODS
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.machine.machine import Machines
from vmmd.rpc.dispatch import Dispatcher, DispatchLimits
from vmmd.rpc.handlers import About, Core, execute, execute_at_once
from vmmd.rpc.journal import Journal
from vmmd.rpc.requests import RequestLimits, Requests
from vmmd.rpc.scope import BodyScope

REQUESTS = RequestLimits(request_ids=3, request_id_bytes=4096, request_id_ms=600_000)


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    journal = Journal(100)
    kvm = System(
        engine="evaluated",
        cache_dir=None,
        workers=1,
        limits=Limits(guest_memory_bytes=1 << 24, vms=3, vcpus_per_vm=4, wait_ms=50, max_wait_ms=1000),
        observer=journal,
    )
    machines = Machines(kvm)
    core = Core(kvm, machines, About("1.2.3", "evaluated", 0, {"vms": 3}), journal, Requests(REQUESTS))
    limits = DispatchLimits(batch_calls=100, reply_bytes=REPLY_BYTES, json_depth=16)
    at_once = partial(execute_at_once, core)
    yield Wire(Dispatcher(METHODS, partial(execute, core), partial(BodyScope, kvm.vm), limits, at_once=at_once))
    await machines.close()
    await kvm.close()


@pytest.fixture
async def vm(wire: Wire) -> str:
    return (await wire.call("kvm.create_vm", name="test"))["vm"]


@pytest.fixture
async def memory(wire: Wire, vm: str) -> str:
    """Two pages of memory at gpa 0, in slot 0."""
    hva = (await wire.call("vm.map_host_memory", vm=vm, size=16 * PAGE))["userspace_addr"]
    Wire.result(await wire.send(set_region(vm, 0, 0, 2 * PAGE, hva)))
    return hva
