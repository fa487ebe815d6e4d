"""`python -m tests.differential.riscv_tests FOLDER`: run the "-p-" binaries of riscv-tests on both engines.

Give it the folder that riscv-tests' own build leaves in `isa/`, or one with some files of it: those called
`rv64ui-p-*`, `rv64um-p-*` and `rv64ua-p-*` are run as they are built, and the others are left. At its end such a
program loops over a store to its symbol `tohost`: 1 where all went well, and else the number of the test that failed,
times two, plus one.

It holds nothing of riscv-tests itself. The exit status is 0 where every file passed on both engines.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from tests.isa.forced import close_forced_engines, every_engine
from tests.isa.turns import run
from vmmd.isa.context import Context
from vmmd.isa.elf import ElfError, Image, parse
from vmmd.isa.engine import Engine
from vmmd.isa.stop import Stop
from vmmd.memory.access import read_guest, write_guest
from vmmd.memory.host import HostSpace, Ledger
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.memslots import Memslots
from vmmd.memory.region import Region
from vmmd.memory.view import View

FAMILIES = ("rv64ui-p-*", "rv64um-p-*", "rv64ua-p-*")
"""What T64 has: RV64I, M and A, each with the environment that has no paging."""

MOST_INSTRUCTIONS = 1_000_000
"""The longest of them run some tens of thousands."""

MEMORY_BYTES = 1 << 20
"""Those of rv64ua reserve 64 KiB, and all else is small."""

_BETWEEN_LOOKS = 5_000
_PASSED = 1


def binaries(folder: Path) -> list[Path]:
    """Return the binaries of a folder that are for T64; the listings beside them have a suffix."""
    return sorted(path for family in FAMILIES for path in folder.glob(family) if not path.suffix and path.is_file())


def run_file(engine: Engine, path: Path) -> str | None:
    """Run a binary, and return what went wrong, or None where it passed."""
    try:
        image = parse(path.read_bytes())
    except ElfError as error:
        return f"not loaded: {error}"
    return run_image(engine, image)


def run_image(engine: Engine, image: Image) -> str | None:
    """Run a program until it stores to `tohost`, and return what went wrong, or None where it passed."""
    tohost = image.symbols.get("tohost")
    if tohost is None:
        return "it has no symbol tohost to tell its result by"
    bottom = min(segment.paddr for segment in image.segments) // PAGE_SIZE * PAGE_SIZE
    top = max(segment.paddr + segment.memory_size for segment in image.segments)
    if top - bottom > MEMORY_BYTES:
        return f"it needs {top - bottom} bytes of memory, and the machine here has {MEMORY_BYTES}"
    return _run(engine, *_machine(image, bottom), tohost)


def _machine(image: Image, bottom: int) -> tuple[Context, View]:
    """Return a context at the entry of a program, and its memory in one slot."""
    host, base = HostSpace().with_mapping(MEMORY_BYTES, Ledger(MEMORY_BYTES))
    memslots, _ = Memslots().with_change(Region(0, 0, bottom, MEMORY_BYTES, base), _no_log)
    view = View(memslots, host)
    context = Context(ctypes.c_uint64(view.number), 0, lambda: 0)
    context.take_view(view)
    for segment in image.segments:
        write_guest(view, segment.paddr, segment.data)
    context.record.pc = image.entry
    return context, view


def _no_log(npages: int) -> NoReturn:
    raise AssertionError(f"a slot of {npages} pages asks for a log, and has not the flag")


def _run(engine: Engine, context: Context, view: View, tohost: int) -> str | None:
    record = context.record
    while record.retired < MOST_INSTRUCTIONS:
        record.budget = _BETWEEN_LOOKS
        ran = run(engine, context, view)
        told = int.from_bytes(read_guest(view, tohost, 8), "little")
        if told:
            return None if told == _PASSED else f"test {told >> 1} failed (tohost {told:#x})"
        if ran is not Stop.BUDGET:
            return f"left the guest at {record.pc:#x}: {ran}"
    return f"no end within {MOST_INSTRUCTIONS} instructions; pc is {record.pc:#x}"


def failures(folder: Path, engines: Mapping[str, Engine]) -> Iterator[tuple[Path, dict[str, str]]]:
    """Run a folder's binaries, and give for each what went wrong on which engine."""
    for path in binaries(folder):
        found = {name: run_file(engine, path) for name, engine in engines.items()}
        yield path, {name: failure for name, failure in found.items() if failure is not None}


def main(arguments: list[str] | None = None, cache_dir: Path | None = None) -> int:
    """Run a folder's binaries and give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential.riscv_tests", description=__doc__)
    parser.add_argument("folder", type=Path, help="where riscv-tests' binaries are")
    folder: Path = parser.parse_args(arguments).folder
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not binaries(folder):
        console.print(f"{folder} has no files called {', '.join(FAMILIES)}; build riscv-tests' isa folder first")
        return 1
    passed = failed = 0
    for path, wrong in failures(folder, every_engine(cache_dir)):
        passed, failed = passed + (not wrong), failed + bool(wrong)
        for engine, failure in wrong.items():
            console.print(f"{path.name} on the {engine} engine: {failure}")
    console.print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        close_forced_engines()
