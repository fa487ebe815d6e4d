"""The screens of docs/vmmctl.md, made by running it: `python -m tests.cli.screens` writes them anew.

A block fenced as `console` has commands behind `$ ` and what each wrote; they are run in the document's order against
one daemon, in one folder. A block fenced as `asm` is the file that its first line names,
`# NAME`. What differs from run to run (times, rates, process ids) is replaced before two documents are compared, and so
is the space around it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from click.testing import CliRunner

from vmmd_client.cli import main

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "vmmctl.md"
COLUMNS = 100

_BLOCK = re.compile(r"^```(console|asm)(?: [^\n]*)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^\$ (.*)$", re.MULTILINE)

_VARYING = (
    (re.compile(r"[\d,]+\.\d+"), "N.N"),
    (re.compile(r"process \d+"), "process N"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.N]+Z"), "TIME"),
    (re.compile(r'"epoch": "[^"]+"'), '"epoch": "EPOCH"'),
    (re.compile(r"_ns=\d+"), "_ns=N"),
    (re.compile(r'("(?:pause_ns|kick_ns|interval_ns|call_ns|uptime_ms|pid|round_trip_ns|time)": )[\d.]+'), r"\1N"),
    (re.compile(r"^(took \(µs\)).*$", re.MULTILINE), r"\1"),
    (re.compile(r"^(vCPU \d+) .*$", re.MULTILINE), r"\1"),
    (re.compile(r"^(kick|resume|[-+]\d+) .*$", re.MULTILINE), r"\1"),
    (re.compile(r"(time +)0x[0-9a-f]{16}"), r"\1N"),
    (re.compile(r"^hold +\S+$", re.MULTILINE), "hold NAME"),
    (re.compile(r"resume (vm\d+) \S+"), r"resume \1 NAME"),
    (re.compile(r" +"), " "),
    (re.compile(r" $", re.MULTILINE), ""),
)


def normalised(text: str) -> str:
    """Give a document without what differs from run to run."""
    for pattern, stand_in in _VARYING:
        text = pattern.sub(stand_in, text)
    return text


def rewritten(document: str) -> str:
    """Give the document with the screens of its commands as they are now."""
    with tempfile.TemporaryDirectory(prefix="vmmctl-") as name, contextlib.chdir(name):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("VMMD_", "XDG_"))}
        environment |= {"XDG_RUNTIME_DIR": name, "COLUMNS": str(COLUMNS)}
        environment["VMMD_CACHE_DIR"] = os.environ.get("VMMD_CACHE_DIR", str(Path.home() / ".cache" / "vmmd"))
        with subprocess.Popen(
            [sys.executable, "-m", "vmmd", "serve"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as daemon:
            try:
                assert daemon.stdout is not None
                assert daemon.stdout.readline(), "the daemon did not start"
                runner = CliRunner(env={"VMMD_URL": None, "VMMD_TOKEN": None, "NO_COLOR": None} | environment)
                return _with_screens(document, runner).replace(name, "/run/user/1000")
            finally:
                daemon.terminate()


def _with_screens(document: str, runner: CliRunner) -> str:
    pieces = []
    position, status = 0, 0
    for block in _BLOCK.finditer(document):
        pieces.append(document[position : block.start(2)])
        position = block.end(2)
        kind, text = block.groups()
        if kind == "asm":
            Path(text.partition("\n")[0].removeprefix("# ")).write_text(text)
            pieces.append(text)
            continue
        for command in _COMMAND.findall(text):
            written, status = _run(command, runner, status)
            pieces.append("\n".join([f"$ {command}", *(line.rstrip() for line in written.splitlines())]) + "\n")
    return "".join((*pieces, document[position:]))


def _run(command: str, runner: CliRunner, status: int) -> tuple[str, int]:
    """Run a pipeline; vmmctl in this process, since starting it costs more than what it does."""
    said, passed = "", b""
    for stage in command.split(" | "):
        name, *arguments = shlex.split(stage)
        if name == "vmmctl":
            result = runner.invoke(main, arguments, input=passed)
            said, passed, status = said + result.stderr, result.stdout_bytes, result.exit_code
        else:
            script = f"(exit {status}); {stage}"
            done = subprocess.run(["bash", "-c", script], input=passed, capture_output=True, check=True, timeout=20)
            passed, status = done.stdout, done.returncode
    return passed.decode() + said, status


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text()))
