"""Both engines and Unicorn come to the same registers and memory; and the comparison can tell when they do not."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.differential.__main__ import main
from tests.differential.compare import Difference
from tests.differential.fuzz import Tally, compare_one, on_engines
from tests.differential.generate import ROWS, generate
from tests.differential.listing import describe, listing
from tests.differential.program import word_of
from tests.differential.subjects import MakeSubject, OnUnicorn
from vmmd.isa import compile as compiling
from vmmd.isa import evaluate
from vmmd.isa.decode import candidates, decode
from vmmd.isa.engine import CompiledEngine, EvaluatedEngine
from vmmd.isa.instructions import Instruction, Meaning

PROGRAMS = 80


@pytest.fixture(scope="module")
def engine(cache_dir: Path) -> CompiledEngine:
    return CompiledEngine(cache_dir)


@pytest.mark.parametrize("seed", ["fixed", f"fresh {secrets.token_hex(4)}"], ids=lambda seed: seed.split()[0])
def test_both_engines_do_what_unicorn_does(seed: str, engine: CompiledEngine) -> None:
    tally = Tally()
    others = on_engines(engine, EvaluatedEngine())
    for number in range(PROGRAMS):
        found = compare_one(f"{seed}/{number}", others, tally)
        assert found is None, listing(found[1], found[0])
    # What programs are made of is what runs: every row, and many times each.
    assert set(tally.rows) == {row.name for row in ROWS}
    assert min(tally.rows.values()) >= 10, tally.rows.most_common()[-5:]


def test_the_compiled_engine_does_what_unicorn_does_on_many_more(engine: CompiledEngine) -> None:
    seed, tally = secrets.token_hex(4), Tally()
    for number in range(5 * PROGRAMS):
        found = compare_one(f"{seed}/{number}", on_engines(engine), tally)
        assert found is None, listing(found[1], found[0])


def test_programs_meet_what_they_are_made_to_meet() -> None:
    taken: Counter[tuple[str, bool]] = Counter()
    for number in range(30):
        program = generate(f"met/{number}")
        subject = OnUnicorn(program)
        before = subject.state()
        for _ in range(400):
            subject.run(1)
            after = subject.state()
            at = before.pc - 0x1000
            word = int.from_bytes(before.code[at : at + 4], "little")
            row = decode(word)
            assert row is not None
            if row.name.startswith("b"):
                taken[row.name, after.pc != before.pc + 4] += 1
            if row.name.startswith("sc.") and word >> 7 & 31:
                taken["sc", bool(after.x[word >> 7 & 31])] += 1
            before = after
    branches = [row.name for row in ROWS if row.name.startswith("b")]
    assert {(name, truth) for name in [*branches, "sc"] for truth in (False, True)} <= set(taken)


def test_a_program_comes_again_from_its_seed() -> None:
    assert generate("a") == generate("a")
    assert generate("a") != generate("b")


def plant(monkeypatch: pytest.MonkeyPatch, name: str, meaning: Meaning) -> None:
    """Give a row another meaning in the evaluation."""

    def mistaken(word: int) -> Instruction | None:
        row = decode(word)
        return replace(row, meaning=meaning) if row is not None and row.name == name else row

    monkeypatch.setattr(evaluate, "decode", mistaken)


def find(others: Mapping[str, MakeSubject]) -> Difference:
    for number in range(PROGRAMS):
        found = compare_one(f"planted/{number}", others, Tally())
        if found is not None:
            return found[1]
    pytest.fail("not found")


MISTAKES: dict[str, Meaning] = {
    "mulhsu": lambda ops, a, b: ops.mul_high(a, b, a_signed=True, b_signed=True),
    "sraiw": lambda ops, a, by: ops.extend(ops.shift_right(a, by, signed=True), 32, signed=True),
    "sh": lambda ops, address, value: ops.store(address, value, 4),
    "bgeu": lambda ops, a, b: ops.less(b, a, signed=False),
    "amomaxu.w": lambda ops, address, value: ops.amo("max", address, value, 4),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_meaning_is_found_and_shrunk_to_where_it_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, name, MISTAKES[name])
    difference = find(on_engines(EvaluatedEngine()))
    text = listing(difference, "evaluated")
    program = difference.program
    assert len(program.words) <= 8, text
    assert sum(program.portions) <= 8, text
    # The instruction that is blamed is the one that is wrong.
    assert f"they differ is at {difference.before.pc:#x}: {name} " in text
    assert "  Unicorn: " in text
    assert "  evaluated: " in text


def test_a_wrong_meaning_is_found_in_compiled_code_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(key: int) -> tuple[Instruction, ...]:
        rows = candidates(key)
        return tuple(replace(row, meaning=MISTAKES["mulhsu"]) if row.name == "mulhsu" else row for row in rows)

    monkeypatch.setattr(compiling, "candidates", mistaken)
    text = listing(find(on_engines(CompiledEngine(None))), "compiled")
    assert ": mulhsu " in text.splitlines()[-4], text
    assert text.splitlines()[-1].startswith("  compiled: "), text


def test_an_engine_that_leaves_the_guest_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "xor", lambda ops, a, b: ops.port_in(a, 1))
    difference = find(on_engines(EvaluatedEngine()))
    assert difference.found.left is not None
    assert "the guest was left" in listing(difference, "evaluated")


def test_a_listing_names_the_registers_and_the_immediate() -> None:
    assert describe(word_of("sd", rs1=2, rs2=3, immediate=-8)) == "sd x2 x3 -8"
    assert describe(word_of("amoadd.w.aq", 1, 2, 3)) == "amoadd.w.aq x1 <- x2 x3"
    assert describe(0xFFFF_FFFF) == ".word 0xffffffff"


def test_the_command_says_what_it_compared(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--instructions", "3000", "--seed", "said"], cache_dir) == 0
    said = capsys.readouterr().out
    assert "seed said" in said
    assert "2 programs and 3000 instructions" in said
    assert "no difference" in said


def test_the_command_prints_a_difference_and_how_to_see_it_again(
    cache_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "addi", lambda ops, a, immediate: ops.sub(a, immediate))
    assert main(["--seed", "said"], cache_dir) == 1
    assert "program 'said/0'" in capsys.readouterr().out
    assert main(["--program", "said/0"], cache_dir) == 1


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_a_number_of_instructions_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--instructions={text}"])
    assert f"'{text}' is no positive integer" in capsys.readouterr().err
