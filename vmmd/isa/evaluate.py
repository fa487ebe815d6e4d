"""The evaluation: one instruction at a time over Python integers. The reference, and the end of every pending exit.

It reads the same meanings as the compiled engine and leaves nothing out: accesses over a page's border, MMIO in
pieces, lost host pages, traps. Whatever compiled code cannot do in a few machine instructions is done here.

An instruction that needs userspace stops with an outcome and a `Pending`: the word, and which pieces of its access
are done. It is evaluated again with the answer, and pieces that are done are not done twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vmmd.isa.context import Context, ContextRecord
from vmmd.isa.csrs import CSRS, is_read_only
from vmmd.isa.decode import decode
from vmmd.isa.encoding import IMMEDIATES, csr, rd, rs1, rs2, sign_extend
from vmmd.isa.instructions import SHAPES, Effect, Instruction, Operand
from vmmd.isa.integers import Integers
from vmmd.isa.outcome import (
    Awaiting,
    Breakpoint,
    Halt,
    Hypercall,
    LostPage,
    Mmio,
    NoAtomic,
    NoCode,
    Outcome,
    Port,
    Trap,
)
from vmmd.isa.traps import (
    BREAKPOINT,
    ENVIRONMENT_CALL,
    ILLEGAL_INSTRUCTION,
    LOAD_MISALIGNED,
    MISALIGNED_FETCH,
    STORE_MISALIGNED,
    interrupt_waits,
    return_from_trap,
    take_interrupt,
    take_trap,
)
from vmmd.memory import access
from vmmd.memory.dirty import Words
from vmmd.memory.errors import Refused
from vmmd.memory.limits import PAGE_SIZE, U64
from vmmd.memory.view import Run, View

_A0, _A7 = 10, 17


@dataclass(slots=True)
class Pending:
    """An instruction that waits for userspace: its word, what is asked, and its finished pieces by index."""

    word: int
    outcome: Awaiting
    piece: int
    done: dict[int, bytes] = field(default_factory=dict)

    @property
    def answer_size(self) -> int:
        """How many bytes the answer has; 0 where userspace is only told."""
        if isinstance(self.outcome, Hypercall):
            return 8
        return self.outcome.size if self.outcome.data is None else 0

    def answer(self, data: bytes) -> None:
        """Take userspace's answer, which has `answer_size` bytes."""
        self.done[self.piece] = data


def evaluate(context: Context, view: View, words: Words, pending: Pending | None = None) -> Outcome | Pending | None:
    """Run the instruction at `pc`, or go on with a pending one.

    The caller has the vCPU, `view` is the one that its memory is looked up in, and its budget is not used up. `words`
    are the engine's atomic steps.

    An interrupt that is due then is taken behind the instruction. A trap that the guest takes uses up one of the budget
    too, though nothing retires, so that a guest that does nothing but trap comes to its end.

    Returns:
        None where the instruction retired, or the guest took a trap; `Halt` where it was a `wfi` with nothing to wake
        it, which retired too; a `Pending` where it waits for userspace; and any other outcome where it did nothing.
    """
    record = context.record
    evaluation = _Evaluation(context, view, words, pending.done if pending else {})
    try:
        word = evaluation.word = pending.word if pending else _fetch(view, record.pc)
        row = decode(word)
        if row is None:
            raise _Leave(Trap(ILLEGAL_INSTRUCTION, word))
        next_pc = _perform(row, word, evaluation)
    except _Leave as leave:
        outcome = leave.outcome
        if isinstance(outcome, Awaiting):
            return Pending(word, outcome, leave.piece, evaluation.done)
        if not isinstance(outcome, Trap) or not take_trap(context, outcome.cause, outcome.value):
            return outcome
        record.budget -= 1
        return None
    record.pc = next_pc
    record.retired += 1
    record.budget -= 1
    if evaluation.halted and not interrupt_waits(context):
        return Halt()
    take_interrupt(context, words)
    return None


class _Leave(Exception):  # noqa: N818  (control flow inside one evaluation)
    def __init__(self, outcome: Outcome, piece: int = 0) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.piece = piece


def _fetch(view: View, pc: int) -> int:
    if pc & 3:
        raise _Leave(Trap(MISALIGNED_FETCH, pc))
    run = view.find(pc)
    if run is None:
        raise _Leave(NoCode(pc))
    _touch(run, pc, 4)
    return int.from_bytes(access.load(run, 4), "little")


