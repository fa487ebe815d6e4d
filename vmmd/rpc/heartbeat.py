"""The event loop's pulse: how late it comes to what is due, which is how late it comes to a call."""

import asyncio
from collections.abc import Callable

_BEAT_S = 0.25


class Heartbeat:
    """Beats four times a second while the event loop turns.

    Args:
        on_beat: Told at each beat by how many seconds it came late.
    """

    def __init__(self, on_beat: Callable[[float], None]) -> None:
        self._on_beat = on_beat
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat."""
        loop = asyncio.get_running_loop()
        self._next = loop.call_at(loop.time() + _BEAT_S, self._beat, loop.time() + _BEAT_S)

    def stop(self) -> None:
        """Beat no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _beat(self, due: float) -> None:
        lag_s = max(0.0, asyncio.get_running_loop().time() - due)
        self.start()
        self._on_beat(lag_s)
