"""A reader who does what a document says: every fence in its order, in one folder, with one shell."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .fences import ROOT, Fence, fences_in
from .prefork import SHIM
from .shell import Shell
from .snippets import Snippets
from .varying import settled

COLUMNS = "100"
_PORT = "8471"
_COMMAND = re.compile(r"^\$ (.*(?:\n> .*)*)\n?", re.MULTILINE)


@dataclass(frozen=True)
class Tools:
    """What a reader has installed: a folder for the path, with `vmmd` and `vmmctl`."""

    folder: Path


@contextlib.contextmanager
def tools(folder: Path) -> Iterator[Tools]:
    """Install what a reader has; `vmmctl` is quick to start (`prefork`)."""
    address = str(folder / "prefork.sock")
    shim = folder / "vmmctl"
    shim.write_text(SHIM.format(python=sys.executable, address=address))
    shim.chmod(0o755)
    for name in ("vmmd", "python"):
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {_ARGUMENTS[name]} "$@"\n')
        (folder / name).chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.docs.prefork", address], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", "the client cannot be imported"
            yield Tools(folder)
        finally:
            os.killpg(process.pid, signal.SIGTERM)


_ARGUMENTS = {"vmmd": "-m vmmd", "python": ""}


class Reader:
    """One reader of one document.

    `/tmp/` is a folder of the reader's own, port 8471 one that is free here, and the tree's folders stand where the
    reader does, as in a clone.
    """

    def __init__(self, folder: Path, installed: Tools) -> None:
        self._folder = folder
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self._port = _free_port()
        for name in ("client", "config", "docs", "tests"):
            (folder / name).symlink_to(ROOT / name)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("VMMD_", "XDG_", "PYTEST_"))}
        cache = os.environ.get("VMMD_CACHE_DIR", str(Path.home() / ".cache" / "vmmd"))
        self._environment = kept | {
            "PATH": f"{installed.folder}:{os.environ['PATH']}",
            "COLUMNS": COLUMNS,
            "LC_ALL": "C.UTF-8",
            "XDG_RUNTIME_DIR": str(folder),
            "VMMD_CACHE_DIR": cache,
            # A reader's own pytest has not this tree's plugins.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        self._shell = Shell(folder, self._environment)
        self._snippets = Snippets(folder)

    def close(self) -> None:
        """Leave nothing running."""
        self._snippets.close()
        self._shell.close()

    def reread(self, text: str, document: str) -> str:
        """Do what a document says, and give it with what was written where that differs from what it shows.

        Raises:
            AssertionError: A command or a snippet has failed.
        """
        lines = text.splitlines(keepends=True)
        pieces, position, written = [], 0, ""
        for fence in fences_in(text, document):
            begin = fence.line
            end = begin + fence.text.count("\n")
            pieces.append("".join(lines[position:begin]))
            position = end
            body = fence.text
            if fence.shows:
                body = settled(body, written)
            elif "file" in fence.marks:
                (self._folder / fence.marks["file"]).write_text(self._here(fence.text))
            elif fence.runs:
                body, written = self._run(fence)
            pieces.append(body)
        return "".join((*pieces, *lines[position:]))

    def _run(self, fence: Fence) -> tuple[str, str]:
        """Run a fence; give what should stand in it, and what it wrote."""
        if fence.language == "console":
            return self._console(fence.text), ""
        source = self._here(fence.text)
        if fence.language == "sh":
            # The first command that fails ends the shell, and the reading with it.
            written = self._shell.run(f"set -e\n{source}set +e")
        elif fence.marks:
            written = self._snippets.run(source, fence.place, has_loop="async" in fence.marks)
        else:
            (self._folder / "program.py").write_text(source)
            written = self._shell.run("python program.py")
            assert self._shell.status == 0, f"{fence.place}: the program failed:\n{written}"
        return fence.text, _whole_lines(self._there(written))

    def _console(self, text: str) -> str:
        commands = list(_COMMAND.finditer(text))
        ends = [command.start() for command in commands[1:]] + [len(text)]
        pieces = []
        for command, end in zip(commands, ends, strict=True):
            shown = text[command.end() : end]
            written = self._shell.run(self._here(command.group(1).replace("\n> ", "\n")), shown)
            pieces += [command.group(0), settled(shown, _whole_lines(self._there(written)))]
        return "".join(pieces)

    def _here(self, text: str) -> str:
        return text.replace("/tmp/", f"{self._temporary}/").replace(_PORT, self._port)

    def _there(self, text: str) -> str:
        return text.replace(f"{self._temporary}/", "/tmp/").replace(self._port, _PORT)


def _free_port() -> str:
    """Find a TCP port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def _whole_lines(text: str) -> str:
    """Give text as lines that end where their last mark is."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())
