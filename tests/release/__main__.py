"""What would be published, built and tried: `make release`, `make test-wheel`, `make test-pythons`.

`release` leaves the source distribution and the wheel in dist/ and uses the wheel in an environment that has nothing
else than what it asks for. `wheel` runs the tests against the installed wheel, from an unpacked source distribution
whose packages were taken out, so that nothing of the tree can stand in for what was installed. `pythons` does so with
each Python that is there. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.release.distribution import ROOT, Distribution, build, complaints, unpack
from tests.release.environment import Environment, pythons, use

PYTHONS = ("3.11", "3.12", "3.13")

# These are about the tree: its files, its text, its build.
OF_THE_TREE = ("tests/test_layout.py", "tests/test_contributing.py", "tests/client/test_twins.py", "tests/release")

# A share of every room, for each Python.
SHARE = (
    "tests/api",
    "tests/memory",
    "tests/isa/test_instructions.py",
    "tests/isa/test_native.py",
    "tests/kvm/test_hold_states.py",
    "tests/kvm/test_run_exits.py",
    "tests/machine/test_run_loop.py",
    "tests/rpc/test_dispatch.py",
    "tests/rpc/test_websocket.py",
    "tests/client/test_connection.py",
    "tests/client/test_transaction.py",
    "tests/cli/test_commands.py",
    "tests/test_config.py",
    "tests/e2e/test_demo.py",
)


def main() -> int:
    """Run a command and give its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.release", description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["release", "wheel", "pythons"])
    parser.add_argument("arguments", nargs="*", help="for wheel and pythons: pytest's arguments, behind --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmmd-release-") as name:
        folder = Path(name)
        if options.command == "release":
            return _release(folder)
        built = build(folder / "dist")
        if options.command == "wheel":
            return _test(folder, sys.executable, built, options.arguments or ["tests"])
        return _test_pythons(folder, built, options.arguments or list(SHARE))


def _release(folder: Path) -> int:
    built = build(ROOT / "dist")
    for complaint in (found := complaints(built)):
        sys.stderr.write(f"release: {complaint}\n")
    if found:
        return 1
    _say(f"{built.sdist.name} and {built.wheel.name} have the files and the metadata that they have to have")
    use(Environment.make(folder / "empty", sys.executable, built.wheel, "runtime.lock"))
    _say("in an empty environment the wheel's daemon serves, and its demo shows what it has to show")
    _say(f"what would be published: {built.sdist.relative_to(ROOT)} and {built.wheel.relative_to(ROOT)}")
    return 0


def _test_pythons(folder: Path, built: Distribution, arguments: list[str]) -> int:
    found = pythons(PYTHONS)
    for version in (version for version, python in found.items() if python is None):
        _say(f"Python {version}: not on this machine")
    statuses = []
    for version, python in found.items():
        if python is not None:
            _say(f"Python {version}: {python}")
            status = _test(folder / version, python, built, arguments)
            _say(f"Python {version}: {'passed' if status == 0 else 'FAILED'}")
            statuses.append(status)
    return max(statuses, default=1)


def _test(folder: Path, python: str, built: Distribution, arguments: list[str]) -> int:
    """Use the wheel, then run tests against it; give pytest's exit status."""
    environment = Environment.make(folder / "environment", python, built.wheel, "requirements.lock")
    use(environment)
    source = unpack(built.sdist, folder / "source")
    for packages in ("vmmd", "client"):
        shutil.rmtree(source / packages)
    left_out = [f"--ignore={path}" for path in OF_THE_TREE]
    command = [environment.program("python"), "-m", "pytest", "-p", "no:cacheprovider", *left_out, *arguments]
    return subprocess.run(command, cwd=source, env=environment.variables, check=False).returncode


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