def _perform(row: Instruction, word: int, ops: _Evaluation) -> int:
    """Do what the row means, write `rd`, and return the next pc."""
    record = ops.context.record
    shape = SHAPES[row.format]
    immediate = IMMEDIATES[row.format].of(word) if row.format in IMMEDIATES else 0
    result = row.meaning(ops, *[_operand(kind, record, word, immediate) for kind in shape.operands])
    after: int = record.pc + 4 & U64 if ops.returns_to is None else ops.returns_to
    if shape.effect is Effect.BRANCH:
        return _target(record.pc + immediate & U64) if result else after
    written, next_pc = (after, _target(result)) if shape.effect is Effect.JUMP else (result, after)
    if shape.effect is not Effect.NOTHING and rd(word):
        record.x[rd(word)] = written
    return next_pc


def _operand(kind: Operand, record: ContextRecord, word: int, immediate: int) -> int:
    value: int
    match kind:
        case Operand.RS1:
            value = record.x[rs1(word)]
        case Operand.RS2:
            value = record.x[rs2(word)]
        case Operand.RD:
            value = record.x[rd(word)]
        case Operand.IMMEDIATE:
            value = immediate
        case Operand.PC:
            value = record.pc
        case Operand.SUM:
            value = record.x[rs1(word)] + immediate
        case Operand.CSR:
            value = csr(word)
        case Operand.SOURCE:
            value = rs1(word)
    return value & U64


def _touch(run: Run, address: int, length: int) -> None:
    """See to it that an access has host memory, and leave where there is none, or no more."""
    if run.piece is None:
        raise _Leave(LostPage(address, "the host mapping is gone"))
    try:
        access.touch(run, length)
    except Refused as refused:
        raise _Leave(LostPage(address, refused.message)) from None


def _target(pc: int) -> int:
    if pc & 3:
        raise _Leave(Trap(MISALIGNED_FETCH, pc))
    return pc


