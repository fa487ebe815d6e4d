"""A reader of the journal: one WebSocket's, which is sent the events from its place on for as long as it stands.

It reads a few events at a time, and the next only when those are with the peer's socket; so a slow reader falls behind,
and where the journal has lost what it has not read, it is sent a gap in its place.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from vmmd.api import events
from vmmd.api.errors import errno_name
from vmmd.api.memslots import RegionInfo
from vmmd.kvm import observer
from vmmd.rpc.handlers.translate import exit_result
from vmmd.rpc.journal import Entry, Journal

# Events that are read at a time.
_MOST = 64


class Subscription:
    """A place in the journal.

    Args:
        journal: What is read.
        vm: Whose events are sent; None: everybody's.
        after: The number of the last event that the reader has seen.
        is_of_another_epoch: Whether that was in another life of the daemon: it is told that there is a gap.
    """

    def __init__(self, journal: Journal, vm: str | None, after: int, *, is_of_another_epoch: bool) -> None:
        self._journal = journal
        self._vm = vm
        self._after = after
        self._starts_with_gap = is_of_another_epoch

    async def run(self, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Send events for good; `send` takes the parameters of one notification, and waits while the peer is slow."""
        if self._starts_with_gap:
            await send(_gap(self._journal.oldest - 1, None))
            self._after = self._journal.oldest - 1
        while True:
            await self._journal.until_behind(self._after)
            await self._send_next(send)

    async def finish(self, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Send what there is, and no more."""
        while self._after < self._journal.last:
            await self._send_next(send)

    async def _send_next(self, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        missed, entries = self._journal.read(self._after, _MOST)
        if missed:
            self._after += missed
            await send(_gap(self._after, missed))
        for entry in entries:
            # Before it is sent: a frame that was begun goes out, also where the wait behind it is cancelled.
            self._after = entry.seq
            if self._vm is None or entry.vm == self._vm:
                await send(_dump(wire_event(entry)))


def wire_event(entry: Entry) -> events.Event:
    """Give the wire's form of an event."""
    common: dict[str, Any] = {"seq": entry.seq, "time": _time(entry.time_ns), "vm": entry.vm}
    return _WIRE[type(entry.event)](entry.event, common)


def _vm_created(event: observer.VmCreated, common: dict[str, Any]) -> events.Event:
    execution = "cooperative" if event.is_cooperative else "parallel"
    return events.VmCreatedEvent(**common, name=event.name, execution=execution)


def _vcpu_ended(event: observer.VcpuEnded, common: dict[str, Any]) -> events.Event:
    if event.exit is not None:
        return events.VcpuEndedEvent(**common, vcpu=event.vcpu, exit=exit_result(event.exit))
    number = errno_name(event.errno or 0)
    return events.VcpuEndedEvent(**common, vcpu=event.vcpu, errno=number, message=event.message)


def _vcpu_exit(event: observer.VcpuExit, common: dict[str, Any]) -> events.Event:
    return events.VcpuExitEvent(**common, vcpu=event.vcpu, exit=exit_result(event.exit), left_out=event.left_out)


def _slots_changed(event: observer.SlotsChanged, common: dict[str, Any]) -> events.Event:
    shown = tuple(RegionInfo(**asdict(region)) for region in event.regions)
    return events.SlotsChangedEvent(
        **common, generation=event.generation, hold=event.hold, regions=shown, left_out=event.left_out
    )


def _hold_failed(event: observer.HoldFailed, common: dict[str, Any]) -> events.Event:
    return events.HoldFailedEvent(**common, hold=event.hold, errno=errno_name(event.errno) or str(event.errno))


def _hold_ended(event: observer.HoldEnded, common: dict[str, Any]) -> events.Event:
    rest = {"hold": event.hold, "became": event.became, "pause_ns": event.pause_ns, "generation": event.generation}
    if event.expired:
        return events.HoldExpiredEvent(**common, **rest)
    if event.rolled_back:
        return events.HoldRolledBackEvent(**common, **rest)
    return events.HoldResumedEvent(**common, **rest)


_WIRE: dict[type, Callable[[Any, dict[str, Any]], events.Event]] = {
    observer.VmCreated: _vm_created,
    observer.VmDestroyed: lambda _, common: events.VmDestroyedEvent(**common),
    observer.VmStarted: lambda _, common: events.VmStartedEvent(**common),
    observer.VmStopped: lambda _, common: events.VmStoppedEvent(**common),
    observer.VcpuEnded: _vcpu_ended,
    observer.VcpuExit: _vcpu_exit,
    observer.Kicked: lambda event, common: events.KickedEvent(**common, **event._asdict()),
    observer.Resumed: lambda _, common: events.ResumedEvent(**common),
    observer.HoldOpened: lambda event, common: events.HoldOpenedEvent(**common, **event._asdict()),
    observer.HoldFailed: _hold_failed,
    observer.HoldEnded: _hold_ended,
    observer.SlotsChanged: _slots_changed,
}


def _gap(seq: int, missed: int | None) -> dict[str, Any]:
    return _dump(events.GapEvent(seq=seq, time=_time(time.time_ns()), vm=None, missed=missed))


def _dump(event: events.Event) -> dict[str, Any]:
    # What a member has by default stays: the type is one. Of an exit only what belongs to its reason is there.
    exit_ = getattr(event, "exit", None)
    given = event.model_dump(mode="json", exclude={"exit"})
    if exit_ is not None:
        given["exit"] = exit_.model_dump(mode="json", exclude_unset=True)
    return given


def _time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
