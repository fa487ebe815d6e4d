"""The audit itself: events in, findings out. It groups slot calls to updates and watches who is inside KVM_RUN.

An update is a run of slot calls on one VM by one thread, with no KVM_RUN of that thread between them and no gap longer
than `gap_us`; while a range that it took away has not been given back once, the gap may be `OPEN_GAP_US`: a VMM's
thread that is preempted between its delete and its create has not ended its update. A call that is under way keeps its
update open however long it takes. What an update that ended by its gap alone still misses is carried: a call of the
same thread that gives it back within `OPEN_GAP_US`, with no KVM_RUN of that thread between, ends a hole of the update
that took it away, and who was inside until then was inside that update.

A recording is read once, in its own order, and what is kept grows with the updates and not with the lines. The audit
does no I/O.
"""

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

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
from .growing import MOST_CARRIED, OPEN_GAP_US, Growing, GrowingUpdates
from .lanes import Lane
from .stays import FOR_EVER, Stay, StayLog
from .updates import Hole, Update, change
from .vms import Vm, Vms

DEFAULT_GAP_US = 5_000
"""Slot calls further apart than this belong to different updates, in microseconds."""

MOST_KEPT_CALLS = 50_000
"""Of how many slot calls the arguments are kept, for pictures and replays; every update's findings are kept."""

MOST_KEPT_STAYS = 200_000
"""How many KVM_RUNs inside updates are kept, for pictures; who was inside is kept of every update."""

_AT_ONCE = 512
"""How many events are taken in one go."""


