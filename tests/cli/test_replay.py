"""`vmmctl replay` and `vmmctl demo` in a daemon that others use too: they leave nothing in it."""

from __future__ import annotations

import json
import signal
import subprocess
import time

from .conftest import Ctl

PATIENCE_S = 60.0


def names(ctl: Ctl) -> list[str]:
    return [vm["name"] for vm in ctl.json("vm", "list")]


def test_a_replay_in_a_daemon_that_is_there_leaves_no_vm(ctl: Ctl) -> None:
    before = names(ctl)
    arguments = ("replay", "--url", ctl.daemon.url, "--updates", "10", "--vcpus", "2", "--json")
    process = ctl.process(*arguments, stdout=subprocess.PIPE)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert json.loads(printed)["atomic"]["stray_exits"] == 0
    assert names(ctl) == before


def test_a_demo_that_is_terminated_takes_its_vm_with_it(ctl: Ctl) -> None:
    before = names(ctl)
    arguments = ("demo", "--url", ctl.daemon.url, "--updates", "1000000")
    process = ctl.process(*arguments, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + PATIENCE_S
        while "replay" not in names(ctl):
            assert time.monotonic() < end, "the demo made no VM"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_S) == 128 + signal.SIGTERM
        assert names(ctl) == before
    finally:
        process.kill()
        process.wait()


def test_a_replay_in_a_daemon_that_is_not_there_says_so(ctl: Ctl) -> None:
    process = ctl.process("replay", "--url", "unix:///none/such.sock", stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert b"nobody listens on unix:///none/such.sock" in said
