"""compose.yaml brought up under a name of its own: several can be tried on one engine, and none is anybody's."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.container.engine import attempt, free_port, run

_WAIT_S = 120.0
_LABEL = "com.docker.compose.project"


@dataclass
class Project:
    """The services of compose.yaml.

    Attributes:
        compose: the command for compose.
        name: the project's name, and the image's.
    """

    compose: tuple[str, ...]
    name: str = field(default_factory=lambda: f"vmmd-try-{os.getpid()}")
    port: int = field(default_factory=free_port)
    prometheus_port: int = field(default_factory=free_port)

    def __call__(self, *words: str, timeout_s: float = 300) -> str:
        """Run a compose command, and give its standard output."""
        return run(*self.compose, *words, timeout_s=timeout_s, **self._variables)

    @property
    def _variables(self) -> dict[str, str]:
        return {
            "COMPOSE_PROJECT_NAME": self.name,
            "VMMD_IMAGE": self.name,
            "VMMD_PORT": str(self.port),
            "PROMETHEUS_PORT": str(self.prometheus_port),
            "DEMO_UPDATES": "100",
        }

    def container(self, service: str) -> str:
        """Give the id of a service's container, running or not."""
        words = ("ps", "--all", "--quiet", "--filter", f"label={_LABEL}={self.name}")
        return run("docker", *words, "--filter", f"label=com.docker.compose.service={service}").strip()

    def inspect(self, service: str) -> Any:
        """Give all that the engine knows of a service's container."""
        return json.loads(run("docker", "inspect", self.container(service)))[0]

    def execute(self, *command: str) -> str:
        """Run a command in the daemon's container, and give its standard output."""
        return self("exec", "-T", "vmmd", *command)

    def wait_until_healthy(self) -> None:
        """Wait until the engine's own check finds the daemon well."""
        wait_for(lambda: self.inspect("vmmd")["State"]["Health"]["Status"] == "healthy", "vmmd to be healthy")

    def ask(self, path: str, token: str | None, body: object = None, *, port: int | None = None) -> tuple[int, bytes]:
        """Make an HTTP request from the host, and give the answer's status and body."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.port}{path}", data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 -- the URL is ours
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def left(self) -> list[str]:
        """Name what the engine still has of the project."""
        kinds = {"container": ("ps", "--all"), "volume": ("volume", "ls"), "network": ("network", "ls")}
        left = []
        for kind, words in kinds.items():
            found = run("docker", *words, "--quiet", "--filter", f"label={_LABEL}={self.name}").split()
            left += [f"{kind} {name}" for name in found]
        return left

    def remove(self) -> None:
        """Take down whatever of it is there, and its image."""
        attempt(*self.compose, "--profile", "metrics", "down", "--volumes", **self._variables)
        attempt("docker", "image", "rm", self.name)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition outside this process, which nothing announces; give up after two minutes."""
    end = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < end, f"waited {_WAIT_S:g} s for {what}"
        time.sleep(0.25)
