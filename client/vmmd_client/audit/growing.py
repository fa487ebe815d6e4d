"""Updates to which calls, or the end of a hole, may still come: found by their thread, by their VM, and by their age.

Nothing here looks at all of them: a recording may have thousands of threads and of VMs.
"""

from collections import OrderedDict
from collections.abc import Sequence

from .stays import FOR_EVER
from .updates import Update
from .vms import Vm

OPEN_GAP_US = 100_000
"""How long an update waits for its next call while a range that it took away has not been given back once, and how
long an ended one waits for the end of a hole."""

MOST_CARRIED = 64
"""How many ended updates of one thread and VM wait for the end of a hole."""


class Growing:
    """An update to which calls may still come, or which has ended and waits for the end of a hole.

    Attributes:
        vm: its VM.
        update: the update.
        in_flight: whether a call of it has begun and not ended.
        has_ended: whether the next call of its thread belongs to another update.
        called: the number of the event with which its last call began.
        opened: the number of the event with which its first delete began; `FOR_EVER` before there was one.
        closed: the number of the event with which its last call, or its last hole, ended.
    """

    __slots__ = ("called", "closed", "has_ended", "in_flight", "opened", "update", "vm")

    def __init__(self, vm: Vm, update: Update) -> None:
        self.vm = vm
        self.update = update
        self.in_flight = False
        self.has_ended = False
        self.called = 0
        self.opened = FOR_EVER
        self.closed = 0

    def takes(self, begin_us: int, gap_us: int) -> bool:
        """Tell by the time since its last call whether a call of its thread still belongs to it."""
        since_us = begin_us - self.update.end_us
        if not self.update.calls or since_us <= gap_us:
            return True
        return since_us <= OPEN_GAP_US and self.update.misses_memory


class GrowingUpdates:
    """All of a recording's, at one time."""

    def __init__(self) -> None:
        self._of_thread: dict[int, dict[Vm, list[Growing]]] = {}
        self._threads_of: dict[Vm, set[int]] = {}
        self._idle: OrderedDict[Growing, None] = OrderedDict()
        self._watched: OrderedDict[Growing, None] = OrderedDict()

    def __bool__(self) -> bool:
        """Tell whether there is any: most KVM_RUNs of a recording find none."""
        return bool(self._of_thread)

    @property
    def needed_since(self) -> int:
        """The event from which on somebody will ask who was inside; `FOR_EVER` where nobody will."""
        first = next(iter(self._watched), None)
        return FOR_EVER if first is None else min(first.opened, first.called)

    def current(self, thread: int, vm: Vm) -> Growing | None:
        """Give the update to which a call of a thread may still belong."""
        own = self._of(thread, vm)
        return own[-1] if own and not own[-1].has_ended else None

    def carried(self, thread: int, vm: Vm) -> Sequence[Growing]:
        """Give the ended updates of a thread that wait for the end of a hole."""
        own = self._of(thread, vm)
        return [growing for growing in own if growing.has_ended] if own and own[0].has_ended else ()

    def _of(self, thread: int, vm: Vm) -> Sequence[Growing]:
        """Give those of a thread and a VM in the order of their begin: the ended ones, then the one that has not."""
        vms = self._of_thread.get(thread)
        return () if vms is None else vms.get(vm, ())

    def add(self, growing: Growing) -> None:
        """Take a new one."""
        thread = growing.update.thread
        self._of_thread.setdefault(thread, {}).setdefault(growing.vm, []).append(growing)
        self._threads_of.setdefault(growing.vm, set()).add(thread)

    def call_begins(self, growing: Growing, event: int) -> None:
        """Take note of a call: until it has ended, its update stays open, and it may be the first delete."""
        growing.in_flight, growing.called = True, event
        self._idle.pop(growing, None)
        self._watched.setdefault(growing)

    def call_ends(self, growing: Growing, event: int, *, took_memory: bool) -> None:
        """Take note of the end of the call that began last."""
        growing.in_flight, growing.closed = False, event
        if took_memory:
            growing.opened = min(growing.opened, growing.called)
        if growing.opened == FOR_EVER:
            self._watched.pop(growing, None)
        self._idle[growing] = None

    def remove(self, growing: Growing) -> None:
        """Let one go."""
        thread = growing.update.thread
        vms = self._of_thread[thread]
        vms[growing.vm].remove(growing)
        if not vms[growing.vm]:
            del vms[growing.vm]
            self._threads_of[growing.vm].discard(thread)
        if not vms:
            del self._of_thread[thread]
        self._idle.pop(growing, None)
        self._watched.pop(growing, None)

    def of_thread(self, thread: int) -> list[Growing]:
        """Give all of a thread."""
        return [growing for own in self._of_thread.get(thread, {}).values() for growing in own]

    def of_vm(self, vm: Vm) -> list[Growing]:
        """Give all of a VM."""
        return [growing for thread in self._threads_of.get(vm, ()) for growing in self._of_thread[thread][vm]]

    def oldest_before(self, last_us: int) -> Growing | None:
        """Give the one whose last call ended first, if that was before a time; None where none did."""
        oldest = next(iter(self._idle), None)
        return oldest if oldest is not None and oldest.update.end_us < last_us else None

    def everyone(self) -> list[Growing]:
        """Give all."""
        return [growing for vms in self._of_thread.values() for own in vms.values() for growing in own]
