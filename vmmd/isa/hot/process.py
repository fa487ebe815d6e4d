"""The translating process as the daemon has it: started when it is first asked, ended when it fails, asked one by one.

Whatever it does wrong comes out as `Gone`, and the next request starts another.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

from vmmd.isa.hot.messages import MOST_BYTES, Answer, Request, Untranslated, unpack_answer

ANSWER_S = 20.0
"""How long a region may take: a hundred times what the largest one does on a machine that has other things to do."""


class Gone(Exception):  # noqa: N818  (what has become of the process)
    """The translating process has ended, does not answer, or answers what it was not asked."""


class TranslatingProcess:
    """A process that translates.

    Attributes:
        answer_s: how long an answer may take, in seconds.
    """

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self.answer_s = answer_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        # Held while one is started, so that who closes this meanwhile finds it.
        self._starting = threading.Lock()
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Its id, where it runs."""
        process = self._process
        return process.pid if process is not None else None

    def ask(self, request: Request) -> Answer | Untranslated:
        """Have a region translated, and wait for it.

        Raises:
            Gone: it did not come to an answer that fits.
        """
        try:
            process, connection = self._running()
        except OSError as error:
            raise Gone(f"the translating process cannot be started: {error}") from None
        # It may stop in the middle of an answer too, so it is not enough to wait for the beginning of one.
        too_late = threading.Timer(self.answer_s, process.kill)
        try:
            too_late.start()
        except RuntimeError as error:
            raise Gone(f"nobody watches over the translating process: {error}") from None
        try:
            connection.send_bytes(request.pack())
            answer = unpack_answer(connection.recv_bytes(MOST_BYTES))
            if isinstance(answer, Answer):
                answer.check(request)
        except (OSError, EOFError, ValueError, MemoryError) as error:
            # Whatever it may still say would be taken for the answer to the next request.
            self.end()
            raise Gone(f"the translating process failed with exit status {process.returncode}: {error!r}") from None
        finally:
            too_late.cancel()
        return answer

    def kill(self) -> None:
        """Have it end now; any thread may call it, and whoever waits for an answer gets `Gone`."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Have it end now, as `kill` does, and start no other."""
        with self._starting:
            self._is_closed = True
            self.kill()

    def end(self) -> None:
        """End it, if it runs, and wait until it has."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.wait()

    def _running(self) -> tuple[subprocess.Popen[bytes], Connection]:
        with self._starting:
            if self._is_closed:
                raise Gone("the translator is closed")
            if self._process is None or self._connection is None:
                self._process, self._connection = _start()
            return self._process, self._connection


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        # In a process group of its own: what a terminal sends to the daemon is for the daemon to handle.
        process = subprocess.Popen(  # noqa: S603 - this interpreter, and a module of ours
            [sys.executable, "-P", "-m", "vmmd.isa.hot.child", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    return process, ours
