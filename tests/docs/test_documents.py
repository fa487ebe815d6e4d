"""What the documents say is so: every fence is run or says why not, every link leads somewhere."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .__main__ import fate_of
from .fences import MARKS, ROOT, RUN_LANGUAGES, documents, fences_in, fences_of
from .reader import Reader, Tools, tools
from .varying import normalised

NEEDED = {
    "docs/how-to/write-a-guest.md": ("riscv64-unknown-elf-gcc",),
    "docs/race-on-real-kvm/README.md": ("gcc", "ld", "strace", "qemu-system-x86_64", "/dev/kvm"),
}
"""What a document's commands need that is not this tree's; all of them may need curl."""

_LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    with tools(tmp_path_factory.mktemp("path")) as made:
        yield made


@pytest.fixture
def reader(tmp_path: Path, installed: Tools) -> Iterator[Reader]:
    made = Reader(tmp_path, installed)
    try:
        yield made
    finally:
        made.close()


def names(*, with_runs: bool) -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for path in documents()
        if any(fence.runs for fence in fences_of(path)) or not with_runs
    ]


@pytest.mark.parametrize("name", names(with_runs=True))
def test_a_document_shows_what_its_commands_write(name: str, reader: Reader) -> None:
    for needed in ("curl", *NEEDED.get(name, ())):
        usable = os.access(needed, os.R_OK | os.W_OK) if needed.startswith("/") else shutil.which(needed)
        if not usable:
            pytest.skip(f"{needed} is not there, or not ours to use")
    text = (ROOT / name).read_text()
    reread = reader.reread(text, name)
    assert normalised(reread) == normalised(text), "write it anew: python -m tests.docs"


def test_every_fence_is_run_or_says_what_becomes_of_it() -> None:
    listed = [fence for path in documents() for fence in fences_of(path)]
    for fence in listed:
        assert fence.marks.keys() <= MARKS, fence.place
        assert fate_of(fence) != "unmarked", f"{fence.place}: run, compared, or with a reason why not"
        if "not-run" in fence.marks:
            assert len(fence.marks["not-run"]) > 10, f"{fence.place}: a reason is a sentence"
        if "tested" in fence.marks:
            # A test that reads a document, or all of a folder, names it.
            named = (ROOT / fence.marks["tested"]).read_text()
            folder = str(Path(fence.document).parent)
            assert fence.document in named or ("/" in folder and folder in named), fence.place


def test_commands_that_are_not_run_are_few() -> None:
    commands = [fence for path in documents() for fence in fences_of(path) if fence.language in RUN_LANGUAGES]
    not_run = [fence.place for fence in commands if "not-run" in fence.marks]
    assert len(not_run) * 5 < sum(fence.runs for fence in commands), not_run


@pytest.mark.parametrize("name", [*names(with_runs=False), "DESIGN.md"])
def test_links_lead_to_files_and_headings_that_are_there(name: str) -> None:
    path = ROOT / name
    for target in _LINK.findall(_prose(path)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        if anchor:
            assert anchor in _anchors(there), target


@pytest.mark.parametrize("name", names(with_runs=False))
def test_every_make_target_that_is_named_is_there(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE)
    assert [target for target in named if f"\n{target}: " not in makefile] == []


def test_every_document_can_be_found_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in _LINK.findall(index.read_text())}
    missing = [str(path) for path in documents() if path not in {*linked, index, ROOT / "README.md"}]
    assert not missing


def test_a_fence_whose_output_differs_is_written_anew(reader: Reader) -> None:
    text = "```console\n$ echo $((6 * 7))\nforty\n$ echo 0.5 ms\n0.7 ms\n```\n"
    assert reader.reread(text, "made up") == text.replace("forty", "42")


def test_a_command_that_fails_is_told(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="No such file"):
        reader.reread("```sh\ncat /nobody/here\necho not reached\n```\n", "made up")


def test_marks_are_read_with_their_values() -> None:
    (fence,) = fences_in('x\n\n```sh not-run="it needs root"\nls\n```\n', "made up")
    assert (fence.language, fence.marks, fence.line) == ("sh", {"not-run": "it needs root"}, 3)
    assert not fence.runs


def _prose(path: Path) -> str:
    """Give a document without its fences."""
    text = path.read_text()
    for fence in fences_in(text, path.name):
        text = text.replace(fence.text, "")
    return text


def _anchors(path: Path) -> set[str]:
    """Give the anchors of a document's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in _HEADING.findall(_prose(path))
    }
