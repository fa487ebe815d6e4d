"""What handlers are given, and where they are written down."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vmmd.kvm.system import System
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.machine.machine import Machine, Machines
from vmmd.rpc.guest_totals import GuestTotals
from vmmd.rpc.journal import Journal
from vmmd.rpc.requests import Requests
from vmmd.rpc.scope import BodyScope
from vmmd.rpc.timings import Timings


@dataclass(frozen=True)
class About:
    """What the daemon says about itself.

    Attributes:
        version: Its version.
        engine: "compiled" or "evaluated".
        started_ns: When it started, on the monotonic clock.
        limits: Every limit by its name in the configuration.
    """

    version: str
    engine: str
    started_ns: int
    limits: Mapping[str, int]


@dataclass(frozen=True)
class Core:
    """The core, as handlers see it.

    Attributes:
        kvm: The system.
        machines: Its VMs with their run loops.
        about: What the daemon says about itself.
        journal: What has happened; the system's observer.
        requests: Those that have names.
        timings: What kicks and pauses took.
        totals: What destroyed VMs leave to metrics.
    """

    kvm: System
    machines: Machines
    about: About
    journal: Journal
    requests: Requests
    timings: Timings = field(default_factory=Timings)
    totals: GuestTotals = field(default_factory=GuestTotals)

    def vm(self, params: Any) -> Vm:
        """Give the VM that a call names."""
        return self.kvm.vm(params.vm)

    def vcpu(self, params: Any) -> Vcpu:
        """Give the vCPU that a call names."""
        return self.kvm.vm(params.vm).vcpu(params.vcpu)

    def machine(self, params: Any) -> Machine:
        """Give the machine around the VM that a call names."""
        return self.machines.get(params.vm)


Handler = Callable[[Core, Any, BodyScope], Awaitable[Any]]
"""Takes the core, the checked parameters and the body's scope, and gives the result's model; raises `KvmError`."""

HandlerAtOnce = Callable[[Core, Any, BodyScope], Any]
"""Does the same here and now, opens no hold, and its result is small; or gives `HAS_TO_WAIT`, with nothing done."""

HAS_TO_WAIT = object()
"""What a handler gives that would have to wait for somebody, and has done nothing."""

HANDLERS: dict[str, Handler] = {}
"""Handlers of what may have to wait, by their methods' names."""

HANDLERS_AT_ONCE: dict[str, HandlerAtOnce] = {}
"""Handlers of what need not wait, or not always; in that case there is one in `HANDLERS` too."""


def handles(name: str) -> Callable[[Handler], Handler]:
    """Write a handler down as the method's."""

    def register(handler: Handler) -> Handler:
        HANDLERS[name] = handler
        return handler

    return register


def handles_at_once(name: str) -> Callable[[HandlerAtOnce], HandlerAtOnce]:
    """Write a handler down as the method's that answers at once."""

    def register(handler: HandlerAtOnce) -> HandlerAtOnce:
        HANDLERS_AT_ONCE[name] = handler
        return handler

    return register
