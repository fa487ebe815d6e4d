"""`python -m tests.docs`: does what the documents say, and writes into them what they then should show.

With names of documents, those alone. `--list` prints every fence with what is done with it, and runs nothing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .fences import ROOT, Fence, documents, fences_of
from .reader import Reader, Tools, tools


def fate_of(fence: Fence) -> str:
    """Say what is done with a fence, in a few words."""
    if fence.runs:
        return "run"
    for mark, words in {"output": "compared", "file": "used", "tested": "by", "not-run": "not run:"}.items():
        if mark in fence.marks:
            return f"{words} {fence.marks[mark]}".strip()
    return "unmarked"


def main(arguments: list[str]) -> None:
    """Rewrite the documents, or list their fences."""
    paths = [Path(name).resolve() for name in arguments if name != "--list"] or documents()
    if "--list" in arguments:
        for path in paths:
            for fence in fences_of(path):
                print(f"{fence.place:<44} {fence.language or 'text':<8} {fate_of(fence)}")  # noqa: T201
        return
    with tempfile.TemporaryDirectory(prefix="vmmd-docs-") as name, tools(Path(name)) as installed:
        for path in paths:
            rewrite(path, Path(name), installed)


def rewrite(path: Path, scratch: Path, installed: Tools) -> None:
    """Do what one document says, and write what it should show."""
    folder = scratch / str(path.relative_to(ROOT)).replace("/", "-")
    folder.mkdir()
    reader = Reader(folder, installed)
    try:
        text = path.read_text()
        reread = reader.reread(text, str(path.relative_to(ROOT)))
    finally:
        reader.close()
    if reread != text:
        path.write_text(reread)
        print(f"{path.relative_to(ROOT)}: written anew")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
