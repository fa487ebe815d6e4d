"""A daemon of one's own for as long as a block lasts, for threads: `with local_daemon() as url`.

It does what `vmmd_client.local_daemon` does.
"""

import contextlib
import select
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConnectError
from ..local_daemon import READY_TIMEOUT_S, STOP_TIMEOUT_S, command, not_ready, url_in


@contextlib.contextmanager
def local_daemon() -> Iterator[str]:
    """Run a daemon and give its URL.

    Raises:
        ConnectError: it did not become ready; the message holds what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="vmmd-") as name, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603  (this Python and this package)
            command(Path(name) / "vmmd.sock"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        )
        try:
            url = _url(process)
            if url is None:
                raise ConnectError(not_ready(log))
            yield url
        finally:
            _end(process)


def _url(process: subprocess.Popen[bytes]) -> str | None:
    """Read the line with which the daemon says that it is ready; None where it does not come."""
    if process.stdout is None:
        return None
    readable, _, _ = select.select([process.stdout], [], [], READY_TIMEOUT_S)
    return url_in(process.stdout.readline()) if readable else None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
