"""Log lines on their way to a file descriptor, so that whoever logs never waits for who reads.

A pipe that nobody reads takes 64 KiB and then nothing: a daemon that wrote its log by itself would stop there, with its
signal handlers. So a thread writes, and so many bytes wait for it; lines beyond that are dropped, and how many it was
is said once there is room again.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable

MOST_WAITING_BYTES = 4 << 20
"""What may wait to be written."""

_LAST_LINES_S = 2.0


class LogWriter:
    """A text stream as far as loggers need one.

    Args:
        descriptor: Where the lines go; it stays open.
        on_dropped: Told how many lines were dropped, once there is room again; it may write.

    Attributes:
        dropped: Lines that were dropped since that was last told.
    """

    def __init__(self, descriptor: int, on_dropped: Callable[[int], None]) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._on_dropped = on_dropped
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        # A daemon thread, and no Python stream: an exit waits for neither where nobody reads.
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Take a line, or drop it; never waits."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._waiting_bytes + len(line) > MOST_WAITING_BYTES:
                self.dropped += 1
            else:
                self._lines.append(line)
                self._waiting_bytes += len(line)
                self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Do nothing: what was taken is on its way."""

    def isatty(self) -> bool:
        """Tell whether a terminal is at the other end."""
        return os.isatty(self._descriptor)

    def close(self) -> None:
        """Write what waits, for as long as somebody reads it and at most for two seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(_LAST_LINES_S)

    def _write_all(self) -> None:
        while (lines := self._next()) is not None:
            try:
                _write(self._descriptor, lines)
            except OSError:
                # The reader has gone, and nobody is left to be told.
                continue
            with self._changed:
                dropped, self.dropped = self.dropped, 0
            if dropped:
                self._on_dropped(dropped)

    def _next(self) -> bytes | None:
        """Wait for lines; None at the end."""
        with self._changed:
            while not self._lines and not self._closed:
                self._changed.wait()
            lines = b"".join(self._lines)
            self._lines.clear()
            self._waiting_bytes = 0
            return lines or None


def _write(descriptor: int, text: bytes) -> None:
    left = memoryview(text)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            # Whoever shares the descriptor has made it so.
            select.select([], [descriptor], [])
