"""The clock of a VM, which stands still while the VM is held, and alarms that go off by it.

There are two: the host's time, and time made of the instructions that the VM's vCPUs have retired, a nanosecond each.
Times are nanoseconds since the VM was made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from vmmd.isa.context import ContextRecord


class Alarms(Protocol):
    """Calls to be made at times of a clock, at most one for each key."""

    def set(self, key: int, at_ns: int | None) -> None:
        """Call with `key` at that time, and at no other that was set before; None clears it. Any thread may set."""

    def stop(self) -> None:
        """Let none go off until `go`."""

    def go(self) -> None:
        """Let them go off again, by the clock as it is now."""


class Clock(Protocol):
    """What the guest reads as `time`."""

    def now_ns(self) -> int:
        """Return the time; any thread may ask."""

    def stop(self) -> None:
        """Stand still until `go`; the clock goes now."""

    def go(self) -> None:
        """Go on from where the clock stands still."""

    def alarms(self, call: Callable[[int], None]) -> Alarms:
        """Make alarms that go off by this clock."""


class HostClock:
    """The host's time, for VMs whose vCPUs run by themselves."""

    def __init__(self) -> None:
        self._started_ns = time.monotonic_ns()
        self._stopped_at_ns: int | None = None

    def now_ns(self) -> int:
        """See `Clock`."""
        stopped = self._stopped_at_ns
        return (time.monotonic_ns() if stopped is None else stopped) - self._started_ns

    def stop(self) -> None:
        """See `Clock`."""
        self._stopped_at_ns = time.monotonic_ns()

    def go(self) -> None:
        """See `Clock`."""
        if self._stopped_at_ns is not None:
            self._started_ns += time.monotonic_ns() - self._stopped_at_ns
            self._stopped_at_ns = None

    def alarms(self, call: Callable[[int], None]) -> Alarms:
        """See `Clock`."""
        return _HostAlarms(self, call)


class _HostAlarms:
    """Alarms that go off on the event loop. Any thread may set and clear; the rest belongs to the event loop."""

    def __init__(self, clock: HostClock, call: Callable[[int], None]) -> None:
        self._clock = clock
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._at_ns: dict[int, int] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._going = True

    def set(self, key: int, at_ns: int | None) -> None:
        """See `Alarms`."""
        self._loop.call_soon_threadsafe(self._set, key, at_ns)

    def stop(self) -> None:
        """See `Alarms`."""
        self._going = False
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def go(self) -> None:
        """See `Alarms`."""
        self._going = True
        for key in self._at_ns:
            self._arm(key)

    def _set(self, key: int, at_ns: int | None) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if at_ns is None:
            self._at_ns.pop(key, None)
            return
        self._at_ns[key] = at_ns
        if self._going:
            self._arm(key)

    def _arm(self, key: int) -> None:
        wait_ns = self._at_ns[key] - self._clock.now_ns()
        self._timers[key] = self._loop.call_later(max(wait_ns, 0) / 1e9, self._go_off, key)

    def _go_off(self, key: int) -> None:
        del self._timers[key]
        if self._at_ns[key] > self._clock.now_ns():
            # The event loop's clock is coarser than the VM's.
            self._arm(key)
            return
        del self._at_ns[key]
        self._call(key)


class InstructionClock:
    """Time made of retired instructions, for cooperative VMs. It goes while somebody's turn makes it go, and only then.

    Where every vCPU sleeps, time can be skipped. Whoever has the turn may use it; others may read it meanwhile.
    """

    def __init__(self) -> None:
        # Whose instructions count now, and what is added to them: one value, since others read it while it changes.
        self._counts: tuple[ContextRecord | None, int] = (None, 0)
        self._alarms: list[_InstructionAlarms] = []

    def now_ns(self) -> int:
        """See `Clock`."""
        record, offset_ns = self._counts
        return offset_ns + (int(record.retired) if record is not None else 0)

    def stop(self) -> None:
        """See `Clock`: nobody has a turn while the VM is held, so it stands still by itself."""

    def go(self) -> None:
        """See `Clock`."""

    def alarms(self, call: Callable[[int], None]) -> Alarms:
        """See `Clock`."""
        made = _InstructionAlarms(call)
        self._alarms.append(made)
        return made

    def follow(self, record: ContextRecord) -> None:
        """Count the instructions of this vCPU from now on: it is its turn."""
        self._counts = (record, self.now_ns() - int(record.retired))

    def next_alarm_ns(self) -> int | None:
        """Return how long it is until the next alarm, if one is set."""
        due = min((alarms.next_ns for alarms in self._alarms if alarms.next_ns is not None), default=None)
        return None if due is None else max(due - self.now_ns(), 0)

    def go_off(self) -> None:
        """Make the calls that are due, in the order of their times."""
        for alarms in self._alarms:
            alarms.go_off(self.now_ns())

    def skip_to_alarm(self) -> bool:
        """Let the time pass until the next alarm, and make its call; tell whether there was one."""
        wait_ns = self.next_alarm_ns()
        if wait_ns is None:
            return False
        record, offset_ns = self._counts
        self._counts = (record, offset_ns + wait_ns)
        self.go_off()
        return True


class _InstructionAlarms:
    """Alarms that go off on the worker that has the turn."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self._call = call
        self._at_ns: dict[int, int] = {}
        self.next_ns: int | None = None

    def set(self, key: int, at_ns: int | None) -> None:
        """See `Alarms`."""
        if at_ns is None:
            self._at_ns.pop(key, None)
        else:
            self._at_ns[key] = at_ns
        self.next_ns = min(self._at_ns.values(), default=None)

    def stop(self) -> None:
        """See `Alarms`: none goes off unless the clock is made to go."""

    def go(self) -> None:
        """See `Alarms`."""

    def go_off(self, now_ns: int) -> None:
        """Make the calls that are due."""
        while self.next_ns is not None and self.next_ns <= now_ns:
            _, key = min((at_ns, key) for key, at_ns in self._at_ns.items())
            self.set(key, None)
            self._call(key)
