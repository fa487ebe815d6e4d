"""What happens, as those are told who want to know: a small value for each thing, and the door that they come through.

Values are made when all is over, and never while vCPUs are held: a hold's pause is some tens of microseconds. None of
them has the name of a hold, since the name is the key to it; holds have numbers beside their names.

It knows no reader. An observer is told on the event loop, and must not wait, fail or call back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import Exit
from vmmd.memory.region import Region

MOST_REGIONS = 16
"""How many changes of slots one event has at most; it counts the others."""


class VmCreated(NamedTuple):
    """A VM is there."""

    name: str | None
    is_cooperative: bool


class VmDestroyed(NamedTuple):
    """A VM is gone, and all that was in it."""


class VmStarted(NamedTuple):
    """The run loops of a VM were started."""


class VmStopped(NamedTuple):
    """All run loops of a VM have ended, since somebody stopped them."""


class VcpuEnded(NamedTuple):
    """A run loop has ended by itself: by an exit that nobody handles, or by an error of KVM_RUN."""

    vcpu: int
    exit: Exit | None
    errno: int | None = None
    message: str | None = None


class VcpuExit(NamedTuple):
    """KVM_RUN has returned an exit. `left_out`: how many of that reason came since the last one that was told."""

    vcpu: int
    exit: Exit
    left_out: int


class Kicked(NamedTuple):
    """A raw kick is done. `kicked`: how many vCPUs were inside KVM_RUN."""

    kicked: int
    kick_ns: int


class Resumed(NamedTuple):
    """A raw resume is done."""


class HoldOpened(NamedTuple):
    """A hold is open. `hold` is its number, here and below."""

    hold: int
    kicked: int
    kick_ns: int
    lease_ms: int | None
    generation: int


class HoldFailed(NamedTuple):
    """Something inside a hold has failed; its end will be a rollback."""

    hold: int
    errno: int


class HoldEnded(NamedTuple):
    """A hold is over, and the vCPUs go on. `became`: what its name tells from now on."""

    hold: int
    rolled_back: bool
    expired: bool
    became: str
    pause_ns: int
    generation: int


class SlotsChanged(NamedTuple):
    """The slot table has changed. `left_out`: how many of the changes are not in `regions`.

    `hold`: the number of the hold that they were made in; None without one.
    """

    generation: int
    regions: tuple[Region, ...]
    left_out: int
    hold: int | None


Event = (
    VmCreated
    | VmDestroyed
    | VmStarted
    | VmStopped
    | VcpuEnded
    | VcpuExit
    | Kicked
    | Resumed
    | HoldOpened
    | HoldFailed
    | HoldEnded
    | SlotsChanged
)


class Observer(Protocol):
    """Who is told."""

    def note(self, vm: str, event: Event) -> None:
        """Take note of what has happened in the VM of that id."""


Note = Callable[[Event], object]
"""The observer of one VM, as its parts see it."""


def ignore(event: Event) -> None:
    """Forget what has happened: the `Note` where nobody wants to know."""


def vcpu_ended(vcpu: int, ending: Exit | KvmError) -> VcpuEnded:
    """Give the event of a run loop that has ended by itself."""
    if isinstance(ending, KvmError):
        # Without its frames, which would keep memory.
        return VcpuEnded(vcpu, None, ending.errno, ending.message)
    return VcpuEnded(vcpu, ending)


def slots_changed(generation: int, regions: list[Region], hold: int | None) -> SlotsChanged:
    """Give the event of changes of slots, cut to what one event may have."""
    shown = tuple(regions[:MOST_REGIONS])
    return SlotsChanged(generation, shown, len(regions) - len(shown), hold)
