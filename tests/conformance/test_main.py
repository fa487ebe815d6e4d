"""`python -m tests.conformance` as it is run: where there is no KVM, and where there is one."""

from __future__ import annotations

import platform

import pytest

from tests.conformance import kernel
from tests.conformance.__main__ import main
from tests.conformance.host import NotAskableError, ask_host


@pytest.fixture
def x86_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


@pytest.mark.usefixtures("x86_64")
def test_without_a_kvm_it_says_that_it_has_not_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel, "DEVICE", "/dev/no-such-kvm")
    assert main(["--sequences", "3"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("conformance: not asked: ")
    assert "No such file or directory" in line


@pytest.mark.usefixtures("x86_64")
def test_a_file_that_is_no_kvm_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel, "DEVICE", "/dev/null")
    assert main(["--sequences", "3"]) == 0
    assert capsys.readouterr().out.startswith("conformance: not asked: /dev/null cannot be used")


def test_another_architecture_is_not_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert main(["--sequences", "3"]) == 0
    assert "this machine is aarch64" in capsys.readouterr().out


def test_it_says_what_it_asked_and_that_nothing_differs(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        ask_host()
    except NotAskableError as reason:
        pytest.skip(f"the kernel cannot be asked: {reason}")
    assert main(["--sequences", "3", "--seed", "a seed", "--engine", "evaluated"]) == 0
    said = capsys.readouterr().out
    assert "seed a seed, 3 sequences" in said
    assert "set_user_memory_region" in said
    assert said.endswith("no differences\n")


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_count_that_is_none_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--sequences={count}"])
    assert "is no positive integer" in capsys.readouterr().err
