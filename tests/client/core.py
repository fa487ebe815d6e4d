"""The daemon's real core in this process, behind a transport that loses, refuses or swallows what a test wants."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from vmmd.api.methods import METHODS
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.machine.machine import Machines
from vmmd.rpc.caller import Caller
from vmmd.rpc.dispatch import Dispatcher, DispatchLimits, finished
from vmmd.rpc.handlers import About, Core, execute, execute_at_once
from vmmd.rpc.journal import Journal
from vmmd.rpc.requests import RequestLimits, Requests
from vmmd.rpc.scope import BodyScope
from vmmd_client import Client, ConnectError, Disconnected, MemoryTransport, ProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMITS = {"batch_calls": 200, "body_bytes": 1 << 18, "reply_bytes": 1 << 20}
NO_SUCH_SLOT_ID = 40_000


class Fault(enum.Enum):
    """What happens to one round trip."""

    UNSENT = "no connection"
    LOST_REQUEST = "the request is lost"
    LOST_REPLY = "the reply is lost"
    GARBLED_REPLY = "the reply is no JSON"
    REFUSED = "a slot call is refused"


Weather = Callable[[int], "Fault | None"]
"""Says what happens to the n-th round trip, counted from 0."""


def fair(_number: int) -> None:
    """Nothing happens."""


class Wire:
    """A transport to the core.

    Attributes:
        weather: what happens to the round trips from now on.
        round_trips: how many there were since the weather was set.
        bodies: what was asked in them.
    """

    def __init__(self, dispatcher: Dispatcher[BodyScope]) -> None:
        self._dispatcher = dispatcher
        self.weather: Weather = fair
        self.round_trips = 0
        self.bodies: list[bytes] = []

    def set_weather(self, weather: Weather) -> None:
        """Count round trips anew."""
        self.weather, self.round_trips, self.bodies = weather, 0, []

    async def answer(self, body: bytes) -> bytes:
        """Answer a body, by whatever way a test has put in place of `carry`."""
        return await self.carry(body)

    async def carry(self, body: bytes) -> bytes:
        """Carry a body there and its answer back, or not."""
        fault = self.weather(self.round_trips)
        self.round_trips += 1
        self.bodies.append(body)
        if fault is Fault.UNSENT:
            raise ConnectError("nobody listens")
        if fault is Fault.LOST_REQUEST:
            raise Disconnected("gone before it was read")
        if fault is Fault.REFUSED:
            body = refusable(body)
        answer = await finished(self._dispatcher.begin(body, Caller()))
        if fault is Fault.LOST_REPLY:
            raise Disconnected("gone before it had answered")
        if fault is Fault.GARBLED_REPLY:
            raise ProtocolError("the answer is no JSON")
        return answer or b""


def refusable(body: bytes) -> bytes:
    """Give the body with its last slot call made one that KVM refuses."""
    asked = json.loads(body)
    for entry in reversed(asked if isinstance(asked, list) else [asked]):
        if entry["method"] == "vm.set_user_memory_region":
            entry["params"]["slot"] = NO_SUCH_SLOT_ID
            break
        if entry["method"] == "vm.set_user_memory_region_list":
            entry["params"]["regions"][-1]["slot"] = NO_SUCH_SLOT_ID
            break
    return json.dumps(asked).encode()


def another_client(wire: Wire) -> Client:
    """Give a second client of the same core, which knows nothing of the first."""
    return Client(MemoryTransport(wire.answer), attempts=1)


@asynccontextmanager
async def core(
    lease_ms: int = 5_000, attempts: int = 1, guest_memory_bytes: int = 1 << 28
) -> AsyncIterator[tuple[Client, Wire]]:
    """Run a core, and give a client of it with the wire between them."""
    limits = Limits(guest_memory_bytes=guest_memory_bytes, vms=4, vcpus_per_vm=4, lease_ms=lease_ms)
    journal = Journal(100)
    requests = Requests(RequestLimits(request_ids=1000, request_id_bytes=1 << 20, request_id_ms=600_000))
    kvm = System(engine="evaluated", cache_dir=None, workers=1, limits=limits, observer=journal)
    machines = Machines(kvm)
    handlers = Core(kvm, machines, About("1.2.3", "evaluated", 0, LIMITS), journal, requests)
    bounds = DispatchLimits(batch_calls=LIMITS["batch_calls"], reply_bytes=LIMITS["reply_bytes"], json_depth=16)
    at_once = partial(execute_at_once, handlers)
    wire = Wire(Dispatcher(METHODS, partial(execute, handlers), partial(BodyScope, kvm.vm), bounds, at_once=at_once))
    try:
        yield Client(MemoryTransport(wire.answer), attempts=attempts), wire
    finally:
        await machines.close()
        await kvm.close()
