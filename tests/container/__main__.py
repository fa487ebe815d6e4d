"""The image and compose.yaml, tried on this machine's container engine: `make container-test`.

It builds the image, brings everything up under a project name of its own, and looks at what a user would: the demo's
last line, `vmmctl` inside, a call from the host with the token, a restart, a stop within its grace period; and at what
an intruder would. At the end nothing of it is left, whatever failed. Without an engine, or without a base image, it
says so and ends with 0: there was nothing to try it on.

What compose.yaml takes from the environment is taken here too: PYTHON_IMAGE, PROMETHEUS_IMAGE, BUILD_NETWORK.
"""

from __future__ import annotations

import os
import sys
import time

from tests.container.engine import BUILD_TIMEOUT_S, UnusableError, compose_command, default_image, has_image
from tests.container.looks import LOOKS
from tests.container.project import Project


def main() -> int:
    """Try everything, and give the exit status."""
    try:
        project = Project(compose_command())
        base = os.environ.get("PYTHON_IMAGE") or default_image("PYTHON_IMAGE")
        if not has_image(base):
            raise UnusableError(f"the engine has no {base}, and cannot get it; name another with PYTHON_IMAGE")
    except UnusableError as reason:
        _say(f"skipped: {reason}")
        return 0
    try:
        _try(project, base)
    except AssertionError as found:
        _say(f"FAILED: {found}")
        return 1
    finally:
        project.remove()
    left = project.left()
    _say(f"FAILED: this is left: {', '.join(left)}" if left else "ok: nothing of it is left")
    return 1 if left else 0


def _try(project: Project, base: str) -> None:
    start = time.monotonic()
    project("build", timeout_s=BUILD_TIMEOUT_S)
    _say(f"ok: built on {base} in {time.monotonic() - start:.0f} s")
    project("up", "--detach")
    _say("ok: up, and healthy before the demo began")
    for look in LOOKS:
        found = look(project)
        _say(found if found.startswith("LEFT OUT") else f"ok: {found}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
