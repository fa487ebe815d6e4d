"""`vmmctl events`: what happens, in order, from any place on, as lines for people and for programs."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .conftest import Ctl


def events(ctl: Ctl, *arguments: str) -> list[dict[str, Any]]:
    """The events that a command gives that ends by itself."""
    result = ctl("events", *arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


@contextmanager
def following(ctl: Ctl, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Follow events in a process of its own, from where it says that it follows."""
    with ctl.process("events", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"following from event" in process.stderr.readline()
        try:
            yield process
        finally:
            process.kill()


def test_what_happened_to_a_vm_is_told_in_order_from_the_beginning(ctl: Ctl, vm: str) -> None:
    ctl.text("split", vm, "0", "0x120000")
    told = events(ctl, vm, "--since", "0", "--type", "vm.created", "--type", "hold.resumed", "--count", "2")
    assert [event["type"] for event in told] == ["vm.created", "hold.resumed"]
    assert told[0]["name"] == "of a test"
    assert told[0]["seq"] < told[1]["seq"]
    assert {event["vm"] for event in told} == {vm}


def test_a_later_reader_goes_on_behind_the_last_event_it_has_seen(ctl: Ctl, vm: str) -> None:
    ctl.text("kick", vm, "--raw")
    ctl.text("resume", vm, "--raw")
    first, second = events(ctl, vm, "--since", "0", "--type", "kicked", "--type", "resumed", "--count", "2")
    place = f"{first['seq']}:{first['epoch']}"
    assert events(ctl, vm, "--since", place, "--count", "1") == [second]


def test_a_place_of_another_start_of_the_daemon_is_a_gap(ctl: Ctl, vm: str) -> None:
    (gap,) = events(ctl, "--since", "7:another", "--type", "vm.created", "--count", "1")
    assert (gap["type"], gap["missed"]) == ("gap", None)


def test_events_are_followed_as_lines_until_ctrl_c(ctl: Ctl) -> None:
    with following(ctl) as process:
        made = ctl.json("vm", "create", "--name", "\x1b[31m[red]")["vm"]
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        ctl.text("vm", "destroy", made)
        assert b"vm.destroyed" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert f" {made} " in line
    assert " vm.created " in line
    assert "name=\\x1b[31m[red]" in line


@pytest.mark.parametrize("place", ["x", "1K", ":epoch", "-1"])
def test_a_place_that_is_none_is_a_usage_error(ctl: Ctl, place: str) -> None:
    result = ctl("events", f"--since={place}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "SEQ:EPOCH" in result.stderr
