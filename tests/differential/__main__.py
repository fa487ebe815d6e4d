"""`python -m tests.differential`: run random programs of RV64IMA on vmmd and on Unicorn, and say where they differ.

Beside each program a machine full of random words runs on vmmd's two engines. It prints how much was compared, and the
first difference as the shortest program that shows it. The exit status is 1 where there is one, else 0.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.differential.any_words import play
from tests.differential.fuzz import Tally, compare_one, on_engines
from tests.differential.generate import INSTRUCTIONS_A_PROGRAM
from tests.differential.listing import listing
from tests.isa.forced import close_forced_engines, forced_engine
from vmmd.isa.engine import CompiledEngine, EvaluatedEngine

_SAY_EVERY_S = 5
_TRANSLATED_EVERY = 16
"""Every so many programs run in translated code too."""


def main(arguments: list[str] | None = None, cache_dir: Path | None = None) -> int:
    """Run the comparison and give its exit status; `cache_dir` keeps the compiled engine's code."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if options.program is None:
        console.print(f"seed {options.seed}")
    tally = Tally()
    try:
        difference = _compare(options, tally, console, cache_dir)
    except KeyboardInterrupt:
        return 130
    rows = [f"{name} {ran}" for name, ran in tally.rows.most_common()]
    for start in range(0, len(rows), 8):
        console.print(f"  {'  '.join(rows[start : start + 8])}")
    console.print(
        f"{tally.programs} programs and {tally.instructions} instructions on Unicorn, interpreted and evaluated, "
        f"{len(tally.rows)} different ones, one in {_TRANSLATED_EVERY} translated too; as many machines of random words"
    )
    console.print(difference or "no difference")
    return 1 if difference else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--instructions", type=_count, metavar="N", help="at least so many on each (1000000)")
    parser.add_argument("--minutes", type=float, metavar="M", help="for so long, or until --instructions are done")
    parser.add_argument("--seed", default=secrets.token_hex(4), metavar="S", help="any text; left out: a fresh one")
    parser.add_argument("--program", metavar="P", help="only this one: what a report calls the program")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def _most(options: argparse.Namespace) -> int | None:
    """Return how many instructions are enough, or None where time alone says so."""
    if options.instructions is None and options.minutes is None:
        return 1_000_000
    given: int | None = options.instructions
    return given


def _programs(options: argparse.Namespace, tally: Tally) -> Iterator[str]:
    """Give the names of programs until enough has been compared."""
    if options.program is not None:
        yield options.program
        return
    most = _most(options) or float("inf")
    until = time.monotonic() + options.minutes * 60 if options.minutes else float("inf")
    for number in count():
        if tally.instructions >= most or time.monotonic() >= until:
            return
        yield f"{options.seed}/{number}"


def _compare(options: argparse.Namespace, tally: Tally, console: Console, cache_dir: Path | None) -> str | None:
    """Compare until there is a difference, and return it as text, or all is done."""
    compiled, evaluated = CompiledEngine(cache_dir), EvaluatedEngine()
    others = on_engines(compiled, evaluated)
    translated = forced_engine(cache_dir)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    said_at = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("comparing", total=_most(options))
        for number, name in enumerate(_programs(options, tally)):
            # Each region of a program takes some ten milliseconds to be translated.
            also = on_engines(translated) if number % _TRANSLATED_EVERY == 0 else {}
            found = compare_one(name, others | also, tally)
            if found is not None:
                engine, difference = found
                return f"difference of the {engine} engine:\n{listing(difference, engine)}"
            if play(compiled, name) != play(evaluated, name):
                return f"the engines differ on the random words of {name!r}"
            done = f"{tally.programs} programs, {tally.instructions} instructions"
            progress.update(task, description=done, advance=INSTRUCTIONS_A_PROGRAM)
            if not console.is_terminal and time.monotonic() - said_at >= _SAY_EVERY_S:
                said_at = time.monotonic()
                console.print(f"  {done}")
    return None


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        close_forced_engines()