@dataclass(slots=True)
class VmFindings:
    """What one VM of a recording did.

    Attributes:
        vm: the VM; its slots are those that stood at the end.
        updates: its memory map updates, in the order in which they began.
        lanes: for each thread that was inside KVM_RUN of this VM: when.
        vcpu_ids: for each of these threads the id of its vCPU, where the recording shows it.
    """

    vm: Vm
    updates: list[Update] = field(default_factory=list)
    lanes: dict[int, Lane] = field(default_factory=dict)
    vcpu_ids: dict[int, int] = field(default_factory=dict)

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
        has_tracepoints: whether it tells guest mode from sleep: it has a kvm_entry or a kvm_exit.
        guesses: how many threads were put to a process without the recording saying so.
    """

    vms: list[VmFindings]
    has_tracepoints: bool
    guesses: int


class Audit:
    """Takes events and keeps findings.

    Args:
        gap_us: the longest time from one call's end to the next one's begin within an update, in microseconds.
    """

    def __init__(self, *, gap_us: int = DEFAULT_GAP_US) -> None:
        self._gap_us = gap_us
        self._patience_us = max(OPEN_GAP_US, gap_us)
        self._vms = Vms()
        self._found: dict[Vm, VmFindings] = {}
        self._growing = GrowingUpdates()
        self._kept_calls = 0
        self._kept_stays = 0
        self._event = 0
        self._inside: dict[int, tuple[Run, Vm | None, Stay]] = {}
        self._runs: dict[Vm | None, StayLog] = {}
        self._in_guest: dict[int, Stay] = {}
        self._guest_mode_log = StayLog(self._needed_since)
        self._mode_known: set[int] = set()
        self._unsettled: list[tuple[Update, list[Run]]] = []
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
        events = iter(events)
        # The reader and the audit take turns; event by event, each would push the other out of the processor's caches.
        while some := list(itertools.islice(events, _AT_ONCE)):
            for event in some:
                self._event += 1
                self._take[type(event)](event)

    def findings(self) -> Findings:
        """Close every update and give what was found; nothing may be taken any more."""
        for growing in self._growing.everyone():
            self._close(growing)
        for thread, (run, _, _) in list(self._inside.items()):
            run.end_us = self._now_us
            self._leave(thread, self._now_us)
        for update, runs in self._unsettled:
            self._settle(update, runs)
        found = [self._found[vm] for vm in self._vms.all if vm in self._found]
        has_tracepoints = bool(self._mode_known)
        for update in (update for one in found for update in one.updates):
            if has_tracepoints:
                known = update.in_guest_mode or ()
                update.in_guest_mode = tuple(thread for thread in update.vcpus_inside if thread in known)
                update.mode_unknown = tuple(
                    thread
                    for thread in update.vcpus_inside
                    if thread not in known and (thread in update.mode_unknown or thread not in self._mode_known)
                )
        return Findings(found, has_tracepoints, self._vms.guesses)

    def _needed_since(self) -> int:
        return self._growing.needed_since

    def _findings_of(self, vm: Vm) -> VmFindings:
        if vm not in self._found:
            self._found[vm] = VmFindings(vm)
        return self._found[vm]

    def _call_begins(self, event: SlotCallBegins) -> None:
        call = event.call
        self._now_us = call.begin_us
        self._let_old_ones_go()
        vm = self._vms.of_vm_fd(call.thread, call.vm_fd)
        growing = self._growing.current(call.thread, vm)
        if growing is not None and not growing.takes(call.begin_us, self._gap_us):
            self._carry_or_close(growing)
            growing = None
        self._growing.call_begins(growing or self._begin(call, vm), self._event)

    def _begin(self, call: SlotCall, vm: Vm) -> Growing:
        growing = Growing(vm, Update(call.thread, call.vm_fd, map_known=vm.unknown_since_us is None))
        self._growing.add(growing)
        return growing

    def _call_ends(self, event: SlotCallEnds) -> None:
        call = event.call
        self._now_us = max(self._now_us, call.answered_us)
        vm = self._vms.of_vm_fd(call.thread, call.vm_fd)
        growing = self._growing.current(call.thread, vm)
        if growing is None:
            # Its VM was closed, or taken to be another one, while the call was under way: it is an update all the same.
            growing = self._begin(call, vm)
            self._growing.call_begins(growing, self._event)
        if call.errno is None:
            self._learn(vm, call)
        step = change(vm.slots, call)
        update = growing.update
        if not update.calls:
            self._findings_of(vm).updates.append(update)
        update.add(step, keep=self._kept_calls < MOST_KEPT_CALLS)
        self._kept_calls += 1
        self._growing.call_ends(growing, self._event, took_memory=step.removed is not None)
        if step.added is not None:
            for ended in self._growing.carried(call.thread, vm):
                if ended.update.carry(step):
                    ended.closed = self._event
                    if not ended.update.is_missing:
                        self._close(ended)

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
        thread = run.thread
        self._now_us = run.begin_us
        if self._growing:
            self._let_old_ones_go()
            for growing in self._growing.of_thread(thread):
                self._close(growing)
        vm = self._vms.of_vcpu_fd(thread, run.vcpu_fd)
        if thread in self._inside:
            self._leave(thread, run.begin_us)
        stay = Stay(thread, self._event, run=run)
        self._inside[thread] = run, vm, stay
        log = self._runs.get(vm)
        if log is None:
            log = self._runs[vm] = StayLog(self._needed_since)
        log.add(stay)
        if vm is not None:
            vcpu = vm.vcpus.get(run.vcpu_fd) if run.vcpu is None else run.vcpu
            if vcpu is not None:
                self._findings_of(vm).vcpu_ids[thread] = vcpu

    def _run_ends(self, event: RunEnds) -> None:
        run = event.run
        end_us = run.begin_us if run.end_us is None else run.end_us
        self._now_us = max(self._now_us, end_us)
        inside = self._inside.get(run.thread)
        if inside is not None and inside[0] is run:
            self._leave(run.thread, end_us)

    def _leave(self, thread: int, end_us: int) -> None:
        run, vm, stay = self._inside.pop(thread)
        stay.ended = self._event
        if vm is not None and not run.never_started:
            lanes = self._findings_of(vm).lanes
            lane = lanes.get(thread)
            if lane is None:
                lane = lanes[thread] = Lane()
            lane.add(run.begin_us, end_us)

    def _fd_made(self, event: FdMade) -> None:
        self._now_us = event.at_us
        self._ended(self._vms.made(event))

    def _fd_closed(self, event: FdClosed) -> None:
        self._ended(self._vms.closed(event))

    def _ended(self, vm: Vm | None) -> None:
        if vm is not None:
            for growing in self._growing.of_vm(vm):
                self._close(growing)
            self._runs.pop(vm, None)

    def _log_call(self, event: LogCall) -> None:
        self._vms.of_vm_fd(event.thread, event.vm_fd).log_calls += 1

    def _guest_mode(self, event: GuestMode) -> None:
        thread = event.thread
        there = self._in_guest.pop(thread, None)
        if there is not None:
            there.ended = self._event
        if event.entered or thread not in self._mode_known:
            # A thread whose first tracepoint is an exit was in guest mode until then.
            stay = Stay(thread, self._event)
            self._guest_mode_log.add(stay)
            if event.entered:
                self._in_guest[thread] = stay
            else:
                stay.ended = self._event
        self._mode_known.add(thread)

    def _woken(self, event: Woken) -> None:
        # It slept inside KVM_RUN, so it was not in guest mode: an exit that was lost is made good.
        there = self._in_guest.pop(event.thread, None)
        if there is not None:
            there.ended = self._event

    def _let_old_ones_go(self) -> None:
        """Close the updates to which nothing can come any more."""
        last_us = self._now_us - self._patience_us
        while (growing := self._growing.oldest_before(last_us)) is not None:
            self._close(growing)

    def _carry_or_close(self, growing: Growing) -> None:
        """End an update by its gap; what it still misses may come back with the next one."""
        carried = self._growing.carried(growing.update.thread, growing.vm)
        growing.has_ended = True
        if not growing.update.is_missing:
            self._close(growing)
        elif len(carried) >= MOST_CARRIED:
            self._close(carried[0])

    def _close(self, growing: Growing) -> None:
        """Work an update out, and who was inside; of a KVM_RUN that goes on it is not yet known whether it started."""
        self._growing.remove(growing)
        update = growing.update
        update.close()
        if growing.opened == FOR_EVER:
            return
        window = growing.opened, growing.closed
        logs = [self._runs[vm] for vm in (growing.vm, None) if vm in self._runs]
        stays = [stay for log in logs for stay in log.between(*window) if stay.thread != update.thread]
        runs = [stay.run for stay in stays if stay.run is not None]
        if self._mode_known:
            update.in_guest_mode = tuple({stay.thread for stay in self._guest_mode_log.between(*window)})
            update.mode_unknown = tuple({run.thread for run in runs} - self._mode_known)
        if any(stay.ended == FOR_EVER for stay in stays):
            self._unsettled.append((update, runs))
        else:
            self._settle(update, runs)

    def _settle(self, update: Update, runs: Sequence[Run]) -> None:
        """Write down who was inside; only now is it known which runs ended in EAGAIN."""
        if not runs:
            return
        stays = [
            (run.thread, run.begin_us, run.begin_us if run.end_us is None else run.end_us)
            for run in runs
            if not run.never_started
        ]
        update.vcpus_inside = tuple(sorted({stay[0] for stay in stays}))
        update.met_us = _met_us(update.holes, stays)
        if self._kept_stays + len(stays) <= MOST_KEPT_STAYS:
            self._kept_stays += len(stays)
            update.stays = tuple(stays)


def _met_us(holes: Iterable[Hole], stays: Iterable[tuple[int, int, int]]) -> int:
    """Give for how long at most one stay and one hole went on together."""
    longest_us = 0
    of_thread: dict[int, list[tuple[int, int]]] = {}
    for thread, begin_us, end_us in stays:
        of_thread.setdefault(thread, []).append((begin_us, end_us))
    for hole in sorted(holes, key=lambda hole: -hole.open_us):
        if hole.open_us <= longest_us:
            break
        for own in of_thread.values():
            first = bisect.bisect_right(own, hole.begin_us, key=lambda stay: stay[1])
            last = bisect.bisect_left(own, hole.end_us, key=lambda stay: stay[0])
            for begin_us, end_us in own[first:last]:
                longest_us = max(longest_us, min(end_us, hole.end_us) - max(begin_us, hole.begin_us))
    return longest_us


def audit(events: Iterable[Event], *, gap_us: int = DEFAULT_GAP_US) -> Findings:
    """Audit a whole recording's events."""
    auditor = Audit(gap_us=gap_us)
    auditor.take(events)
    return auditor.findings()
