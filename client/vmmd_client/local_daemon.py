"""A daemon of one's own for as long as a block lasts: for the demo, for tests, for trying things out.

`async with local_daemon() as url` starts `vmmd serve` with this Python on a UNIX socket in a new directory and waits
for the line that says it is ready. It is ended with the block, by its process id; nothing of it is left.
"""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from .errors import ConnectError

READY_TIMEOUT_S = 120.0
"""How long the daemon may take until it is ready, in seconds: its first start compiles the interpreter."""

STOP_TIMEOUT_S = 10.0
"""How long the daemon may take to end, in seconds, before it is killed."""

_LOG_TAIL_BYTES = 2_000


def command(socket_path: Path) -> list[str]:
    """Give the command that runs the daemon on a socket."""
    return [sys.executable, "-m", "vmmd", "serve", "--socket", str(socket_path)]


def url_in(line: bytes) -> str | None:
    """Find the URL in the line with which the daemon says that it is ready; None where it says none."""
    words = line.decode("utf-8", errors="replace").split()
    return next((word for word in words if word.startswith("unix://")), None)


def not_ready(log: IO[bytes]) -> str:
    """Say that the daemon did not become ready, and what it wrote."""
    log.seek(max(0, log.seek(0, 2) - _LOG_TAIL_BYTES))
    written = log.read().decode("utf-8", errors="replace").strip() or "nothing"
    return f"the daemon was not ready within {READY_TIMEOUT_S:g} s; it wrote: {written}"


@contextlib.asynccontextmanager
async def local_daemon() -> AsyncIterator[str]:
    """Run a daemon and give its URL.

    Raises:
        ConnectError: it did not become ready; the message holds what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="vmmd-") as name, tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command(Path(name) / "vmmd.sock"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        try:
            url = await _url(process)
            if url is None:
                raise ConnectError(not_ready(log))
            yield url
        finally:
            await _end(process)


async def _url(process: asyncio.subprocess.Process) -> str | None:
    """Read the line with which the daemon says that it is ready; None where it does not come."""
    line = b""
    if process.stdout is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await process.stdout.readline()
    return url_in(line)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
