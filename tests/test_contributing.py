"""CONTRIBUTING.md agrees with the tree: every path in it is there, and every list leads to where its example stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmmd.api.methods import METHODS
from vmmd.isa.instructions import BY_NAME

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()

_FILE = r"`([\w/.-]+(?:\.(?:py|md|toml|lock|yaml|json)|/|Dockerfile))`"


def lists() -> list[tuple[str, list[str]]]:
    """Give each list of places: the name that was added as its example, and the list's points."""
    found = re.findall(r"[Aa]s `(\w+)` was[.:].*\n((?:.+\n)*?)((?:\d\. .+\n(?:   .+\n)*)+)", TEXT)
    return [(example, re.findall(r"^\d\. .+\n(?:   .+\n)*", points, re.MULTILINE)) for example, _, points in found]


def test_every_path_is_there() -> None:
    paths = re.findall(_FILE, TEXT)
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_list_is_found_and_its_examples_are_in_the_tables() -> None:
    (ioctl, _), (instruction, _), (operation, _), (method, _) = lists()
    assert f"vm.{ioctl}" in METHODS
    assert f"vm.{method}" in METHODS
    assert instruction in BY_NAME
    assert operation in (ROOT / "vmmd/isa/instructions.py").read_text()


@pytest.mark.parametrize(("example", "points"), lists(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_first_place_of_every_point_holds_the_example(example: str, points: list[str]) -> None:
    assert len(points) >= 2
    for point in points:
        path = re.findall(_FILE, point)[0]
        assert re.search(rf"\b{example}\b", (ROOT / path).read_text()), path


def test_every_room_has_a_row() -> None:
    rooms = [path.parent for path in ROOT.glob("vmmd/*/__init__.py")]
    assert [room.name for room in rooms if f"| `vmmd/{room.name}/` |" not in TEXT] == []


def test_every_module_that_a_point_has_run_exists() -> None:
    modules = re.findall(r"`python -m ([\w.]+)", TEXT)
    assert modules
    assert all((ROOT / f"{module.replace('.', '/')}.py").exists() for module in modules)


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in re.findall(r"`make ([a-z-]+)", TEXT) if f"\n{name}: " not in makefile] == []
