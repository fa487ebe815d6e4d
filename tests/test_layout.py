"""The tree as a stranger finds it: small modules that say what they hold, and a map of them that is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*ROOT.glob("vmmd/**/*.py"), *ROOT.glob("client/**/*.py")])
MOST_LINES = 420


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_what_it_holds_and_stays_small(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert text.count("\n") <= MOST_LINES, "a concept in it wants a module of its own"


def test_the_map_of_the_house_names_every_module_of_the_daemon() -> None:
    house = (ROOT / "DESIGN.md").read_text()
    for path in ROOT.glob("vmmd/*/*.py"):
        if path.name != "__init__.py" and path.parent.name != "api":
            assert path.name in house, path.relative_to(ROOT)


def test_everything_that_make_help_lists_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert targets >= {"setup", "demo", "test", "check", "bench", "serve", "clean", "help"}
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert targets <= set(phony.split())
