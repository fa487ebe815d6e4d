"""vmmctl on a terminal: colours, `top` that draws itself anew, and a guest's bytes."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from .conftest import Ctl
from .test_run import SAYS


class Terminal:
    """A terminal with vmmctl on it."""

    def __init__(self, ctl: Ctl, *arguments: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        daemon = replace(ctl.daemon, environment=ctl.daemon.environment | {"TERM": "xterm"} | environment)
        self.process = Ctl(daemon).process(*arguments, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)

    def read_until(self, wanted: bytes, times: int = 1) -> bytes:
        """Give what was written until it has the wanted words so often."""
        seen = b""
        while seen.count(wanted) < times:
            seen += os.read(self._ours, 4096)
        return seen

    def rest(self) -> bytes:
        """Give what is written until the end."""
        seen = b""
        try:
            while piece := os.read(self._ours, 4096):
                seen += piece
        except OSError:  # Linux's way to say that the other side of a terminal is closed.
            pass
        self.process.wait()
        return seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(ctl: Ctl, *arguments: str, **environment: str) -> Iterator[Terminal]:
    made = Terminal(ctl, *arguments, **environment)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_has_styles_unless_no_color_is_set(
    ctl: Ctl, vm: str, environment: dict[str, str], coloured: bool
) -> None:
    with terminal(ctl, "slots", vm, **environment) as shown:
        written = shown.rest()
    assert b"userspace_addr" in written
    assert (b"\x1b[" in written) == coloured


def test_a_terminal_without_the_characters_gets_escapes(ctl: Ctl, vm: str) -> None:
    with terminal(ctl, "slots", vm, PYTHONIOENCODING="ascii") as shown:
        assert b"\\u2502 slot 0" in shown.rest()
        assert shown.process.returncode == 0


def test_top_draws_itself_anew_until_ctrl_c_and_leaves_the_terminal_as_it_was(ctl: Ctl, vm: str) -> None:
    with terminal(ctl, "top", "--interval", "0.05") as shown:
        shown.read_until(b"of a test", times=3)
        shown.process.send_signal(signal.SIGINT)
        rest = shown.rest()
        assert shown.process.returncode == 130
    assert b"\x1b[?25h" in rest, "the cursor stays hidden"
    assert b"Traceback" not in rest


def test_an_advance_shows_how_far_it_is_and_ctrl_c_ends_it(ctl: Ctl) -> None:
    made = ctl.json("vm", "create", "--cooperative", "--memory", "4K", "--vcpus", "1")["vm"]
    ctl.text("memory", "write", made, "0", "--hex", "6f000000")
    with terminal(ctl, "vm", "advance", made, str(1 << 40)) as shown:
        shown.read_until(b"advancing", times=3)
        shown.process.send_signal(signal.SIGINT)
        rest = shown.rest()
        assert shown.process.returncode == 130
    assert b"\x1b[?25h" in rest, "the cursor stays hidden"
    assert b"Traceback" not in rest
    ctl.text("vm", "destroy", made)


@pytest.mark.parametrize(("options", "seen"), [((), b"\\x1b[31mred"), (("--raw",), b"\x1b[31mred")])
def test_a_guests_escapes_reach_it_only_with_raw(
    ctl: Ctl, tmp_path: Path, options: tuple[str, ...], seen: bytes
) -> None:
    source = tmp_path / "guest.s"
    source.write_text(SAYS.format("wfi"))
    with terminal(ctl, "run", str(source), *options) as shown:
        assert shown.rest().replace(b"\r\n", b"\n") == b"hello\n" + seen + b"\n"
        assert shown.process.returncode == 0


@pytest.mark.parametrize("columns", [20, 40, 50, 64, 80, 100])
def test_a_narrow_terminal_cuts_no_number_and_no_word(ctl: Ctl, vm: str, columns: int) -> None:
    regions = ctl.json("slots", vm)["slots"]
    for command, words in (
        (("slots", vm, "--no-map"), [region["userspace_addr"] for region in regions] + ["0x100000"]),
        (("top", "--once", "--interval", "0.01"), ["created"]),
        (("vm", "list"), ["created", "parallel"]),
        (("stats", vm), ["total"]),
    ):
        shown = ctl(*command, COLUMNS=str(columns))
        assert shown.exit_code == 0
        for word in words:
            assert word in shown.stdout
        assert all(len(line) <= columns for line in shown.stdout.splitlines())


def test_a_name_that_is_too_long_for_the_terminal_ends_with_an_ellipsis(ctl: Ctl) -> None:
    made = ctl.json("vm", "create", "--name", "n" * 60)["vm"]
    assert "nnn…" in ctl("vm", "list", COLUMNS="80").stdout
    assert "n" * 60 in ctl("vm", "list", COLUMNS="160").stdout
    ctl.text("vm", "destroy", made)


def test_a_narrow_map_says_that_it_is_cut(ctl: Ctl, vm: str) -> None:
    assert "…" in ctl("slots", vm, COLUMNS="40").stdout
