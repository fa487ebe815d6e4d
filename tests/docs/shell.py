"""A shell that goes on from command to command, as a reader's does, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

PATIENCE_S = 60.0
"""How long a command may take, in seconds: the first daemon of all compiles its engine."""

_END = "\x1e"


class Shell:
    """One bash, whose standard error goes where its standard output goes."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._came = ""
        self._status = 0

    def run(self, command: str, shown: str = "") -> str:
        """Run a command, and give what it writes.

        Args:
            command: The command. Where it goes on behind the prompt (`&`), as many lines are waited for as are shown,
                and its standard error, where logs go, is left out.
            shown: What a document shows of it.
        """
        behind = command.rstrip().endswith("&")
        if behind:
            command = f"{command.rstrip()[:-1]} 2>>behind.log &"
        # `$?` is the reader's, not ours.
        self._write(f"(exit {self._status})\n{command}\nprintf '{_END}%d{_END}' $?\n")
        written, status = self._until(rf"{_END}(\d+){_END}")
        self._status = int(status.group(1))
        for _ in range(len(shown.splitlines()) - written.count("\n") if behind else 0):
            line, _ = self._until(r"(?<=\n)")
            written += line
        return written

    @property
    def status(self) -> int:
        """How the last command ended."""
        return self._status

    def close(self) -> None:
        """End the shell, and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def _until(self, pattern: str) -> tuple[str, re.Match[str]]:
        """Read until a pattern comes; give what came before it, and take both away."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + PATIENCE_S
        while (found := re.search(pattern, self._came)) is None:
            ready, _, _ = select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))
            came = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not came:
                raise AssertionError(f"the command did not end; it wrote:\n{self._came}")
            self._came += came.decode(errors="replace")
        before, self._came = self._came[: found.start()], self._came[found.end() :]
        return before, found
