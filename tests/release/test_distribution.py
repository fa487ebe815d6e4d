"""What is published holds what it has to hold, and the locks agree with one another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.release.distribution import PROJECT, ROOT, VERSION, Distribution, build, complaints
from vmmd import __version__


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    return build(tmp_path_factory.mktemp("dist"))


def test_wheel_and_source_distribution_are_whole_and_hold_nothing_else(built: Distribution) -> None:
    assert complaints(built) == []


def test_a_second_build_is_the_same_to_the_byte(built: Distribution, tmp_path: Path) -> None:
    again = build(tmp_path)
    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert again.sdist.read_bytes() == built.sdist.read_bytes()


def test_there_is_one_version() -> None:
    assert __version__ == VERSION
    assert re.search(rf"^## \[{re.escape(VERSION)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["runtime.lock", "build.lock"])
def test_a_small_lock_pins_what_the_large_one_pins(name: str) -> None:
    small, large = _pins(name), _pins("requirements.lock")
    # What makes an editable wheel is asked for by the build backend alone, and no environment of the tree needs it.
    small.pop("editables", None)
    assert small
    assert {package: large.get(package) for package in small} == small


def test_every_dependency_is_in_the_runtime_lock() -> None:
    pinned = _pins("runtime.lock")
    named = {re.split(r"[<>=\[]", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert named <= set(pinned)


def _pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Give version and hashes of each package of a lock."""
    text = (ROOT / name).read_text()
    return {
        package: (version, frozenset(re.findall(r"sha256:([0-9a-f]{64})", hashes)))
        for package, version, hashes in re.findall(
            r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=.*\n)+)", text, re.MULTILINE
        )
    }
