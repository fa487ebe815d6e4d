"""Differences for people: the program's words with the table's names, what it started on, and where the two part."""

from __future__ import annotations

from tests.differential.compare import Difference
from tests.differential.program import CODE_AT, DATA_AT
from tests.differential.subjects import State
from vmmd.isa.decode import decode
from vmmd.isa.encoding import IMMEDIATES, rd, rs1, rs2
from vmmd.isa.instructions import SHAPES, Effect, Operand

_MOST_BYTES = 8


def describe(word: int) -> str:
    """Return a word with its row's name, the registers that it writes and reads, and its immediate."""
    row = decode(word)
    if row is None:
        return f".word {word:#010x}"
    shape = SHAPES[row.format]
    parts = [f"x{rd(word)} <-"] if shape.effect in {Effect.WRITE, Effect.JUMP} else []
    if {Operand.RS1, Operand.SUM} & set(shape.operands):
        parts.append(f"x{rs1(word)}")
    if Operand.RS2 in shape.operands:
        parts.append(f"x{rs2(word)}")
    if row.format in IMMEDIATES:
        parts.append(str(IMMEDIATES[row.format].of(word)))
    return " ".join([row.name, *parts])


def listing(difference: Difference, name: str) -> str:
    """Return all that is needed to see a difference again; `name` is the subject's that was compared."""
    program, before = difference.program, difference.before
    lines = [f"program {program.seed!r}, {sum(program.portions)} instructions in portions of {program.portions}"]
    lines += _wrapped("  starts with ", [f"x{n}={value:#x}" for n, value in enumerate(program.registers) if value])
    if any(program.data):
        lines.append("  and with the data that its seed gives")
    for number, word in enumerate(program.words):
        lines.append(f"  {program.start + 4 * number:#x}: {word:08x}  {describe(word)}")
    at = before.pc - CODE_AT
    word = int.from_bytes(before.code[at : at + 4], "little")
    lines.append(f"the first instruction after which they differ is at {before.pc:#x}: {describe(word)}")
    lines += _wrapped("  before it: ", [f"x{n}={before.x[n]:#x}" for n in sorted({rs1(word), rs2(word), rd(word)})])
    for who, state, other in (
        ("Unicorn", difference.expected, difference.found),
        (name, difference.found, difference.expected),
    ):
        lines += _wrapped(f"  {who}: ", _told_apart(state, other))
    return "\n".join(lines)


def _told_apart(state: State, other: State) -> list[str]:
    """Return what of a state is not so in the other."""
    told = [f"x{n}={mine:#x}" for n, (mine, its) in enumerate(zip(state.x, other.x, strict=True)) if mine != its]
    if state.pc != other.pc:
        told.append(f"pc={state.pc:#x}")
    for start, mine, its in ((CODE_AT, state.code, other.code), (DATA_AT, state.data, other.data)):
        places = [place for place in range(len(mine)) if mine[place] != its[place]]
        told += [f"[{start + place:#x}]={mine[place]:#04x}" for place in places[:_MOST_BYTES]]
        if len(places) > _MOST_BYTES:
            told.append(f"and {len(places) - _MOST_BYTES} more bytes")
    if state.left:
        told.append(state.left)
    return told or ["none of what the other has"]


def _wrapped(head: str, parts: list[str], each: int = 6) -> list[str]:
    return [
        (head if start == 0 else " " * len(head)) + " ".join(parts[start : start + each])
        for start in range(0, len(parts), each)
    ]
