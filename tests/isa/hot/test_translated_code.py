"""Translated code does what the evaluation does: on random programs, on code that changes, and between the engines."""

from __future__ import annotations

import random
import secrets
from pathlib import Path

import pytest

from tests.differential import any_words
from tests.differential.fuzz import Tally, compare_one, on_engines
from tests.differential.generate import generate
from tests.differential.listing import listing
from tests.differential.subjects import OnEngine
from tests.isa.forced import forced_engine
from tests.isa.machine import BareMachine, bare_machine
from tests.isa.test_engines_agree import play
from tests.isa.turns import run
from vmmd.isa.assembler import assemble
from vmmd.isa.engine import CompiledEngine, Engine, EvaluatedEngine
from vmmd.isa.outcome import Halt
from vmmd.isa.stop import Stop
from vmmd.memory.access import read_guest, write_guest
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import Region


@pytest.fixture
def forced(cache_dir: Path) -> CompiledEngine:
    return forced_engine(cache_dir)


def after(engine: Engine, source: str, regions: tuple[Region, ...] = (), **registers: int) -> BareMachine:
    """Run a program to its wfi."""
    machine = bare_machine(engine, assemble(source).code, regions=regions)
    for name, value in registers.items():
        machine.context.record.x[int(name[1:])] = value
    machine.context.record.budget = 100_000
    assert run(engine, machine.context, machine.view) == Halt()
    return machine


def state(machine: BareMachine) -> tuple[object, ...]:
    record = machine.context.record
    return tuple(record.x), record.pc, record.retired, read_guest(machine.view, 0, PAGE_SIZE)


@pytest.mark.parametrize("seed", ["fixed", f"fresh {secrets.token_hex(4)}"], ids=lambda seed: seed.split()[0])
def test_translated_code_does_what_unicorn_does(seed: str, forced: CompiledEngine) -> None:
    before = forced.translations.translated
    for number in range(6):
        found = compare_one(f"{seed}/{number}", on_engines(forced), Tally())
        assert found is None, listing(found[1], found[0])
    assert forced.translations.translated > before


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_with_every_kind_of_end_come_to_the_same(seed: int, forced: CompiledEngine) -> None:
    assert play(forced, seed) == play(EvaluatedEngine(), seed)


@pytest.mark.parametrize("number", range(8))
def test_any_words_come_to_the_same(number: int, forced: CompiledEngine) -> None:
    assert any_words.play(forced, f"hot/{number}") == any_words.play(EvaluatedEngine(), f"hot/{number}")


@pytest.mark.parametrize("seed", range(4))
def test_a_run_may_change_between_the_engines_at_any_instruction(
    seed: int, forced: CompiledEngine, compiled_engine: CompiledEngine
) -> None:
    draw = random.Random(seed)
    program = generate(f"flips/{seed}")
    alone, flipping = OnEngine(EvaluatedEngine(), program), OnEngine(forced, program)
    for _ in range(150):
        instructions = draw.choice([1, 2, 3, draw.randrange(1, 40)])
        flipping._engine = draw.choice([forced, forced, compiled_engine, EvaluatedEngine()])
        alone.run(instructions)
        flipping.run(instructions)
        assert flipping.state() == alone.state()


# Each changes an instruction that it runs again afterwards.
ITSELF = """
    li a3, 3
    la a0, patched
    lw a1, replacement
1:  addi a3, a3, -1
patched:
    addi a2, a2, 1
    sw a1, 0(a0)
    bnez a3, 1b
    wfi
replacement:
    addi a2, a2, 100
"""
AHEAD = """
    la a0, patched
    lw a1, replacement
    sw a1, 0(a0)
patched:
    addi a2, a2, 1
    wfi
replacement:
    addi a2, a2, 100
"""
BY_AN_ATOMIC = AHEAD.replace("sw a1, 0(a0)", "amoswap.w a4, a1, (a0)")
MISALIGNED = AHEAD.replace("sw a1, 0(a0)", "srli a1, a1, 8\n sw a1, 1(a0)\n li a1, 0x13\n sb a1, 0(a0)")


@pytest.mark.parametrize("source", [ITSELF, AHEAD, BY_AN_ATOMIC], ids=["itself", "ahead", "atomic"])
def test_code_that_a_guest_changes_is_what_runs_next(source: str, forced: CompiledEngine) -> None:
    machine = after(forced, source)
    assert state(machine) == state(after(EvaluatedEngine(), source))
    assert machine.context.record.x[12] >= 100


def test_code_that_is_changed_through_another_address_is_what_runs_next(forced: CompiledEngine) -> None:
    alias = (Region(0, 0, 0, PAGE_SIZE, 0), Region(1, 0, 0x10_0000, PAGE_SIZE, 0))
    source = AHEAD.replace("sw a1, 0(a0)", "lui a4, 0x100\n add a0, a0, a4\n sw a1, 0(a0)")
    machine = after(forced, source, alias)
    assert machine.context.record.x[12] == 100
    assert state(machine) == state(after(EvaluatedEngine(), source, alias))


def test_data_in_the_page_of_its_code_is_stored_without_leaving_the_code_for_good(forced: CompiledEngine) -> None:
    source = """
        li a3, 1000
        la a0, counter
    1:  ld a1, 0(a0)
        addi a1, a1, 1
        sd a1, 0(a0)
        addi a3, a3, -1
        bnez a3, 1b
        wfi
        .balign 64
    counter:
        .dword 0
    """
    machine = after(forced, source)
    assert machine.context.record.x[11] == 1000
    assert state(machine) == state(after(EvaluatedEngine(), source))


def test_code_that_was_changed_from_outside_is_seen_by_the_next_run(forced: CompiledEngine) -> None:
    machine = bare_machine(forced, assemble("1: addi a2, a2, 1\n j 1b").code)
    record = machine.context.record
    record.budget = 1000
    assert run(forced, machine.context, machine.view) is Stop.BUDGET
    assert record.x[12] == 500
    write_guest(machine.view, 0, assemble("addi a2, a2, 3").code)
    record.budget = 1000
    run(forced, machine.context, machine.view)
    assert record.x[12] == 2000


@pytest.mark.parametrize("budget", range(1, 40))
def test_a_budget_ends_at_its_instruction(budget: int, forced: CompiledEngine) -> None:
    source = "1: addi a0, a0, 1\n jal ra, 2f\n bnez a0, 1b\n2: addi a1, a1, 1\n ld a2, 0(zero)\n ret"
    ran = []
    for engine in (forced, EvaluatedEngine()):
        machine = bare_machine(engine, assemble(source).code)
        machine.context.record.budget = budget
        assert run(engine, machine.context, machine.view) is Stop.BUDGET
        assert machine.context.record.retired == budget
        ran.append(state(machine))
    assert ran[0] == ran[1]


def test_code_over_the_border_of_two_slots_runs_too(forced: CompiledEngine) -> None:
    apart = (Region(0, 0, 0, PAGE_SIZE, 0), Region(1, 0, PAGE_SIZE, PAGE_SIZE, 4 * PAGE_SIZE))
    source = "j 1f\n .zero 4076\n1: " + "addi a0, a0, 1\n" * 3 + "addi a1, a1, 1\n addi a2, a2, -1\n bnez a2, 1b\n wfi"
    machine = bare_machine(forced, b"", regions=apart)
    write_guest(machine.view, 0, assemble(source).code)
    machine.context.record.x[12] = 5
    machine.context.record.budget = 1000
    assert run(forced, machine.context, machine.view) == Halt()
    assert (machine.context.record.x[10], machine.context.record.x[11]) == (15, 5)
