"""How soon the event loop runs when it is woken, where guests use every core."""

import ctypes
import os
import platform
from pathlib import Path

import pytest

from tests.e2e.process import serving


@pytest.mark.skipif(
    platform.machine() != "x86_64" or tuple(map(int, platform.release().split(".")[:2])) < (6, 12),
    reason="Linux grants time slices since 6.12, and the number of the call here is x86-64's",
)
async def test_the_event_loop_has_a_short_time_slice_and_none_of_its_threads_has_it(tmp_path: Path) -> None:
    def slice_ns(thread: int) -> int:
        attributes = ctypes.create_string_buffer(56)
        assert ctypes.CDLL(None).syscall(315, thread, attributes, len(attributes), 0) == 0
        return int.from_bytes(attributes.raw[24:32], "little")

    async with serving(tmp_path) as daemon:
        loop, *others = sorted(map(int, os.listdir(f"/proc/{daemon.process.pid}/task")))
        assert others
        assert slice_ns(loop) == 100_000 < min(map(slice_ns, others))
