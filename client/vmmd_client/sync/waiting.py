"""The library's own waits, for a thread: the twin of `vmmd_client.waiting`."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import VmmdError

Lock = threading.Lock
"""What makes others wait: one holder at a time."""


def sleep(seconds: float) -> None:
    """Wait for so many seconds."""
    time.sleep(seconds)


def try_to_its_end(attempt: Callable[[], Any]) -> None:
    """Make an attempt; what it gives or raises is told to nobody."""
    with contextlib.suppress(VmmdError):
        attempt()