class _Evaluation(Integers):
    """`Ops` over integers from 0 to 2^64 - 1, for one instruction."""

    def __init__(self, context: Context, view: View, words: Words, done: dict[int, bytes]) -> None:
        self.context = context
        self._words = words
        self.done = done
        self.word = 0
        self.halted = False
        self.returns_to: int | None = None
        self._view = view

    def load(self, address: int, size: int, *, signed: bool) -> int:
        pieces = _pieces(address, size)
        runs = [self._run(index, at, length, writing=False) for index, (at, length) in enumerate(pieces)]
        data = b""
        for index, ((at, length), run) in enumerate(zip(pieces, runs, strict=True)):
            if index in self.done:
                data += self.done[index]
            elif run is None:
                raise _Leave(Mmio(at, length, None), index)
            else:
                data += access.load(run, length)
        return self.extend(int.from_bytes(data, "little"), size * 8, signed=signed)

    def store(self, address: int, value: int, size: int) -> None:
        data = (value & (1 << size * 8) - 1).to_bytes(size, "little")
        pieces = _pieces(address, size)
        runs = [self._run(index, at, length, writing=True) for index, (at, length) in enumerate(pieces)]
        start = 0
        for index, ((at, length), run) in enumerate(zip(pieces, runs, strict=True)):
            part = data[start : start + length]
            start += length
            if index in self.done:
                continue
            if run is None:
                raise _Leave(Mmio(at, length, part), index)
            access.store(run, part)
            self._mark(run, length)
            self.done[index] = b""

    def amo(self, operation: str, address: int, value: int, size: int) -> int:
        run = self._atomic_run(address, size, STORE_MISALIGNED)
        host, mask = self._atomic_host(run), (1 << size * 8) - 1
        before = int.from_bytes(access.load(run, size), "little")
        while True:
            found = self._words.compare_exchange(
                host, size, before, _AMO[operation](before, value & mask, size * 8) & mask
            )
            if found == before:
                break
            before = found
        self._mark(run, size)
        return self.extend(before, size * 8, signed=True)

    def load_reserved(self, address: int, size: int) -> int:
        run = self._atomic_run(address, size, LOAD_MISALIGNED)
        record = self.context.record
        record.reserved_at = address
        record.reserved_value = self.extend(int.from_bytes(access.load(run, size), "little"), size * 8, signed=True)
        return int(record.reserved_value)

    def store_conditional(self, address: int, value: int, size: int) -> int:
        run = self._atomic_run(address, size, STORE_MISALIGNED)
        record, mask = self.context.record, (1 << size * 8) - 1
        stands, expected = record.reserved_at == address, record.reserved_value & mask
        self.context.end_reservation()
        if not stands:
            return 1
        if self._words.compare_exchange(self._atomic_host(run), size, expected, value & mask) != expected:
            return 1
        self._mark(run, size)
        return 0

    def _atomic_run(self, address: int, size: int, misaligned: int) -> Run:
        """Return the writable memory of an atomic access; a misaligned one traps before anything is looked up."""
        if address % size:
            raise _Leave(Trap(misaligned, address))
        run = self._view.find(address)
        if run is None or run.memslot.readonly:
            raise _Leave(NoAtomic(address))
        _touch(run, address, size)
        return run

    def _atomic_host(self, run: Run) -> int:
        assert run.host_address is not None, "touched memory is there"  # noqa: S101
        return run.host_address

    def port_in(self, port: int, size: int) -> int:
        if 0 not in self.done:
            raise _Leave(Port(port & 0xFFFF, size, None))
        return int.from_bytes(self.done[0], "little")

    def port_out(self, port: int, value: int, size: int) -> None:
        if 0 not in self.done:
            data = (value & (1 << size * 8) - 1).to_bytes(size, "little")
            raise _Leave(Port(port & 0xFFFF, size, data))

    def fence(self) -> None:
        """One instruction at a time is in order already."""

    def fence_code(self) -> None:
        """Every fetch reads the bytes anew."""

    def wait_for_interrupt(self) -> None:
        self.halted = True

    def environment_call(self) -> None:
        x = self.context.record.x
        if 0 not in self.done:
            if self.context.record.mtvec:
                raise _Leave(Trap(ENVIRONMENT_CALL, 0))
            raise _Leave(Hypercall(x[_A7], tuple(x[_A0 : _A0 + 6])))
        x[_A0] = int.from_bytes(self.done[0], "little")

    def breakpoint(self) -> None:
        pc = self.context.record.pc
        raise _Leave(Breakpoint(pc) if self.context.breakpoints_leave else Trap(BREAKPOINT, pc))

    def return_from_trap(self) -> None:
        self.returns_to = return_from_trap(self.context)

    def change_csr(self, change: str, csr: int, value: int, source: int) -> int:
        register = CSRS.get(csr)
        writes = change == "write" or source != 0
        if register is None or (writes and is_read_only(csr)):
            raise _Leave(Trap(ILLEGAL_INSTRUCTION, self.word))
        before = register.get(self.context)
        if writes:
            register.set(self.context, _CSR[change](before, value), register.guest_bits)
        return before

    def _mark(self, run: Run, length: int) -> None:
        """Mark what was stored, and put pages that were not marked in the vCPU's ring, where it has one."""
        log, ring = run.memslot.dirty, self.context.ring
        if log is None:
            return
        for page in log.marks.mark(run.offset, length):
            if ring is not None:
                ring.push(run.memslot.slot, page)

    def _run(self, index: int, address: int, length: int, *, writing: bool) -> Run | None:
        """Return the memory that a piece goes to, or None where it is MMIO; a lost page ends the instruction."""
        run = self._view.find(address)
        if index in self.done or run is None or (writing and run.memslot.readonly):
            return None
        _touch(run, address, length)
        return run


def _pieces(address: int, size: int) -> list[tuple[int, int]]:
    """Cut an access at the border of a page, in the order of addresses."""
    first = min(size, PAGE_SIZE - address % PAGE_SIZE)
    rest = size - first
    return [(address, first), (address + first & U64, rest)] if rest else [(address, first)]


_CSR: dict[str, Callable[[int, int], int]] = {
    "write": lambda before, value: value,
    "set": lambda before, value: before | value,
    "clear": lambda before, value: before & ~value,
}
"""What Zicsr writes to a register."""

_AMO: dict[str, Callable[[int, int, int], int]] = {
    "swap": lambda memory, value, bits: value,
    "add": lambda memory, value, bits: memory + value,
    "xor": lambda memory, value, bits: memory ^ value,
    "and": lambda memory, value, bits: memory & value,
    "or": lambda memory, value, bits: memory | value,
    "min": lambda memory, value, bits: min(memory, value, key=lambda number: sign_extend(number, bits)),
    "max": lambda memory, value, bits: max(memory, value, key=lambda number: sign_extend(number, bits)),
    "minu": lambda memory, value, bits: min(memory, value),
    "maxu": lambda memory, value, bits: max(memory, value),
}
"""What an AMO leaves in memory, of numbers of so many bits."""
