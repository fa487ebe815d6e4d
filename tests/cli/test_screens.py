"""docs/vmmctl.md shows what vmmctl shows, and leaves no command out."""

from __future__ import annotations

import re

from vmmd_client.cli import exits
from vmmd_client.cli.group import COMMANDS

from .screens import DOCUMENT, normalised, rewritten


def test_the_screens_in_the_document_are_those_of_the_commands() -> None:
    document = DOCUMENT.read_text()
    assert normalised(rewritten(document)) == normalised(document)


def test_the_document_shows_every_command() -> None:
    document = DOCUMENT.read_text()
    for command in COMMANDS:
        assert f"vmmctl {command}" in document, command


def test_the_document_has_every_exit_code_of_the_table() -> None:
    rows = set(re.findall(r"^\| (\d+) \|", DOCUMENT.read_text(), re.MULTILINE))
    assert rows == set(re.findall(r"^    (\d+) ", exits.__doc__ or "", re.MULTILINE))
