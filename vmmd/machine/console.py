"""The console: what a guest wrote to its serial port, bounded, and read by position."""

from __future__ import annotations

CONSOLE_PORT = 0x3F8
"""Where a PC has its first serial port's data register."""

CONSOLE_BYTES = 1 << 20
"""How much is kept; older output goes."""


class Console:
    """Output of all vCPUs of a machine, in the order in which their exits arrived."""

    def __init__(self, capacity: int = CONSOLE_BYTES) -> None:
        self._capacity = capacity
        self._kept = bytearray()
        self._first = 0

    def write(self, data: bytes) -> None:
        """Append output."""
        self._kept += data
        excess = len(self._kept) - self._capacity
        if excess > 0:
            del self._kept[:excess]
            self._first += excess

    def read(self, since: int = 0) -> tuple[bytes, int]:
        """Return what is kept of the output from position `since` on, and the position behind it.

        A position is a count of bytes since the machine was made. Where the beginning is no longer kept, less is
        returned.
        """
        start = max(since - self._first, 0)
        return bytes(self._kept[start:]), self._first + len(self._kept)
