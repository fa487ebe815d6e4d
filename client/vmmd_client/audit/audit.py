"""The audit itself: events in, findings out. It groups slot calls to updates and watches who is inside KVM_RUN.

An update is a run of slot calls on one VM by one thread, with no KVM_RUN of that thread between them and no gap longer
than `gap_us`; while a range that it took away has not been given back once, the gap may be `OPEN_GAP_US`: a VMM's
thread that is preempted between its delete and its create has not ended its update. A recording is read once, in its
own order, and what is kept grows with the updates and not with the lines. The audit does no I/O.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .events import (
    Event,
    FdClosed,
    FdMade,
    GuestMode,
    LogCall,
    Run,
    RunBegins,
    RunEnds,
    SlotCall,
    SlotCallBegins,
    SlotCallEnds,
    ThreadMade,
    Woken,
)
from .lanes import Lane
from .updates import Update, change, pieces
from .vms import Vm, Vms

DEFAULT_GAP_US = 5_000
"""Slot calls further apart than this belong to different updates, in microseconds."""

OPEN_GAP_US = 100_000
"""The same while a range that the update took away has not been given back once."""

MOST_KEPT_CALLS = 50_000
"""Of how many slot calls the arguments are kept, for pictures and replays; every update's findings are kept."""


@dataclass(slots=True)
class VmFindings:
    """What one VM of a recording did.

    Attributes:
        vm: the VM; its slots are those that stood at the end.
        updates: its memory map updates, in the order in which they began.
        lanes: for each thread that was inside KVM_RUN of this VM: when.
    """

    vm: Vm
    updates: list[Update] = field(default_factory=list)
    lanes: dict[int, Lane] = field(default_factory=dict)

    @property
    def exposed(self) -> int:
        """How many updates are exposed."""
        return sum(update.exposed for update in self.updates)

    @property
    def needs_hold(self) -> int:
        """How many updates add memory where they delete some."""
        return sum(update.needs_hold for update in self.updates)

    @property
    def longest_hole_us(self) -> int:
        """How long the longest hole stood open; 0 where there was none."""
        return max((hole.open_us for update in self.updates for hole in update.holes), default=0)


@dataclass(slots=True)
class Findings:
    """What a recording holds.

    Attributes:
        vms: every VM with at least one slot call or vCPU.
        has_tracepoints: whether it tells guest mode from sleep.
        guesses: how many threads were put to a process without the recording saying so.
    """

    vms: list[VmFindings]
    has_tracepoints: bool
    guesses: int


class _Stay:
    """A time in guest mode, as `Run` is one inside KVM_RUN."""

    __slots__ = ("thread",)

    def __init__(self, thread: int) -> None:
        self.thread = thread


_T = TypeVar("_T")


class _Window(Generic[_T]):
    """Who was somewhere at any time between an update's first delete and its last call.

    Attributes:
        is_open: whether the first delete has been.
        seen: who was there until the last call's end.
        pending: who counts if another call of the update ends.
    """

    __slots__ = ("is_open", "pending", "seen")

    def __init__(self) -> None:
        self.is_open = False
        self.seen: dict[_T, None] = {}
        self.pending: list[_T] = []

    def call_ends(self, *, took_memory: bool) -> None:
        """A call of the update has ended: who came before that was there in the meantime."""
        self.is_open = self.is_open or took_memory
        if self.is_open:
            self.seen.update(dict.fromkeys(self.pending))
        self.pending = []


class _Growing:
    """An update to which calls may still come."""

    __slots__ = ("runs", "stays", "update", "vm")

    def __init__(self, vm: Vm, update: Update) -> None:
        self.vm = vm
        self.update = update
        self.runs: _Window[Run] = _Window()
        self.stays: _Window[_Stay] = _Window()

    def takes(self, begin_us: int, gap_us: int) -> bool:
        """Tell by the time since its last call whether a call of its thread still belongs to it."""
        if not self.update.changes:
            return True
        since_us = begin_us - self.update.changes[-1].call.answered_us
        if since_us <= gap_us or since_us > OPEN_GAP_US:
            return since_us <= gap_us
        if not any(step.removed for step in self.update.changes):
            return False
        return any(piece.is_missed for piece in pieces(self.update.changes))


