"""Any words as code: illegal ones, traps, control and status registers, ports, and whatever they lead to.

Here nothing but T64 itself says what is right, so its two engines are compared with each other: on the way that each
run ends, and on all of a vCPU's state. A run has to end within its budget, whatever the words are; a trap that the
guest takes uses up one of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.differential.program import word_of
from tests.isa.machine import HOST_BYTES, BareMachine, bare_machine
from tests.isa.turns import run
from vmmd.isa.csrs import CSR_NUMBERS, CSRS, INTERRUPTS, MSTATUS_MIE, MSTATUS_MPIE
from vmmd.isa.encoding import CSR_AT, RD_AT, RS1_AT, Format
from vmmd.isa.engine import Engine, Ran
from vmmd.isa.evaluate import Pending
from vmmd.isa.instructions import INSTRUCTIONS
from vmmd.isa.outcome import Awaiting, Halt
from vmmd.isa.stop import Stop
from vmmd.memory.access import read_host
from vmmd.memory.limits import PAGE_SIZE, U64
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Region

WORDS = 512
RUNS = 30
MOST_INSTRUCTIONS = 100
"""In one run."""

REGIONS = (
    Region(0, KVM_MEM_LOG_DIRTY_PAGES, 0x0000, 2 * PAGE_SIZE, 0),
    Region(1, KVM_MEM_READONLY, 0x2000, PAGE_SIZE, 2 * PAGE_SIZE),
    Region(2, 0, 0x4000, PAGE_SIZE, 3 * PAGE_SIZE),  # behind a hole
    Region(3, 0, 0x5000, PAGE_SIZE, HOST_BYTES + (1 << 30)),  # its host mapping is gone
)

_CSR_ROWS = [row for row in INSTRUCTIONS if row.format in {Format.CSR, Format.CSR_IMMEDIATE}]
_SYSTEM_ROWS = [row for row in INSTRUCTIONS if row.format is Format.SYSTEM]
_INTERRUPTS_ON = word_of("csrrsi", immediate=MSTATUS_MIE) | CSR_NUMBERS["mstatus"] << CSR_AT
_OPCODES = sorted({row.match & 0x7F for row in INSTRUCTIONS})
FIELDS = ("mstatus", "mie", "mip", "mtvec", "mscratch", "mepc", "mcause", "mtval", "reserved_at", "reserved_value")
"""What of a vCPU's record is compared beside its registers and counters."""


def any_word(draw: random.Random) -> int:
    """Return a word: of a row, with any operands; nearly of one; or anything."""
    kind, bits = draw.randrange(10), draw.getrandbits(32)
    if kind == 0:
        return bits
    if kind < 3:
        return bits & ~0x7F | draw.choice(_OPCODES)
    if kind == 3:
        return draw.choice([row.match for row in _SYSTEM_ROWS] + [_INTERRUPTS_ON] * 2)
    if kind < 6:
        number = draw.choice([*CSRS, CSR_NUMBERS["mstatus"], CSR_NUMBERS["mie"], draw.randrange(1 << 12)])
        return draw.choice(_CSR_ROWS).match | bits & (31 << RD_AT | 31 << RS1_AT) | number << CSR_AT
    row = draw.choice(INSTRUCTIONS)
    # With few bits set, so that addresses and jumps stay near as often as not.
    return row.match | bits & draw.choice((U64, draw.getrandbits(32) & draw.getrandbits(32))) & ~row.mask


def _register(draw: random.Random) -> int:
    near = draw.randrange(0x6000)
    return draw.choice((near, near & -8, near & -PAGE_SIZE, 0, U64, draw.getrandbits(64), U64 - draw.randrange(16)))


@dataclass(frozen=True, slots=True)
class Run:
    """How one run ended.

    Attributes:
        end: why; of an instruction that waits for userspace, what it asks and for which piece.
        trapped: how many traps the guest took.
        state: pc, what has retired and what is left of the budget, and the fields of `FIELDS`.
        x: the registers.
    """

    end: Ran | tuple[Awaiting, int]
    trapped: int
    state: tuple[int, ...]
    x: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Played:
    """All that can be seen of the runs of one machine: how they ended, host memory, and the dirty log."""

    runs: tuple[Run, ...]
    memory: bytes
    log: bytes


def play(engine: Engine, seed: str) -> Played:
    """Run the words of a seed for several runs."""
    draw = random.Random(seed)
    machine = bare_machine(engine, _code(draw), regions=REGIONS)
    record = machine.context.record
    _start(machine, draw)
    runs: list[Run] = []
    pending: Pending | None = None
    for _ in range(RUNS):
        budget = record.budget = draw.randrange(1, MOST_INSTRUCTIONS)
        before = record.retired
        ran = run(engine, machine.context, machine.view, pending)
        used, retired = budget - record.budget, record.retired - before
        assert 0 <= retired <= used <= budget, f"{used} of {budget} used up by {retired} that retired"
        assert record.budget == 0 or ran is not Stop.BUDGET, "stopped for a budget that is not used up"
        pending = ran if isinstance(ran, Pending) else None
        if pending is not None:
            pending.answer(draw.randbytes(pending.answer_size))
        elif not isinstance(ran, Stop | Halt):
            record.pc = draw.randrange(WORDS) * 4
        end = ran if pending is None else (pending.outcome, pending.piece)
        state = record.pc, record.retired, record.budget, *(getattr(record, name) for name in FIELDS)
        runs.append(Run(end, used - retired, state, tuple(record.x)))
    log = machine.view.memslots.get(0)
    assert log is not None
    assert log.dirty is not None
    return Played(tuple(runs), read_host(machine.view, machine.base, HOST_BYTES), log.dirty.marks.snapshot())


def _code(draw: random.Random) -> bytes:
    return b"".join(any_word(draw).to_bytes(4, "little") for _ in range(WORDS))


def _start(machine: BareMachine, draw: random.Random) -> None:
    record = machine.context.record
    machine.context.breakpoints_leave = draw.random() < 0.3
    for number in range(1, 32):
        record.x[number] = _register(draw)
    record.mtvec = draw.choice((0, draw.randrange(WORDS) * 4, draw.randrange(WORDS) * 4, _register(draw) & ~3))
    record.mepc = draw.randrange(WORDS) * 4
    record.mie, record.mip = draw.getrandbits(12) & INTERRUPTS, draw.getrandbits(12) & INTERRUPTS
    # An interrupt that is due before the first instruction is for who owns the vCPU to see.
    due = record.mie & record.mip
    record.mstatus = draw.choice((0, MSTATUS_MPIE) if due else (0, MSTATUS_MIE, MSTATUS_MPIE))
