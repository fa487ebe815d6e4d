"""What goes wrong before and around a call: one sentence, an exit code of its own, no traceback, JSON kept clean."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import threading
from pathlib import Path

import pytest

from .conftest import TOKEN, Ctl


def test_no_daemon_is_3_and_says_how_to_start_one(ctl: Ctl, tmp_path: Path) -> None:
    said = ctl.refused("--url", f"unix://{tmp_path}/none.sock", "ping", code=3)
    assert "vmmd serve" in said


def test_a_url_that_is_none_is_3_and_says_what_would_be(ctl: Ctl) -> None:
    assert "unix:///" in ctl.refused("--url", "nonsense", "vm", "list", code=3)


def test_tcp_without_the_token_is_4_and_says_where_it_goes(ctl: Ctl, tmp_path: Path) -> None:
    said = ctl.refused("--url", ctl.daemon.tcp, "ping", code=4)
    assert "VMMD_TOKEN" in said
    assert "--token-file" in said
    assert ctl("--url", ctl.daemon.tcp, "ping", VMMD_TOKEN="wrong" * 4).exit_code == 4


def test_the_token_is_taken_from_the_environment_or_a_file(ctl: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert ctl("--url", ctl.daemon.tcp, "ping", VMMD_TOKEN=TOKEN).exit_code == 0
    assert ctl("--url", ctl.daemon.tcp, "--token-file", str(file), "ping").exit_code == 0
    assert "cannot be read" in ctl.refused("--token-file", str(tmp_path / "none"), "ping", code=2)


def test_an_answer_that_does_not_come_is_5(ctl: Ctl, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf.sock"))
        deaf.listen()
        said = ctl.refused("--url", f"unix://{tmp_path}/deaf.sock", "--call-timeout", "0.05", "ping", code=5)
    assert "did not answer within 0.05 s" in said


def test_a_daemon_that_vanishes_before_it_answers_is_5(ctl: Ctl, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as vanishing:
        vanishing.bind(str(tmp_path / "vanishing.sock"))
        vanishing.listen()
        over = threading.Event()

        def hang_up() -> None:
            while not over.is_set():
                connection, _ = vanishing.accept()
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            said = ctl.refused("--url", f"unix://{tmp_path}/vanishing.sock", "ping", code=5)
        finally:
            over.set()
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(tmp_path / "vanishing.sock"))
            thread.join()
    assert "ended the connection before it had answered" in said


def test_a_server_that_is_no_vmmd_is_5(ctl: Ctl, tmp_path: Path) -> None:
    with socketserver.UnixStreamServer(str(tmp_path / "other.sock"), _Other) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            ctl.refused("--url", f"unix://{tmp_path}/other.sock", "ping", code=5)
        finally:
            server.shutdown()
            thread.join()


class _Other(socketserver.StreamRequestHandler):
    """Answers any HTTP request with a page."""

    def handle(self) -> None:
        self.request.recv(4096)
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")


@pytest.mark.parametrize(
    "command",
    [
        ("slots", "vm999"),
        ("stats", "vm999"),
        ("vm", "destroy", "vm999"),
        ("vm", "start", "vm999"),
        ("dirty", "vm999"),
        ("regs", "show", "vm999"),
        ("kick", "vm999"),
        ("memory", "read", "vm999", "0", "8"),
        ("grow", "vm999", "0", "--by", "4K"),
        ("trace-update", "vm999", "0"),
    ],
    ids=" ".join,
)
def test_an_unknown_vm_is_refused_by_every_command(ctl: Ctl, command: tuple[str, ...]) -> None:
    assert "vm999" in ctl.refused(*command)


def test_with_json_an_error_is_one_object_on_stderr_and_stdout_is_empty(ctl: Ctl) -> None:
    for arguments in (("slots", "vm999", "--json"), ("--json", "slots", "vm999")):
        result = ctl(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        error = json.loads(result.stderr)["error"]
        assert (error["exit_code"], error["kind"], error["errno"]) == (1, "BadVm", "EBADF")
        assert "vm999" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("memory", "read", "vm1", "0x", "1"), "'0x' is no size: write it as 4096, 0x1000 or 4K"),
        (("memory", "read", "vm1", "12Q", "1"), "'12Q' is no size"),
        (("memory", "read", "vm1", "-1", "1"), "No such option"),
        (("memory", "read", "vm1", "0x1ffffffffffffffff", "1"), "more than 64 bits"),
        (("memory", "read", "vm1", "16777216T", "1"), "more than 64 bits"),
        (("vm", "advance", "vm1", "4K"), "'4K' is no number"),
        (("vm", "create", "--vcpus", "1025"), "1025"),
        (("vm", "create", "--log"), "--memory"),
        (("vm", "create", "--memory", "2M", "--reserve", "1M"), "--reserve"),
        (("dirty", "vm1", "--range", "4096"), "START:SIZE"),
        (("dirty", "vm1", "--slot", "x"), "names no slot"),
        (("regs", "set", "vm1", "0", "pc"), "NAME=VALUE"),
        (("regs", "set", "vm1", "0", "pc=x"), "'x' is no number"),
        (("memory", "write", "vm1", "0"), "one of --hex, --text and --file"),
        (("memory", "write", "vm1", "0", "--hex", "1"), "hexadecimal"),
        (("resume", "vm1"), "the name of a hold, or --raw"),
        (("kick", "vm1", "--raw", "--hold", "a"), "raw kick has no name"),
        (("call", "vm.get_stats", "vm"), "NAME=VALUE"),
        (("trace-update", "vm1"), "or neither"),
        (("run", "/nonexistent"), "/nonexistent"),
        (("run", "/"), "/"),
        (("frobnicate",), "No such command 'frobnicate'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_line_that_cannot_be_understood_is_2_and_asks_nobody(
    ctl: Ctl, arguments: tuple[str, ...], says: str
) -> None:
    result = ctl(*arguments, VMMD_URL="unix:///nobody/listens/here")
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr


def test_names_of_others_cannot_steer_the_terminal_nor_the_table(ctl: Ctl) -> None:
    name = "\x1b[31m[bold]x\u202e\n\x9b"
    vm = ctl.json("vm", "create", "--name", name)["vm"]
    for command in (("vm", "list"), ("top", "--once", "--interval", "0.01")):
        assert "\\x1b[31m[bold]x\\u202e\\n\\x9b" in ctl.text(*command)
    (listed,) = [info for info in ctl.json("vm", "list") if info["vm"] == vm]
    assert listed["name"] == name
    ctl.text("vm", "destroy", vm)
    assert "\x1b" not in ctl.refused("slots", "\x1b[31m")


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ("vm", "list"),
            ("vm", "list", "--json"),
            ("slots", "VM"),
            ("discover",),
            ("top", "--once"),
            ("regs", "VM", "0"),
        ),
        *(("--help",), ("vm", "list", "--help"), ("--version",), ("completion", "bash")),
    ],
)
def test_a_reader_that_goes_away_ends_a_command_quietly_with_141(ctl: Ctl, vm: str, arguments: tuple[str, ...]) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    command = [vm if each == "VM" else each for each in arguments]
    if command[0] == "regs":
        command.insert(1, "show")
    with ctl.process(*command, stdout=writable, stderr=subprocess.PIPE) as process:
        os.close(writable)
        assert process.communicate()[1] == b""
    assert process.returncode == 141


@pytest.mark.parametrize("arguments", [("vm", "list"), ("vm", "list", "--json"), ("--help",)])
def test_an_output_that_takes_nothing_is_one_sentence(ctl: Ctl, vm: str, arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full, ctl.process(*arguments, stdout=full, stderr=subprocess.PIPE) as process:
        said = process.communicate()[1]
    assert said == b"vmmctl: stdout cannot be written: No space left on device\n"
    assert process.returncode == 1


def test_a_token_may_end_with_a_newline_and_one_that_no_header_holds_is_4(ctl: Ctl, tmp_path: Path) -> None:
    assert ctl("--url", ctl.daemon.tcp, "ping", VMMD_TOKEN=TOKEN + "\r\n").exit_code == 0
    for url in (ctl.daemon.tcp, ctl.daemon.tcp.replace("http:", "ws:")):
        said = ctl.refused("--url", url, "ping", code=4, VMMD_TOKEN="a\nsecret")  # noqa: S106
        assert "control character" in said
        assert "secret" not in said


def test_a_refused_token_is_told_in_the_daemons_words_by_either_way(ctl: Ctl) -> None:
    for url in (ctl.daemon.tcp, ctl.daemon.tcp.replace("http:", "ws:")):
        said = ctl.refused("--url", url, "ping", code=4)
        assert "Over TCP every request bears the token" in said
        assert ".;" not in said


def test_colours_are_for_terminals_where_no_color_is_not_set(ctl: Ctl) -> None:
    assert "\x1b" not in ctl.text("vm", "list")
