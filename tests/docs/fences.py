"""The fences of the documents: what a reader could copy, and what is to be done with it.

The first word of a fence's info string is its language, which decides how it is run; the others are marks:

    sh                      commands; all have to succeed
    console                 commands behind `$ ` (and `> ` where one goes on), each with what it writes
    python                  a whole program
    python async            goes on where the document's `python async` before it ended, as in `python -m asyncio`
    python sync             the same without an event loop
    … output                no commands: what the fence before it writes
    … file=NAME             a file of that name, for the commands behind it
    … tested=PATH           it is run or compared by that test
    … not-run="REASON"      it is not run

A language that cannot be run needs one of the last four.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent.parent
RUN_LANGUAGES = frozenset({"sh", "console", "python"})
MARKS = frozenset({"async", "sync", "output", "file", "tested", "not-run"})


@dataclass(frozen=True)
class Fence:
    """One fence.

    Attributes:
        document: The document's path, from the root of the tree.
        line: The line of its opening, from 1.
        language: The info string's first word; "" where there is none.
        marks: Its other words, by name; "" where they have no value.
        text: What is in it.
    """

    document: str
    line: int
    language: str
    marks: Mapping[str, str]
    text: str

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.document}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether it is run here."""
        return self.language in RUN_LANGUAGES and self.marks.keys() <= {"async", "sync"}

    @property
    def shows(self) -> bool:
        """Whether it is what the fence before it writes."""
        return "output" in self.marks


def documents() -> list[Path]:
    """Give every document for people whose fences are looked at."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fences_in(text: str, document: str) -> list[Fence]:
    """Give the fences of a document in their order."""
    found = []
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.map is not None:
            words = shlex.split(token.info)
            marks = dict(word.partition("=")[::2] for word in words[1:])
            found.append(Fence(document, token.map[0] + 1, words[0] if words else "", marks, token.content))
    return found


def fences_of(path: Path) -> list[Fence]:
    """Give the fences of a document by its path."""
    return fences_in(path.read_text(), str(path.relative_to(ROOT)))
