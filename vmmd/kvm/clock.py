"""The clock of a VM, which stands still while the VM is held, and alarms that go off by it.

Times are nanoseconds since the VM was made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Clock:
    """What the guest reads as `time`."""

    def __init__(self) -> None:
        self._started_ns = time.monotonic_ns()
        self._stopped_at_ns: int | None = None

    def now_ns(self) -> int:
        """Return the time; any thread may ask."""
        stopped = self._stopped_at_ns
        return (time.monotonic_ns() if stopped is None else stopped) - self._started_ns

    def stop(self) -> None:
        """Stand still until `go`; the clock goes now."""
        self._stopped_at_ns = time.monotonic_ns()

    def go(self) -> None:
        """Go on from where the clock stands still."""
        if self._stopped_at_ns is not None:
            self._started_ns += time.monotonic_ns() - self._stopped_at_ns
            self._stopped_at_ns = None


class Alarms:
    """Calls to be made at times of a clock, at most one for each key. They are made on the event loop.

    Any thread may set and clear; the rest belongs to the event loop.
    """

    def __init__(self, clock: Clock, call: Callable[[int], None]) -> None:
        self._clock = clock
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._at_ns: dict[int, int] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._going = True

    def set(self, key: int, at_ns: int | None) -> None:
        """Call with `key` at that time, and at no other that was set before; None clears it."""
        self._loop.call_soon_threadsafe(self._set, key, at_ns)

    def stop(self) -> None:
        """Let none go off until `go`."""
        self._going = False
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def go(self) -> None:
        """Let them go off again, by the clock as it is now."""
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
