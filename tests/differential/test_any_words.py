"""Any word as an instruction has a defined end: the same on both engines, within the budget, without a crash."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.differential.any_words import FIELDS, play
from vmmd.isa.csrs import EXTERNAL, SOFTWARE, TIMER
from vmmd.isa.engine import CompiledEngine, EvaluatedEngine
from vmmd.isa.traps import (
    BREAKPOINT,
    ENVIRONMENT_CALL,
    ILLEGAL_INSTRUCTION,
    INTERRUPT,
    LOAD_MISALIGNED,
    MISALIGNED_FETCH,
    STORE_MISALIGNED,
)

MACHINES = 60


@pytest.fixture(scope="module")
def engine(cache_dir: Path) -> CompiledEngine:
    return CompiledEngine(cache_dir)


@pytest.mark.parametrize("seed", ["fixed", f"fresh {secrets.token_hex(4)}"], ids=lambda seed: seed.split()[0])
def test_both_engines_agree_on_any_words(seed: str, engine: CompiledEngine) -> None:
    for number in range(MACHINES):
        name = f"{seed}/{number}"
        assert play(engine, name) == play(EvaluatedEngine(), name), name


def test_any_words_meet_every_kind_of_end_and_traps_that_the_guest_takes(engine: CompiledEngine) -> None:
    met: set[str] = set()
    causes: set[int] = set()
    for number in range(2 * MACHINES):
        for run in play(engine, f"met/{number}").runs:
            met.add(type(run.end[0] if isinstance(run.end, tuple) else run.end).__name__)
            if run.trapped:
                causes.add(run.state[3 + FIELDS.index("mcause")])
    outside = {"Mmio", "Port", "Hypercall", "Halt", "Trap", "Breakpoint", "NoCode", "NoAtomic", "LostPage"}
    assert met == outside | {"Stop"}
    exceptions = {MISALIGNED_FETCH, ILLEGAL_INSTRUCTION, BREAKPOINT, LOAD_MISALIGNED, STORE_MISALIGNED}
    assert causes >= exceptions | {ENVIRONMENT_CALL}


def test_interrupts_are_taken_among_any_words(engine: CompiledEngine) -> None:
    causes = {
        run.state[3 + FIELDS.index("mcause")]
        for number in range(2 * MACHINES)
        for run in play(engine, f"met/{number}").runs
    }
    assert {INTERRUPT | number for number in (SOFTWARE, TIMER, EXTERNAL)} <= causes
