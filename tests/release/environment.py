"""A virtual environment outside the tree with the wheel in it, and what has to work there.

What runs in it sees neither the tree nor the caches of the user: its working directory, home and XDG directories lie in
a temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.release.distribution import ROOT, VERSION

_SHIPPED = "from importlib.resources import files; print(files('vmmd_client') / 'data' / 'qemu-7.2-pc-boot.strace.gz')"
_SECRETIVE = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "VMMD_URL", "VMMD_TOKEN")


@dataclass(frozen=True)
class Environment:
    """A virtual environment in a folder, with an empty working directory and caches beside it."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, python: str, wheel: Path, lock: str) -> Environment:
        """Make it with a Python, and install the wheel beside what a lock of the tree pins.

        Args:
            folder: Where; it is made.
            python: The interpreter.
            wheel: The wheel.
            lock: The lock's name, "runtime.lock".
        """
        made = cls(folder)
        (folder / "work").mkdir(parents=True)
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True, timeout=120)
        made.pip("install", "--require-hashes", "--requirement", str(ROOT / lock))
        made.pip("install", "--no-deps", "--no-index", str(wheel))
        made.pip("check")
        return made

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of what runs here."""
        kept = {name: value for name, value in os.environ.items() if name not in _SECRETIVE}
        own = {name: str(self.folder / name.lower()) for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")}
        # With a runtime directory of the user's, the socket would lie beside the user's own daemon's.
        return kept | own | {"XDG_RUNTIME_DIR": "", "PATH": f"{self.folder / 'venv' / 'bin'}:{kept['PATH']}"}

    def program(self, name: str) -> str:
        """Give the path of a command of this environment."""
        return str(self.folder / "venv" / "bin" / name)

    def pip(self, *arguments: str) -> None:
        """Run pip, quietly."""
        # The user's settings for pip stay in force here: they say where packages come from.
        command = [self.program("python"), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
        subprocess.run(command, check=True, timeout=900, cwd=self.folder)

    def run(self, name: str, *arguments: str, status: int = 0, timeout_s: float = 180) -> str:
        """Run a command of this environment in the empty directory, and give what it wrote to its standard output.

        Raises:
            AssertionError: It ended with another status than it has to; the message holds all that it wrote.
        """
        done = subprocess.run(
            [self.program(name), *arguments],
            cwd=self.folder / "work",
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != status:
            raise AssertionError(
                f"{name} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout


def use(environment: Environment) -> None:
    """Do what somebody does first who has installed the wheel: run the demo, audit a recording, serve, ask, stop."""
    for program in ("vmmd", "vmmctl"):
        assert VERSION in environment.run(program, "--version")
    where = environment.run("python", "-c", "import vmmd, vmmd_client; print(vmmd.__file__, vmmd_client.__file__)")
    assert all(path.startswith(str(environment.folder)) for path in where.split()), where
    result = json.loads(environment.run("vmmctl", "demo", "--updates", "20", "--json").splitlines()[-1])
    assert result["plain"]["stray_exits"] > 0
    assert (result["atomic"]["stray_exits"], result["atomic"]["wrong_values"]) == (0, 0)
    recording = environment.run("python", "-c", _SHIPPED).strip()
    # Status 1: something was exposed.
    audited = json.loads(environment.run("vmmctl", "audit", "--json", "--html", "audit.html", recording, status=1))
    assert audited["summary"]["exposed"] == 2, audited["summary"]
    assert (environment.folder / "work" / "audit.html").stat().st_size > 10_000
    daemon = subprocess.Popen(
        [environment.program("vmmd"), "serve"],
        cwd=environment.folder / "work",
        env=environment.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline().startswith("unix://")
        assert json.loads(environment.run("vmmctl", "--json", "ping"))["pid"] == daemon.pid
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=30) == 0
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()


def pythons(wanted: tuple[str, ...]) -> dict[str, str | None]:
    """Find an interpreter for each version, "3.12": on the PATH, or among pyenv's; None where there is none."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"

    def find(version: str) -> str | None:
        installed = sorted(versions.glob(f"{version}.*/bin/python"), reverse=True)
        for candidate in (shutil.which(f"python{version}"), *map(str, installed)):
            if candidate is not None and _answers(candidate, version):
                return candidate
        return None

    return {version: find(version) for version in wanted}


def _answers(python: str, version: str) -> bool:
    # A shim of pyenv's is on the PATH for versions too that it then does not run.
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", question], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() == version
