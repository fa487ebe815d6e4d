"""Compares engines with Unicorn on one random program after the other, and counts what ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from tests.differential.compare import Difference, compare, find_difference
from tests.differential.generate import generate
from tests.differential.program import Program
from tests.differential.shrink import shrink
from tests.differential.subjects import MakeSubject, OnEngine, OnUnicorn
from vmmd.isa.engine import CompiledEngine, EvaluatedEngine


@dataclass(slots=True)
class Tally:
    """What was compared: programs, instructions that each subject ran, and how many of each row."""

    programs: int = 0
    instructions: int = 0
    rows: Counter[str] = field(default_factory=Counter)


def on_engines(*engines: CompiledEngine | EvaluatedEngine) -> dict[str, MakeSubject]:
    """Return what makes subjects of engines, by their names."""
    return {engine.name: partial(OnEngine, engine) for engine in engines}


def compare_one(seed: str, others: Mapping[str, MakeSubject], tally: Tally) -> tuple[str, Difference] | None:
    """Compare on the program of a seed.

    Returns:
        The subject that differs from Unicorn, and the shortest program that shows it; or None.
    """
    program = generate(seed)
    tally.programs += 1
    tally.instructions += sum(program.portions)
    seen = compare(program, partial(OnUnicorn, counts=tally.rows), others)
    return None if seen is None else (seen.name, _shortest(program, others[seen.name]))


def _shortest(program: Program, other: MakeSubject) -> Difference:
    difference = find_difference(program, OnUnicorn, other)
    assert difference is not None, "what was seen once is seen again: subjects are deterministic"
    return shrink(difference, OnUnicorn, other)
