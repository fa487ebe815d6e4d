"""Random programs over the whole table: both engines come to the same registers, memory, logs and exits."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.isa.machine import HOST_BYTES, BareMachine, bare_machine
from tests.isa.turns import run
from vmmd.isa.encoding import IMMEDIATES, RD_AT, RS1_AT, RS2_AT, Format
from vmmd.isa.engine import CompiledEngine, Engine, EvaluatedEngine
from vmmd.isa.evaluate import Pending
from vmmd.isa.instructions import INSTRUCTIONS, Instruction
from vmmd.isa.outcome import Halt
from vmmd.isa.stop import Stop
from vmmd.memory.access import read_host
from vmmd.memory.limits import PAGE_SIZE, U64
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Region

PROGRAM_WORDS = 1024
CODE_BYTES = PROGRAM_WORDS * 4

REGIONS = (
    Region(0, KVM_MEM_LOG_DIRTY_PAGES, 0x0000, 4 * PAGE_SIZE, 0x0000),  # code and data: programs rewrite themselves
    Region(1, 0, 0x4000, PAGE_SIZE, 0x4000),  # touches slot 0, here and in the host
    Region(2, KVM_MEM_READONLY, 0x5000, PAGE_SIZE, 0x5000),
    Region(3, 0, 0x7000, PAGE_SIZE, 0x8000),  # behind a hole
    Region(4, 0, 0x8000, PAGE_SIZE, HOST_BYTES + (1 << 30)),  # its host mapping is gone
)


# Each atomic has four orderings, which mean the same here: one of them is drawn as often as another instruction.
DRAWN = [row for row in INSTRUCTIONS if not row.name.endswith((".aq", ".rl", ".aqrl"))]


def random_word(draw: random.Random, row: Instruction) -> int:
    """Return a word of that row, with immediates that keep branches and accesses near."""
    free = ~row.mask & 0xFFFF_FFFF
    word = row.match
    for at in (RD_AT, RS1_AT, RS2_AT):
        word |= draw.randrange(32) << at & free
    if row.format in IMMEDIATES:
        immediate = IMMEDIATES[row.format]
        span = {Format.BRANCH: 160, Format.JAL: 160, Format.LOAD: 64, Format.STORE: 64}.get(row.format)
        value = draw.randrange(-span, span) if span else draw.randrange(immediate.lowest, immediate.highest + 1)
        value -= value % (4 if row.format in {Format.BRANCH, Format.JAL} else immediate.step)
        place = immediate.place(-1 if immediate.signed else immediate.highest)
        word = (word & ~place | immediate.place(value)) & 0xFFFF_FFFF
    return word


def random_register(draw: random.Random) -> int:
    near_a_border = (draw.randrange(1, 9) << 12) - draw.randrange(8)
    aligned = draw.randrange(0x9000) & -8
    return draw.choice([draw.getrandbits(64), draw.randrange(0x9000), aligned, aligned, near_a_border, 0, U64, 1 << 63])


def play(engine: Engine, seed: int) -> list[Any]:
    """Run a random program in random portions, and return all that can be seen of it."""
    draw = random.Random(seed)
    words = [
        random_word(draw, draw.choice(DRAWN)) if draw.random() < 0.97 else draw.getrandbits(32)
        for _ in range(PROGRAM_WORDS)
    ]
    machine = bare_machine(engine, b"".join(word.to_bytes(4, "little") for word in words), regions=REGIONS)
    record = machine.context.record
    for index in range(1, 32):
        record.x[index] = random_register(draw)
    seen: list[Any] = []
    pending: Pending | None = None
    for _ in range(60):
        record.budget = draw.randrange(1, 200)
        ran = run(engine, machine.context, machine.view, pending)
        pending = ran if isinstance(ran, Pending) else None
        if pending is not None:
            seen.append((pending.outcome, pending.piece))
            pending.answer(draw.randbytes(pending.answer_size))
        else:
            seen.append(ran)
            if not isinstance(ran, Stop | Halt):
                record.pc = draw.randrange(PROGRAM_WORDS) * 4
        seen.append((record.pc, record.retired, record.budget))
    return [*seen, list(record.x), *memory_of(machine)]


def memory_of(machine: BareMachine) -> list[bytes]:
    log = machine.view.memslots.get(0)
    assert log is not None
    assert log.dirty is not None
    return [read_host(machine.view, machine.base, HOST_BYTES), log.dirty.marks.snapshot()]


@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 400, 50)], ids=str)
def test_both_engines_agree_on_random_programs(seeds: range, compiled_engine: CompiledEngine) -> None:
    for seed in seeds:
        assert play(compiled_engine, seed) == play(EvaluatedEngine(), seed), f"seed {seed}"


def test_random_programs_meet_every_kind_of_end(compiled_engine: CompiledEngine) -> None:
    met = set()
    for seed in range(200):
        for entry in play(compiled_engine, seed):
            if isinstance(entry, tuple) and len(entry) == 2:
                met.add(type(entry[0]).__name__)
            elif not isinstance(entry, list | bytes | tuple):
                met.add(type(entry).__name__)
    assert met >= {"Stop", "Mmio", "Port", "Hypercall", "Halt", "Trap", "NoCode", "NoAtomic", "LostPage"}
