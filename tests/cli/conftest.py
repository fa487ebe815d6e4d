"""One daemon process for all tests of vmmctl, and vmmctl run in process against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vmmd_client.cli import main

TOKEN = "a token of the tests"  # noqa: S105


@dataclass(frozen=True)
class Daemon:
    """A daemon's addresses, and an environment in which vmmctl finds it."""

    url: str
    tcp: str
    environment: dict[str, str]


@dataclass(frozen=True)
class Ctl:
    """Runs vmmctl: in process, and as a process of its own."""

    daemon: Daemon

    def __call__(self, *arguments: str, stdin: bytes | None = None, **environment: str) -> Result:
        """Give what became of a command."""
        runner = CliRunner(env={"VMMD_URL": self.daemon.url, "VMMD_TOKEN": None, "NO_COLOR": None} | environment)
        result = runner.invoke(main, arguments, input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.stderr
        return result

    def text(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Give the output of a command that succeeds."""
        result = self(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def json(self, *arguments: str, stdin: bytes | None = None) -> Any:
        """Give what a command that succeeds writes with --json: one value, and nothing beside it."""
        result = self(*arguments, "--json", stdin=stdin)
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        return json.loads(result.stdout)

    def refused(self, *arguments: str, code: int = 1, **environment: str) -> str:
        """Give the one line that a command says which ends with that exit code and writes nothing else."""
        result = self(*arguments, **environment)
        assert (result.exit_code, result.stdout) == (code, "")
        assert result.stderr.count("\n") == 1
        return result.stderr

    def process(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start vmmctl as a process."""
        command = [sys.executable, "-c", "from vmmd_client.cli import main; main()", *arguments]
        return subprocess.Popen(command, env=self.daemon.environment, **options)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VMMD_", "XDG_"))}
    environment = clean | {"HOME": str(folder), "VMMD_TOKEN": TOKEN, "XDG_RUNTIME_DIR": str(folder)}
    # What other tests of the session, and earlier sessions, have compiled is used again.
    environment["VMMD_CACHE_DIR"] = os.environ.get("VMMD_CACHE_DIR", str(Path.home() / ".cache" / "vmmd"))
    command = [sys.executable, "-m", "vmmd", "serve", "--port", "0"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            assert line, (folder / "log").read_text()
            url, tcp = line.split()
            without_token = {name: value for name, value in environment.items() if name != "VMMD_TOKEN"}
            yield Daemon(url, tcp, without_token)
        finally:
            process.terminate()
            process.communicate(timeout=20)


@pytest.fixture(scope="session")
def ctl(daemon: Daemon) -> Ctl:
    return Ctl(daemon)


@pytest.fixture
def vm(ctl: Ctl) -> Iterator[str]:
    """A VM with a logged slot of 64 pages at 1 MiB, which can grow to 128, and two vCPUs."""
    options = ("--memory", "256K", "--reserve", "512K", "--gpa", "1M", "--log", "--vcpus", "2", "--name", "of a test")
    made = ctl.json("vm", "create", *options)["vm"]
    yield made
    ctl("vm", "destroy", made)
