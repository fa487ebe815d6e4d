"""What is looked at, one function a matter; each raises an AssertionError that says what was found instead."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time

from tests.container.engine import BUILD_TIMEOUT_S, ROOT, attempt, default_image, has_image, run
from tests.container.project import Project, wait_for
from tests.docs.fences import fences_of

_ENTRY = "import pathlib; from vmmd.isa.native import Native; print(Native(pathlib.Path('/var/cache/vmmd')).made_anew)"


def demo(project: Project) -> str:
    """The demo ends well, and its last line is what it has to be."""
    container = project.container("demo")
    assert run("docker", "wait", container, timeout_s=600).strip() == "0", run("docker", "logs", container)
    printed = run("docker", "logs", container)
    assert "stray exits" in printed
    line = printed.splitlines()[-1]
    result = json.loads(line)
    assert result["plain"]["stray_exits"] > 0
    assert (result["atomic"]["stray_exits"], result["atomic"]["wrong_values"]) == (0, 0)
    return f"the demo's last line: {line}"


def calls_inside(project: Project) -> str:
    """`vmmctl` inside the container finds the daemon, which is PID 1; the demo has left no VM."""
    answer = json.loads(project.execute("vmmctl", "--json", "ping"))
    assert answer["pid"] == 1, answer
    assert json.loads(project.execute("vmmctl", "--json", "vm", "list")) == []
    return "vmmctl inside the container reaches process 1; the demo has left no VM"


def calls_from_the_host(project: Project) -> str:
    """The port answers who has the token, and nobody else."""
    token = _token(project)
    call = {"jsonrpc": "2.0", "id": 1, "method": "kvm.get_api_version"}
    status, body = project.ask("/rpc", token, call)
    assert (status, json.loads(body)["result"]) == (200, 12), (status, body)
    assert project.ask("/rpc", None, call)[0] == 401
    assert project.ask("/rpc", token[:-1], call)[0] == 401
    return "the host's port answers with the token, and 401 without"


def _token(project: Project) -> str:
    return project.execute("cat", "token").strip()


def attack_surface(project: Project) -> str:
    """Nothing is writable but the volume, nothing is privileged, everything is bounded."""
    for service in ("token", "vmmd", "demo"):
        known = project.inspect(service)
        host = known["HostConfig"]
        assert host["ReadonlyRootfs"] is True, service
        assert host["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert not host["Privileged"], service
        assert 0 < host["Memory"] <= 2 << 30, service
        assert 0 < host["PidsLimit"] <= 256, service
        assert 0 < host["NanoCpus"] <= 2_000_000_000, service
        assert host["LogConfig"]["Config"].keys() == {"max-size", "max-file"}, service
        assert known["Config"]["User"] == "65532:65532", service
    status = project.execute("cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Uid"].split() == ["65532"] * 4
    refused = attempt("docker", "exec", project.container("vmmd"), "touch", "/var/cache/vmmd/new")
    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr
    (published,) = project.inspect("vmmd")["NetworkSettings"]["Ports"]["8471/tcp"]
    assert published["HostIp"] == "127.0.0.1"
    assert project.execute("stat", "--format=%a %U", "token", "vmmd.sock").split() == ["600", "vmmd"] * 2
    return "a user of its own, no capabilities, no new privileges, read-only, bounded, published on 127.0.0.1 alone"


def cold_start(project: Project) -> str:
    """The image brings the compiled engine's object, and the daemon's user may load it."""
    assert project.execute("python3", "-c", _ENTRY).strip() == "False"
    return "the compiled engine's object comes with the image"


def _prometheus() -> str:
    return os.environ.get("PROMETHEUS_IMAGE") or default_image("PROMETHEUS_IMAGE")


def _has_prometheus() -> bool:
    return has_image(_prometheus())


def metrics(project: Project) -> str:
    """Prometheus, where there is an image of it, finds the daemon and may ask it."""
    if not _has_prometheus():
        return f"LEFT OUT: Prometheus beside the daemon; the engine has no {_prometheus()}, and cannot get it"
    project("--profile", "metrics", "up", "--detach", "prometheus")

    def is_scraped() -> bool:
        try:
            _, body = project.ask("/api/v1/targets", None, port=project.prometheus_port)
        except OSError:
            return False
        targets = json.loads(body)["data"]["activeTargets"]
        return [target["health"] for target in targets] == ["up"]

    wait_for(is_scraped, "Prometheus to find its target up")
    return "Prometheus scrapes the daemon with its token"


def restart(project: Project) -> str:
    """A restarted daemon is healthy again, on the same socket, with the same token."""
    token = _token(project)
    project("restart", "vmmd")
    project.wait_until_healthy()
    assert _token(project) == token
    assert project.ask("/healthz", token)[0] == 200
    return "restarted, healthy again, the token the same"


def killed(project: Project) -> str:
    """A daemon that was killed is started anew, over the socket that it left."""
    before = project.inspect("vmmd")["State"]["StartedAt"]
    # From inside nobody can kill process 1, and a kill through the engine counts as a stop that was wanted.
    pid = project.inspect("vmmd")["State"]["Pid"]
    if attempt("kill", "-KILL", str(pid)).returncode:
        return "LEFT OUT: the daemon killed; its process is not this user's to signal"
    wait_for(lambda: project.inspect("vmmd")["State"]["StartedAt"] != before, "the engine to start vmmd anew")
    project.wait_until_healthy()
    return "killed, started anew, healthy"


def stop(project: Project) -> str:
    """A stop drains the daemon, well before the engine would kill it."""
    start = time.monotonic()
    project("stop", "vmmd")
    seconds = time.monotonic() - start
    state = project.inspect("vmmd")["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False), state
    assert "daemon.stopped" in run_all(project.container("vmmd"))
    return f"stopped in {seconds:.1f} s with exit code 0"


def documented(project: Project) -> str:
    """The commands that README.md shows, in their order; the last of them leaves nothing."""
    (fence,) = [fence for fence in fences_of(ROOT / "README.md") if "docker compose" in fence.text]
    shown = [shlex.split(line, comments=True)[2:] for line in fence.text.splitlines()]
    assert "down" in shown[-1], shown
    for words in shown:
        if "metrics" in words and "up" in words and not _has_prometheus():
            continue
        # Nobody watches here, and there is no terminal.
        added = {"up": ["--detach"], "exec": ["-T"]}
        (command,) = [word for word in words if word in {"up", "exec", "down"}]
        at = words.index(command) + 1
        project(*words[:at], *added.get(command, []), *words[at:], timeout_s=BUILD_TIMEOUT_S)
    left = project.left()
    assert not left, left
    return f"README.md's {len(shown)} commands do what it says, and leave nothing"


def run_all(container: str) -> str:
    """Give what a container wrote, on both streams."""
    logs = subprocess.run(["docker", "logs", container], capture_output=True, text=True, timeout=60, check=True)
    return logs.stdout + logs.stderr


def image_alone(project: Project) -> str:
    """The image without compose: all that it writes goes to a tmpfs."""
    options = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")
    tmpfs = ("--tmpfs", "/run/vmmd:uid=65532,gid=65532,mode=0700,size=1m")
    container = run("docker", "run", "--detach", *options, *tmpfs, project.name).strip()
    try:
        wait_for(lambda: "unix:///run/vmmd/vmmd.sock" in run_all(container), "the daemon's line")
        assert "engine" in run("docker", "exec", container, "vmmctl", "ping")
        run("docker", "stop", "--time", "20", container)
        assert run("docker", "inspect", "--format", "{{.State.ExitCode}}", container).strip() == "0"
    finally:
        run("docker", "rm", "--force", "--volumes", container)
    size = int(run("docker", "image", "inspect", "--format", "{{.Size}}", project.name))
    return f"alone, on a tmpfs, it serves and stops; the image has {size / 1e6:.0f} MB"


LOOKS = (
    demo,
    calls_inside,
    calls_from_the_host,
    attack_surface,
    cold_start,
    metrics,
    restart,
    killed,
    stop,
    documented,
    image_alone,
)
"""In this order: each finds what the one before has left."""
