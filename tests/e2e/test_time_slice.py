"""How soon the event loop runs when it is woken, where guests use every core."""

import ctypes
import platform
from pathlib import Path

import pytest

from tests.e2e.process import serving


def threads_of(process: int) -> list[int]:
    """Give a process's threads, the first one first."""
    return sorted(int(thread.name) for thread in Path(f"/proc/{process}/task").iterdir())


def slice_ns(thread: int) -> int:
    """Ask the kernel for a thread's time slice, with sched_getattr(2)."""
    attributes = ctypes.create_string_buffer(56)
    assert ctypes.CDLL(None).syscall(315, thread, attributes, len(attributes), 0) == 0
    return int.from_bytes(attributes.raw[24:32], "little")


@pytest.mark.skipif(
    platform.machine() != "x86_64" or tuple(map(int, platform.release().split(".")[:2])) < (6, 12),
    reason="Linux grants time slices since 6.12, and the number of the call here is x86-64's",
)
async def test_the_event_loop_has_a_short_time_slice_and_none_of_its_threads_has_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        loop, *others = threads_of(daemon.process.pid)
        assert others
        assert slice_ns(loop) == 100_000 < min(map(slice_ns, others))
