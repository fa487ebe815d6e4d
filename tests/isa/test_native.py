"""The kept object code: found again, and never trusted where it may not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmd.isa.native import Native


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a first start keeps."""
    folder = tmp_path_factory.mktemp("code") / "cache"
    assert Native(folder).made_anew
    (kept,) = folder.iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    return kept.name.encode() + b"\n" + kept.read_bytes()


def folder_with(filled: bytes, folder: Path) -> Path:
    name, _, content = filled.partition(b"\n")
    folder.mkdir(mode=0o700)
    file = folder / name.decode()
    file.write_bytes(content)
    file.chmod(0o600)
    return file


def test_a_second_start_takes_the_kept_code(filled: bytes, tmp_path: Path) -> None:
    file = folder_with(filled, tmp_path / "cache")
    assert not Native(file.parent).made_anew


def test_code_that_was_changed_is_made_anew(filled: bytes, tmp_path: Path) -> None:
    file = folder_with(filled, tmp_path / "cache")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Native(file.parent).made_anew
    assert not Native(file.parent).made_anew


def test_code_that_others_may_write_is_made_anew(filled: bytes, tmp_path: Path) -> None:
    file = folder_with(filled, tmp_path / "cache")
    file.chmod(0o622)
    assert Native(file.parent).made_anew


def test_code_in_a_folder_that_others_may_write_is_made_anew(filled: bytes, tmp_path: Path) -> None:
    file = folder_with(filled, tmp_path / "cache")
    file.parent.chmod(0o777)
    assert Native(file.parent).made_anew


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert Native(tmp_path / "file" / "cache").made_anew