class Audit:
    """Takes events and keeps findings.

    Args:
        gap_us: the longest time from one call's end to the next one's begin within an update, in microseconds.
    """

    def __init__(self, *, gap_us: int = DEFAULT_GAP_US) -> None:
        self._gap_us = gap_us
        self._vms = Vms()
        self._found: dict[Vm, VmFindings] = {}
        self._growing: dict[tuple[int, Vm], _Growing] = {}
        self._done: list[_Growing] = []
        self._kept_calls = 0
        self._inside: dict[int, tuple[Run, Vm | None]] = {}
        self._in_guest: dict[int, _Stay] = {}
        self._has_tracepoints = False
        self._now_us = 0
        self._take: dict[type, Callable[..., None]] = {
            RunBegins: self._run_begins,
            RunEnds: self._run_ends,
            SlotCallBegins: self._call_begins,
            SlotCallEnds: self._call_ends,
            FdMade: self._fd_made,
            FdClosed: self._fd_closed,
            ThreadMade: self._vms.thread_made,
            LogCall: self._log_call,
            GuestMode: self._guest_mode,
            Woken: self._woken,
        }

    def take(self, events: Iterable[Event]) -> None:
        """Take events in the order in which they happened."""
        for event in events:
            self._take[type(event)](event)

    def findings(self) -> Findings:
        """Close every update and give what was found; nothing may be taken any more."""
        for key in list(self._growing):
            self._close(key)
        for thread, (run, _) in list(self._inside.items()):
            run.end_us = self._now_us
            self._leave(thread, self._now_us)
        for growing in self._done:
            self._seal(growing)
        found = [self._found[vm] for vm in self._vms.all if vm in self._found]
        return Findings(found, self._has_tracepoints, self._vms.guesses)

    def _findings_of(self, vm: Vm) -> VmFindings:
        if vm not in self._found:
            self._found[vm] = VmFindings(vm)
        return self._found[vm]

    def _call_begins(self, event: SlotCallBegins) -> None:
        call = event.call
        self._now_us = call.begin_us
        key = call.thread, self._vms.of_vm_fd(call.thread, call.vm_fd)
        growing = self._growing.get(key)
        if growing is not None and not growing.takes(call.begin_us, self._gap_us):
            self._close(key)
            growing = None
        if growing is None:
            vm = key[1]
            growing = _Growing(vm, Update(call.thread, call.vm_fd, map_known=vm.unknown_since_us is None))
            self._growing[key] = growing
        if not growing.runs.is_open:
            # Should this call be the first delete, then whoever is there now is inside; who left before it is not.
            growing.runs.pending = [
                run
                for run, vm in self._inside.values()
                if run.thread != call.thread and (vm is None or vm is growing.vm)
            ]
            growing.stays.pending = list(self._in_guest.values())

    def _call_ends(self, event: SlotCallEnds) -> None:
        call = event.call
        self._now_us = max(self._now_us, call.answered_us)
        vm = self._vms.of_vm_fd(call.thread, call.vm_fd)
        growing = self._growing.get((call.thread, vm))
        if growing is None:
            return
        if call.errno is None:
            self._learn(vm, call)
        step = change(vm.slots, call)
        if not growing.update.changes:
            self._findings_of(vm).updates.append(growing.update)
        growing.update.add(step)
        growing.runs.call_ends(took_memory=step.removed is not None)
        growing.stays.call_ends(took_memory=step.removed is not None)

    @staticmethod
    def _learn(vm: Vm, call: SlotCall) -> None:
        """Keep account of what a successful call says about the map that is not in the recording."""
        if call.region is None:
            vm.unseen_calls += 1
            if vm.unknown_since_us is None:
                vm.unknown_since_us = call.begin_us
        elif not call.region.memory_size and call.region.slot not in vm.slots:
            vm.unseen_slots += 1

    def _run_begins(self, event: RunBegins) -> None:
        run = event.run
        self._now_us = run.begin_us
        vm = self._vms.of_vcpu_fd(run.thread, run.vcpu_fd)
        self._inside[run.thread] = run, vm
        for key, growing in list(self._growing.items()):
            last_us = growing.update.changes[-1].call.answered_us if growing.update.changes else run.begin_us
            if key[0] == run.thread or run.begin_us - last_us > max(OPEN_GAP_US, self._gap_us):
                self._close(key)
            elif vm is None or vm is growing.vm:
                growing.runs.pending.append(run)

    def _run_ends(self, event: RunEnds) -> None:
        run = event.run
        end_us = run.begin_us if run.end_us is None else run.end_us
        self._now_us = max(self._now_us, end_us)
        if run.thread in self._inside and self._inside[run.thread][0] is run:
            self._leave(run.thread, end_us)

    def _leave(self, thread: int, end_us: int) -> None:
        run, vm = self._inside.pop(thread)
        if vm is not None and not run.never_started:
            self._findings_of(vm).lanes.setdefault(thread, Lane()).add(run.begin_us, end_us)

    def _fd_made(self, event: FdMade) -> None:
        self._now_us = event.at_us
        self._ended(self._vms.made(event))

    def _fd_closed(self, event: FdClosed) -> None:
        self._ended(self._vms.closed(event))

    def _ended(self, vm: Vm | None) -> None:
        for key in [key for key in self._growing if key[1] is vm]:
            self._close(key)

    def _log_call(self, event: LogCall) -> None:
        self._vms.of_vm_fd(event.thread, event.vm_fd).log_calls += 1

    def _guest_mode(self, event: GuestMode) -> None:
        self._has_tracepoints = True
        if not event.entered:
            self._in_guest.pop(event.thread, None)
            return
        stay = self._in_guest[event.thread] = _Stay(event.thread)
        for growing in self._growing.values():
            growing.stays.pending.append(stay)

    def _woken(self, event: Woken) -> None:
        # It slept inside KVM_RUN, so it was not in guest mode: an exit that was lost is made good.
        self._has_tracepoints = True
        self._in_guest.pop(event.thread, None)

    def _close(self, key: tuple[int, Vm]) -> None:
        growing = self._growing.pop(key)
        update = growing.update
        if not update.changes:
            return
        update.close()
        self._kept_calls += update.calls
        if self._kept_calls > MOST_KEPT_CALLS:
            update.changes = []
        growing.runs.pending = []
        growing.stays.pending = []
        self._done.append(growing)

    def _seal(self, growing: _Growing) -> None:
        """Write down who was inside; only now is it known which runs ended in EAGAIN."""
        update = growing.update
        runs = [run for run in growing.runs.seen if not run.never_started]
        update.vcpus_inside = tuple(sorted({run.thread for run in runs}))
        update.stays = tuple(
            (run.thread, run.begin_us, run.begin_us if run.end_us is None else run.end_us) for run in runs
        )
        if self._has_tracepoints:
            in_guest = {stay.thread for stay in growing.stays.seen}
            update.in_guest_mode = tuple(thread for thread in update.vcpus_inside if thread in in_guest)


def audit(events: Iterable[Event], *, gap_us: int = DEFAULT_GAP_US) -> Findings:
    """Audit a whole recording's events."""
    auditor = Audit(gap_us=gap_us)
    auditor.take(events)
    return auditor.findings()
