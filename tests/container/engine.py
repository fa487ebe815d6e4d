"""The container engine of this machine, asked through its command line."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD_TIMEOUT_S = 1800.0
"""How long a build may take: it downloads packages."""

_DEFAULT_TIMEOUT_S = 180.0


class UnusableError(Exception):
    """There is nothing to try it with. The message says what is missing."""


def run(*command: str, timeout_s: float = _DEFAULT_TIMEOUT_S, **variables: str) -> str:
    """Run a command in the tree and give what it wrote to its standard output.

    Raises:
        AssertionError: it failed; the message holds all that it wrote.
    """
    done = attempt(*command, timeout_s=timeout_s, **variables)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def attempt(*command: str, timeout_s: float = _DEFAULT_TIMEOUT_S, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the tree, however it ends."""
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def compose_command() -> tuple[str, ...]:
    """Give the command for compose: the engine's plugin, or the program of before.

    Raises:
        UnusableError: no engine answers, or it has neither.
    """
    if shutil.which("docker") is None:
        raise UnusableError("there is no docker command on this machine")
    asked = attempt("docker", "info", "--format", "{{.ServerVersion}}")
    if asked.returncode:
        raise UnusableError(f"no container engine answers: {asked.stderr.strip()}")
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]) and attempt(*command, "version").returncode == 0:
            return command
    raise UnusableError("the container engine has neither 'docker compose' nor 'docker-compose'")


def has_image(name: str) -> bool:
    """Tell whether the engine has an image, or can get it."""
    return any(
        attempt("docker", *words, name, timeout_s=600).returncode == 0 for words in (("image", "inspect"), ("pull",))
    )


def default_image(variable: str) -> str:
    """Give the image that compose.yaml takes where a variable is not set."""
    (name,) = set(re.findall(rf"\$\{{{variable}:-(.+?)\}}", (ROOT / "compose.yaml").read_text()))
    return str(name)


def free_port() -> int:
    """Give a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
