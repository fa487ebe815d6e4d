"""Grow, shrink, split, merge, move: what they make of the slot table, what they plan, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Ctl


def ranges(ctl: Ctl, vm: str) -> dict[int, tuple[int, int]]:
    """The slots by id: where each begins, and how large it is."""
    return {
        slot["slot"]: (int(slot["guest_phys_addr"], 16), int(slot["memory_size"], 16))
        for slot in ctl.json("slots", vm)["slots"]
    }


def test_a_slot_is_grown_shrunk_split_merged_and_moved(ctl: Ctl, vm: str) -> None:
    ctl.text("grow", vm, "0", "--by", "128K")
    assert ranges(ctl, vm) == {0: (0x100000, 0x60000)}
    ctl.text("shrink", vm, "@1M", "--to", "0x50000")
    assert ranges(ctl, vm) == {0: (0x100000, 0x50000)}
    ctl.text("split", vm, "0", "0x120000")
    ctl.text("split", vm, "0x130000", "0x140000", "--new-slot", "9")
    assert ranges(ctl, vm) == {0: (0x100000, 0x20000), 1: (0x120000, 0x20000), 9: (0x140000, 0x10000)}
    ctl.text("merge", vm, "1", "9", "0")
    assert ranges(ctl, vm) == {1: (0x100000, 0x50000)}
    ctl.text("move", vm, "1", "1G")
    assert ranges(ctl, vm) == {1: (0x40000000, 0x50000)}


def test_a_slots_flags_are_switched_one_by_one(ctl: Ctl, vm: str) -> None:
    for options, flags in ((("--read-only",), 3), (("--no-log",), 2), (("--no-read-only", "--log"), 1)):
        assert ctl.json("flags", vm, "0", *options)["result"]["generation"] > 1
        assert ctl.json("slots", vm)["slots"][0]["flags"] == flags


def test_a_change_tells_its_plan_its_pause_and_the_dirty_pages_of_what_went(ctl: Ctl, vm: str) -> None:
    ctl.text("memory", "write", vm, "0x103000", "--text", "x")
    change = ctl.json("split", vm, "0", "0x120000")
    assert [(step["call"], step["slot"]) for step in change["plan"]["steps"]] == [
        ("fetch", 0),
        ("delete", 0),
        ("create", 0),
        ("create", 1),
    ]
    assert change["plan"]["needs_hold"] is True
    assert "slot 0" in change["plan"]["reason"]
    assert change["result"]["generation"] == ctl.json("slots", vm)["generation"]
    assert change["result"]["pause_ns"] > 0
    assert change["result"]["dirty"] == [
        {
            "slot": 0,
            "guest_phys_addr": "0x100000",
            "ranges": [{"guest_phys_addr": "0x103000", "memory_size": "0x1000"}],
        }
    ]
    ctl.text("memory", "write", vm, "0x121000", "--text", "x")
    text = ctl.text("merge", vm, "0", "1")
    assert "kick all vCPUs" in text
    assert "paused for" in text
    assert "0x121000" in text


@pytest.mark.parametrize("way", ["--plan", "--dry-run"])
@pytest.mark.parametrize(
    "command",
    [
        ("grow", "0", "--by", "4K"),
        ("shrink", "0", "--by", "4K"),
        ("split", "0", "0x120000"),
        ("move", "0", "0"),
        ("flags", "0", "--no-log"),
    ],
    ids=lambda command: command[0],
)
def test_a_plan_and_a_dry_run_change_nothing(ctl: Ctl, vm: str, command: tuple[str, ...], way: str) -> None:
    before = ctl.json("slots", vm)
    name, *rest = command
    change: dict[str, Any] = ctl.json(name, vm, *rest, way)
    assert change["plan"]["steps"]
    assert (change["result"], change["dry_run"]) == (None, way == "--dry-run")
    assert ctl.json("slots", vm) == before


def test_a_dry_run_is_the_daemons_word_and_a_plan_is_not(ctl: Ctl, vm: str) -> None:
    ctl.text("kick", vm, "--hold", "long", "--lease-ms", "60000")
    command = ("split", vm, "0", "0x120000", "--wait-ms", "1")
    ctl.text(*command, "--plan")
    ctl.refused(*command, "--dry-run")
    ctl.text("resume", vm, "long")
    ctl.text(*command, "--dry-run")


def test_a_change_waits_its_turn_and_then_says_who_is_first(ctl: Ctl, vm: str) -> None:
    ctl.text("kick", vm, "--hold", "long", "--lease-ms", "60000")
    assert "ETIMEDOUT" in ctl.refused("split", vm, "0", "0x120000", "--wait-ms", "1")
    ctl.text("resume", vm, "long")
    ctl.text("split", vm, "0", "0x120000", "--wait-ms", "1")


def test_nobody_is_held_where_no_vcpu_can_see_the_difference_unless_asked(ctl: Ctl) -> None:
    vm = ctl.json("vm", "create", "--memory", "64K")["vm"]
    change = ctl.json("move", vm, "0", "1M")
    assert (change["plan"]["needs_hold"], change["result"]["pause_ns"]) == (False, None)
    assert "none is held" in ctl.text("move", vm, "0", "2M")
    assert ctl.json("move", vm, "0", "3M", "--hold")["result"]["pause_ns"] > 0
    ctl.text("vm", "destroy", vm)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("grow", "0", "--by", "1M"), "no host memory at"),
        (("grow", "0", "--to", "4K"), "cannot grow by -258048 bytes"),
        (("shrink", "0", "--to", "0"), "leave none; delete it"),
        (("shrink", "0", "--by", "256K"), "leave none; delete it"),
        (("split", "0", "0x100000"), "name an address inside it"),
        (("split", "0", "2M"), "name an address inside it"),
        (("merge", "0", "0"), "cannot be merged"),
        (("shrink", "0", "--by", "100"), "take 0x0 or 0x1000"),
        (("move", "0", "0x100800"), "take 0x100000 or 0x101000"),
        (("merge", "0", "5"), "there is no slot 5; the slots are: 0"),
        (("move", "0x50000000", "0"), "no slot covers 0x50000000"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(
    ctl: Ctl, vm: str, command: tuple[str, ...], words: str
) -> None:
    name, *rest = command
    before = ctl.json("slots", vm)
    assert words in ctl.refused(name, vm, *rest)
    assert ctl.json("slots", vm) == before


@pytest.mark.parametrize(
    "command",
    [
        ("grow", "0"),
        ("shrink", "0", "--by", "4K", "--to", "4K"),
        ("merge", "0"),
        ("grow", "0", "--by", "4X"),
        ("flags", "0"),
    ],
)
def test_what_is_not_said_fully_is_a_usage_error(ctl: Ctl, vm: str, command: tuple[str, ...]) -> None:
    name, *rest = command
    result = ctl(name, vm, *rest)
    assert result.exit_code == 2
    assert "Error:" in result.stderr
