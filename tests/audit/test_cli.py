"""`vmmctl audit` and `vmmctl replay` as a user types them."""

from __future__ import annotations

import gc
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.audit.lines import RECORDINGS, SHIPPED, slot
from vmmd_client import demo
from vmmd_client.cli.audit import audit
from vmmd_client.cli.replay import replay

DIES, LIVES = (str(RECORDINGS / f"{name}.strace.gz") for name in ("qemu-7.2-pam-dies", "qemu-10.0-pam-lives"))
VMMCTL = [sys.executable, "-c", "from vmmd_client.cli import main; main()"]


def asked(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(audit, list(arguments), input=stdin)


def test_the_exit_status_tells_clean_from_exposed_from_unreadable(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("hello\n")
    assert asked(LIVES).exit_code == 0
    assert asked(DIES).exit_code == 1
    assert asked(LIVES, DIES).exit_code == 1
    refused = asked(DIES, str(bad))
    assert refused.exit_code == 2
    assert "bad holds no ioctl" in refused.stderr
    assert "1 was exposed" in refused.stdout


def test_pythons_collector_works_again_after_an_audit() -> None:
    assert asked(LIVES).exit_code == 0
    assert gc.isenabled()


@pytest.mark.parametrize("packed", [True, False])
def test_standard_input_is_read_plain_and_gzipped(packed: bool) -> None:
    data = Path(DIES).read_bytes()
    result = asked("--json", "-", stdin=data if packed else gzip.decompress(data))
    assert (result.exit_code, json.loads(result.stdout)["summary"]["exposed"]) == (1, 1)


def test_json_is_the_only_thing_on_standard_output() -> None:
    assert json.loads(asked("--json", DIES, LIVES).stdout)["summary"]["updates"] == 416


def test_the_gap_can_be_chosen() -> None:
    result = asked("--json", "--gap-ms", "0.1", LIVES)
    assert json.loads(result.stdout)["summary"]["updates"] > 407


def test_strict_ends_with_two_where_something_could_not_be_read(tmp_path: Path) -> None:
    clipped = tmp_path / "clipped"
    clipped.write_text(f"{slot(0, 0, 0, 4096)}\n{slot(1, 1, 8192, 4096)[:90]}\n")
    assert asked(str(clipped)).exit_code == 0
    assert asked("--strict", str(clipped)).exit_code == 2
    assert asked("--strict", LIVES).exit_code == 0


def test_files_are_written_beside_the_report(tmp_path: Path) -> None:
    names = {kind: tmp_path / kind for kind in ("html", "junit", "sarif")}
    result = asked(DIES, *(word for kind, path in names.items() for word in (f"--{kind}", str(path))))
    assert result.exit_code == 1
    assert [path.read_text()[:9] for path in names.values()] == ["<!doctype", "<?xml ver", '{\n "$sche']


def test_a_file_that_cannot_be_written_is_named() -> None:
    result = asked(DIES, "--html", "/none/such/page.html")
    assert result.exit_code == 2
    assert "/none/such/page.html cannot be written" in result.stderr
    assert "1 was exposed" in result.stdout


def test_a_report_that_cannot_be_written_is_no_verdict() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*VMMCTL, "audit", LIVES], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 2
    assert b"standard output cannot be written: No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_failure_of_our_own_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr("vmmd_client.cli.audit.audit_file", fails)
    result = asked(DIES)
    assert (result.exit_code, "out of order" in result.stderr) == (2, True)


def test_a_recording_without_a_call_of_kvm_is_unreadable(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("7 1700000000.000001 ioctl(1, TCGETS, {c_iflag=ICRNL}) = 0\n")
    result = asked(str(other))
    assert result.exit_code == 2
    assert "1 calls and none of them is KVM's" in result.stderr


def test_a_guess_at_whose_vm_it_is_is_doubtful_and_said_first(tmp_path: Path) -> None:
    lines = []
    for maker in (100, 110):
        lines += [
            f"{maker} 1700000000.000001 ioctl(3, KVM_CREATE_VM, 0) = 8",
            f"{maker} 1700000000.000002 ioctl(8, KVM_CREATE_VCPU, 0) = 12",
            slot(0.5, 0, 0, 4096, thread=maker),
        ]
    lines.append("121 1700000001.000000 ioctl(12, KVM_RUN, 0) = 0")
    two = tmp_path / "two"
    two.write_text("\n".join(lines))
    assert asked("--strict", str(two)).exit_code == 2
    summary = json.loads(asked("--json", str(two)).stdout)["summary"]
    assert (summary["guesses"], summary["doubtful"]) == (1, True)
    report = asked(str(two)).stdout
    assert report.index("was guessed") < report.index("VM (fd 8)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "TRACE"),
        (["--gap-ms", "-1", DIES], "--gap-ms"),
        (["--gap-ms", "nan", DIES], "--gap-ms"),
        (["--tracepoints", "x", DIES, LIVES], "--tracepoints"),
    ],
)
def test_a_command_line_that_cannot_be_meant_is_refused(arguments: list[str], words: str) -> None:
    result = asked(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_vmmctl_knows_both_commands_and_passes_their_status_on() -> None:
    done = subprocess.run([*VMMCTL, "audit", DIES], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "1 was exposed" in " ".join(done.stdout.split())) == (1, True), done.stderr
    assert (
        "--stretch" in subprocess.run([*VMMCTL, "replay", "--help"], capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--updates", "0"], "--updates"),
        (["--updates", "x"], "--updates"),
        (["--vcpus", "65"], "--vcpus"),
        (["--rounds", "3"], "--rounds"),
        (["--stretch", "2"], "--pace recorded"),
        (["--stretch", "nan", "--pace", "recorded"], "--stretch"),
    ],
)
def test_a_replay_that_cannot_be_meant_is_refused_before_anything_starts(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(replay, arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_replay_of_what_is_no_recording_is_an_error_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["/none/such"]) == 2
    assert "/none/such" in capsys.readouterr().err


def test_a_replay_of_a_vm_that_is_not_there_says_how_many_there_are() -> None:
    result = CliRunner().invoke(replay, [str(SHIPPED), "--vm", "3"])
    assert result.exit_code == 2
    assert "holds 1 VMs" in result.stderr


def test_stretched_holes_at_the_recorded_pace_stand_open_longer_and_are_noticed() -> None:
    done = subprocess.run(
        [*VMMCTL, "replay", DIES, "--pace", "recorded", "--stretch", "20", "--vcpus", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["trace"] == DIES
    assert last["updates"] == 7
    assert last["plain"]["stray_exits"] > 0
    assert (last["atomic"]["stray_exits"], last["atomic"]["wrong_values"]) == (0, 0)
    assert "Update 9 of the recording's 9, the first that was exposed, step by step:" in done.stdout
    assert "plain: 7 of 7 updates" in done.stdout
    longest = next(line for line in done.stdout.splitlines() if "hole open, longest" in line)
    # Between the answer to the delete and the begin of the last create more than a millisecond was recorded.
    assert float(longest.split("│")[2].replace(",", "")) > 20 * 1_000
