"""docs/reference is what the sources say now."""

from __future__ import annotations

import pytest

from .reference import FOLDER, pages


@pytest.mark.parametrize("name", pages())
def test_a_page_of_the_reference_is_current(name: str) -> None:
    # The comparison itself would be slow to explain.
    current = pages()[name]() == (FOLDER / name).read_text()
    assert current, "write it anew: python -m tests.docs.reference"


def test_no_page_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(pages())
