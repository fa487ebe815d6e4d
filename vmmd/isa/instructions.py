"""The instructions of T64: encoding, operands and one line of meaning each.

This table is the only place where an instruction is described. A meaning is a function over an `ops` object and operand
values; it does not know what a value is. `evaluate` gives it Python integers, `compile` gives it LLVM's builder.

What the meanings may ask of `ops` is the protocol `Ops`. All values are 64 bits wide. What the format settles is left
out of the meanings: which registers are read, that the result goes to `rd`, that a jump links and that a branch not
taken goes on.

Source: the RISC-V unprivileged specification (RV64I, M, A, Zicsr) and mret of the privileged one; the port I/O is T64's
own, in the custom-0 space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol, TypeVar

from vmmd.isa.encoding import RS2_AT, Format

V = TypeVar("V")


class Ops(Protocol[V]):
    """What an engine gives to meanings. `V` is a 64-bit value, or a truth value where a comparison gave it."""

    def constant(self, value: int) -> V:
        """Give a value that is known now."""

    def add(self, a: V, b: V) -> V:
        """Add, modulo 2^64."""

    def sub(self, a: V, b: V) -> V:
        """Subtract, modulo 2^64."""

    def mul(self, a: V, b: V) -> V:
        """Multiply: the low 64 bits."""

    def mul_high(self, a: V, b: V, *, a_signed: bool, b_signed: bool) -> V:
        """Multiply: the high 64 bits of the 128-bit product."""

    def div(self, a: V, b: V, *, signed: bool) -> V:
        """Divide towards zero; by zero gives all ones, the most negative number by -1 gives itself."""

    def rem(self, a: V, b: V, *, signed: bool) -> V:
        """Give the remainder, with the dividend's sign; by zero gives the dividend, the overflow gives 0."""

    def and_(self, a: V, b: V) -> V:
        """And, bit by bit."""

    def or_(self, a: V, b: V) -> V:
        """Or, bit by bit."""

    def xor(self, a: V, b: V) -> V:
        """Exclusive or, bit by bit."""

    def shift_left(self, a: V, by: V) -> V:
        """Shift left by the low six bits of `by`."""

    def shift_right(self, a: V, by: V, *, signed: bool) -> V:
        """Shift right by the low six bits of `by`; `signed` copies the sign in."""

    def extend(self, a: V, bits: int, *, signed: bool) -> V:
        """Take the low `bits` of `a` and extend them to 64."""

    def equal(self, a: V, b: V) -> V:
        """Compare: a truth value."""

    def less(self, a: V, b: V, *, signed: bool) -> V:
        """Compare: a truth value."""

    def not_(self, truth: V) -> V:
        """Turn a truth value round."""

    def number(self, truth: V) -> V:
        """Turn a truth value into 1 or 0."""

    def load(self, address: V, size: int, *, signed: bool) -> V:
        """Load `size` bytes from guest memory and extend them. May leave the guest."""

    def store(self, address: V, value: V, size: int) -> None:
        """Store the low `size` bytes of `value` to guest memory. May leave the guest."""

    def amo(self, operation: str, address: V, value: V, size: int) -> V:
        """Do `operation` (a name of `AMO_OPERATIONS`) on memory and `value` in one step; give what was there, extended.

        May leave the guest, as may the two below: a misaligned address traps, and no writable memory ends the run.
        """

    def load_reserved(self, address: V, size: int) -> V:
        """Load and extend, and reserve what was loaded."""

    def store_conditional(self, address: V, value: V, size: int) -> V:
        """Store if the reservation stands and memory holds what was loaded; give 0, else 1. The reservation ends."""

    def port_in(self, port: V, size: int) -> V:
        """Read a port: KVM_EXIT_IO, completed by the next KVM_RUN."""

    def port_out(self, port: V, value: V, size: int) -> None:
        """Write a port: KVM_EXIT_IO."""

    def fence(self) -> None:
        """Order all memory accesses before against all after."""

    def fence_code(self) -> None:
        """See every change to code that came before."""

    def wait_for_interrupt(self) -> None:
        """Leave the guest: KVM_EXIT_HLT."""

    def environment_call(self) -> None:
        """Leave the guest: KVM_EXIT_HYPERCALL."""

    def breakpoint(self) -> None:
        """Trap, or leave the guest where a debugger asked for it: KVM_EXIT_DEBUG."""

    def return_from_trap(self) -> None:
        """Go on where the last trap was taken, with interrupts as they were then."""

    def change_csr(self, change: str, csr: V, value: V, source: V) -> V:
        """Change a control and status register by a name of `CSR_CHANGES`; give what it held before.

        Where `source`, a field of the word, is 0, only "write" writes. Traps where there is no such register, and at a
        write to one that is read-only.
        """


Meaning = Callable[..., Any]
"""`(ops, operands…) -> result`, as the format's `Shape` says."""


class Operand(Enum):
    """A value that a meaning is given."""

    RS1 = auto()
    RS2 = auto()
    RD = auto()  # the value of the register that the rd field names
    IMMEDIATE = auto()
    PC = auto()
    SUM = auto()  # rs1 plus the immediate: an address or a port
    CSR = auto()  # the number of a control and status register
    SOURCE = auto()  # the field of rs1 itself: a register's number, or an immediate in its place


class Effect(Enum):
    """What becomes of a meaning's result."""

    NOTHING = auto()
    WRITE = auto()  # it goes to rd
    BRANCH = auto()  # it is a truth value: whether pc plus the immediate comes next
    JUMP = auto()  # it comes next, and rd gets the address behind the jump


@dataclass(frozen=True, slots=True)
class Shape:
    """The operands of a meaning, in order, and the effect of its result."""

    operands: tuple[Operand, ...]
    effect: Effect


_RS1_IMMEDIATE = Shape((Operand.RS1, Operand.IMMEDIATE), Effect.WRITE)
_ALONE = Shape((), Effect.NOTHING)

SHAPES: dict[Format, Shape] = {
    Format.R: Shape((Operand.RS1, Operand.RS2), Effect.WRITE),
    Format.I: _RS1_IMMEDIATE,
    Format.SHIFT64: _RS1_IMMEDIATE,
    Format.SHIFT32: _RS1_IMMEDIATE,
    Format.LOAD: Shape((Operand.SUM,), Effect.WRITE),
    Format.STORE: Shape((Operand.SUM, Operand.RS2), Effect.NOTHING),
    Format.BRANCH: Shape((Operand.RS1, Operand.RS2), Effect.BRANCH),
    Format.U: Shape((Operand.PC, Operand.IMMEDIATE), Effect.WRITE),
    Format.JAL: Shape((Operand.PC, Operand.IMMEDIATE), Effect.JUMP),
    Format.JALR: Shape((Operand.RS1, Operand.IMMEDIATE), Effect.JUMP),
    Format.AMO: Shape((Operand.RS1, Operand.RS2), Effect.WRITE),
    Format.LR: Shape((Operand.RS1,), Effect.WRITE),
    Format.FENCE: _ALONE,
    Format.SYSTEM: _ALONE,
    Format.PORT_IN: Shape((Operand.SUM,), Effect.WRITE),
    Format.PORT_OUT: Shape((Operand.SUM, Operand.RD), Effect.NOTHING),
    Format.CSR: Shape((Operand.CSR, Operand.RS1, Operand.SOURCE), Effect.WRITE),
    Format.CSR_IMMEDIATE: Shape((Operand.CSR, Operand.SOURCE, Operand.SOURCE), Effect.WRITE),
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One row. A word is this instruction if `word & mask == match`."""

    name: str
    format: Format
    match: int
    mask: int
    meaning: Meaning


_OPCODE_MASK, _FUNCT3_MASK, _FUNCT7_MASK, _FUNCT6_MASK = 0x7F, 0x7000, 0xFE00_0000, 0xFC00_0000

LOAD, MISC_MEM, OP_IMM, AUIPC, OP_IMM_32, STORE = 0x03, 0x0F, 0x13, 0x17, 0x1B, 0x23
OP, LUI, OP_32, BRANCH, JALR, JAL, SYSTEM, CUSTOM_0, AMO = 0x33, 0x37, 0x3B, 0x63, 0x67, 0x6F, 0x73, 0x0B, 0x2F


def _r(name: str, opcode: int, funct3: int, funct7: int, meaning: Meaning) -> Instruction:
    match = opcode | funct3 << 12 | funct7 << 25
    return Instruction(name, Format.R, match, _OPCODE_MASK | _FUNCT3_MASK | _FUNCT7_MASK, meaning)


def _i(name: str, opcode: int, funct3: int, meaning: Meaning, form: Format = Format.I) -> Instruction:
    return Instruction(name, form, opcode | funct3 << 12, _OPCODE_MASK | _FUNCT3_MASK, meaning)


def _shift(name: str, opcode: int, funct3: int, arithmetic: int, meaning: Meaning) -> Instruction:
    form, top = (Format.SHIFT64, _FUNCT6_MASK) if opcode == OP_IMM else (Format.SHIFT32, _FUNCT7_MASK)
    return Instruction(name, form, opcode | funct3 << 12 | arithmetic << 30, _OPCODE_MASK | _FUNCT3_MASK | top, meaning)


def _u(name: str, opcode: int, form: Format, meaning: Meaning) -> Instruction:
    return Instruction(name, form, opcode, _OPCODE_MASK, meaning)


_ORDERINGS = (("", 0), (".aq", 1 << 26), (".rl", 1 << 25), (".aqrl", 3 << 25))
"""Suffixes of atomics and their bits. vmmd's are sequentially consistent whatever they ask for."""

AMO_OPERATIONS = {
    "swap": 0x01,
    "add": 0x00,
    "xor": 0x04,
    "and": 0x0C,
    "or": 0x08,
    "min": 0x10,
    "max": 0x14,
    "minu": 0x18,
    "maxu": 0x1C,
}
"""The read-modify-write operations and their funct5."""


def _atomics() -> Iterator[Instruction]:
    """Give the rows of RV64A: each operation as .w and .d, with every ordering."""
    for letter, funct3, size in (("w", 2, 4), ("d", 3, 8)):
        for suffix, bits in _ORDERINGS:
            opcode = AMO | funct3 << 12 | bits
            end = f".{letter}{suffix}"
            yield _atomic(f"lr{end}", opcode | 0x02 << 27, _load_reserved(size), Format.LR)
            yield _atomic(f"sc{end}", opcode | 0x03 << 27, _store_conditional(size), Format.AMO)
            for name, funct5 in AMO_OPERATIONS.items():
                yield _atomic(f"amo{name}{end}", opcode | funct5 << 27, _amo(name, size), Format.AMO)


def _atomic(name: str, match: int, meaning: Meaning, form: Format) -> Instruction:
    mask = _OPCODE_MASK | _FUNCT3_MASK | _FUNCT7_MASK
    return Instruction(name, form, match, mask | 31 << RS2_AT if form is Format.LR else mask, meaning)


def _load_reserved(size: int) -> Meaning:
    return lambda ops, address: ops.load_reserved(address, size)


def _store_conditional(size: int) -> Meaning:
    return lambda ops, address, value: ops.store_conditional(address, value, size)


def _amo(name: str, size: int) -> Meaning:
    return lambda ops, address, value: ops.amo(name, address, value, size)


CSR_CHANGES = {"write": 1, "set": 2, "clear": 3}
"""What Zicsr does to a control and status register, and the low bits of funct3; bit 2 takes an immediate."""


def _csrs() -> Iterator[Instruction]:
    """Give the rows of Zicsr."""
    for name, funct3 in CSR_CHANGES.items():
        yield _i(f"csrr{name[0]}", SYSTEM, funct3, _change_csr(name), Format.CSR)
        yield _i(f"csrr{name[0]}i", SYSTEM, funct3 | 4, _change_csr(name), Format.CSR_IMMEDIATE)


def _change_csr(change: str) -> Meaning:
    return lambda ops, csr, value, source: ops.change_csr(change, csr, value, source)


def _system(name: str, word: int, meaning: Meaning) -> Instruction:
    return Instruction(name, Format.SYSTEM, word, 0xFFFF_FFFF, meaning)


INSTRUCTIONS: tuple[Instruction, ...] = (
    # RV64I: constants and jumps
    _u("lui", LUI, Format.U, lambda ops, pc, imm: imm),
    _u("auipc", AUIPC, Format.U, lambda ops, pc, imm: ops.add(pc, imm)),
    _u("jal", JAL, Format.JAL, lambda ops, pc, imm: ops.add(pc, imm)),
    _i("jalr", JALR, 0, lambda ops, a, imm: ops.and_(ops.add(a, imm), ops.constant(-2)), Format.JALR),
    # RV64I: branches
    _i("beq", BRANCH, 0, lambda ops, a, b: ops.equal(a, b), Format.BRANCH),
    _i("bne", BRANCH, 1, lambda ops, a, b: ops.not_(ops.equal(a, b)), Format.BRANCH),
    _i("blt", BRANCH, 4, lambda ops, a, b: ops.less(a, b, signed=True), Format.BRANCH),
    _i("bge", BRANCH, 5, lambda ops, a, b: ops.not_(ops.less(a, b, signed=True)), Format.BRANCH),
    _i("bltu", BRANCH, 6, lambda ops, a, b: ops.less(a, b, signed=False), Format.BRANCH),
    _i("bgeu", BRANCH, 7, lambda ops, a, b: ops.not_(ops.less(a, b, signed=False)), Format.BRANCH),
    # RV64I: loads and stores
    _i("lb", LOAD, 0, lambda ops, address: ops.load(address, 1, signed=True), Format.LOAD),
    _i("lh", LOAD, 1, lambda ops, address: ops.load(address, 2, signed=True), Format.LOAD),
    _i("lw", LOAD, 2, lambda ops, address: ops.load(address, 4, signed=True), Format.LOAD),
    _i("ld", LOAD, 3, lambda ops, address: ops.load(address, 8, signed=True), Format.LOAD),
    _i("lbu", LOAD, 4, lambda ops, address: ops.load(address, 1, signed=False), Format.LOAD),
    _i("lhu", LOAD, 5, lambda ops, address: ops.load(address, 2, signed=False), Format.LOAD),
    _i("lwu", LOAD, 6, lambda ops, address: ops.load(address, 4, signed=False), Format.LOAD),
    _i("sb", STORE, 0, lambda ops, address, value: ops.store(address, value, 1), Format.STORE),
    _i("sh", STORE, 1, lambda ops, address, value: ops.store(address, value, 2), Format.STORE),
    _i("sw", STORE, 2, lambda ops, address, value: ops.store(address, value, 4), Format.STORE),
    _i("sd", STORE, 3, lambda ops, address, value: ops.store(address, value, 8), Format.STORE),
    # RV64I: arithmetic with an immediate
    _i("addi", OP_IMM, 0, lambda ops, a, imm: ops.add(a, imm)),
    _i("slti", OP_IMM, 2, lambda ops, a, imm: ops.number(ops.less(a, imm, signed=True))),
    _i("sltiu", OP_IMM, 3, lambda ops, a, imm: ops.number(ops.less(a, imm, signed=False))),
    _i("xori", OP_IMM, 4, lambda ops, a, imm: ops.xor(a, imm)),
    _i("ori", OP_IMM, 6, lambda ops, a, imm: ops.or_(a, imm)),
    _i("andi", OP_IMM, 7, lambda ops, a, imm: ops.and_(a, imm)),
    _shift("slli", OP_IMM, 1, 0, lambda ops, a, by: ops.shift_left(a, by)),
    _shift("srli", OP_IMM, 5, 0, lambda ops, a, by: ops.shift_right(a, by, signed=False)),
    _shift("srai", OP_IMM, 5, 1, lambda ops, a, by: ops.shift_right(a, by, signed=True)),
    _i("addiw", OP_IMM_32, 0, lambda ops, a, imm: ops.extend(ops.add(a, imm), 32, signed=True)),
    _shift("slliw", OP_IMM_32, 1, 0, lambda ops, a, by: ops.extend(ops.shift_left(a, by), 32, signed=True)),
    _shift("srliw", OP_IMM_32, 5, 0, lambda ops, a, by: _shift_right_word(ops, a, by, signed=False)),
    _shift("sraiw", OP_IMM_32, 5, 1, lambda ops, a, by: _shift_right_word(ops, a, by, signed=True)),
    # RV64I: arithmetic
    _r("add", OP, 0, 0x00, lambda ops, a, b: ops.add(a, b)),
    _r("sub", OP, 0, 0x20, lambda ops, a, b: ops.sub(a, b)),
    _r("sll", OP, 1, 0x00, lambda ops, a, b: ops.shift_left(a, b)),
    _r("slt", OP, 2, 0x00, lambda ops, a, b: ops.number(ops.less(a, b, signed=True))),
    _r("sltu", OP, 3, 0x00, lambda ops, a, b: ops.number(ops.less(a, b, signed=False))),
    _r("xor", OP, 4, 0x00, lambda ops, a, b: ops.xor(a, b)),
    _r("srl", OP, 5, 0x00, lambda ops, a, b: ops.shift_right(a, b, signed=False)),
    _r("sra", OP, 5, 0x20, lambda ops, a, b: ops.shift_right(a, b, signed=True)),
    _r("or", OP, 6, 0x00, lambda ops, a, b: ops.or_(a, b)),
    _r("and", OP, 7, 0x00, lambda ops, a, b: ops.and_(a, b)),
    _r("addw", OP_32, 0, 0x00, lambda ops, a, b: ops.extend(ops.add(a, b), 32, signed=True)),
    _r("subw", OP_32, 0, 0x20, lambda ops, a, b: ops.extend(ops.sub(a, b), 32, signed=True)),
    _r("sllw", OP_32, 1, 0x00, lambda ops, a, b: ops.extend(ops.shift_left(a, _five(ops, b)), 32, signed=True)),
    _r("srlw", OP_32, 5, 0x00, lambda ops, a, b: _shift_right_word(ops, a, _five(ops, b), signed=False)),
    _r("sraw", OP_32, 5, 0x20, lambda ops, a, b: _shift_right_word(ops, a, _five(ops, b), signed=True)),
    # RV64M
    _r("mul", OP, 0, 0x01, lambda ops, a, b: ops.mul(a, b)),
    _r("mulh", OP, 1, 0x01, lambda ops, a, b: ops.mul_high(a, b, a_signed=True, b_signed=True)),
    _r("mulhsu", OP, 2, 0x01, lambda ops, a, b: ops.mul_high(a, b, a_signed=True, b_signed=False)),
    _r("mulhu", OP, 3, 0x01, lambda ops, a, b: ops.mul_high(a, b, a_signed=False, b_signed=False)),
    _r("div", OP, 4, 0x01, lambda ops, a, b: ops.div(a, b, signed=True)),
    _r("divu", OP, 5, 0x01, lambda ops, a, b: ops.div(a, b, signed=False)),
    _r("rem", OP, 6, 0x01, lambda ops, a, b: ops.rem(a, b, signed=True)),
    _r("remu", OP, 7, 0x01, lambda ops, a, b: ops.rem(a, b, signed=False)),
    _r("mulw", OP_32, 0, 0x01, lambda ops, a, b: ops.extend(ops.mul(a, b), 32, signed=True)),
    _r("divw", OP_32, 4, 0x01, lambda ops, a, b: _word(ops, ops.div, a, b, signed=True)),
    _r("divuw", OP_32, 5, 0x01, lambda ops, a, b: _word(ops, ops.div, a, b, signed=False)),
    _r("remw", OP_32, 6, 0x01, lambda ops, a, b: _word(ops, ops.rem, a, b, signed=True)),
    _r("remuw", OP_32, 7, 0x01, lambda ops, a, b: _word(ops, ops.rem, a, b, signed=False)),
    # RV64A
    *_atomics(),
    # Order, and what leaves the guest
    _i("fence", MISC_MEM, 0, lambda ops: ops.fence(), Format.FENCE),
    _i("fence.i", MISC_MEM, 1, lambda ops: ops.fence_code(), Format.SYSTEM),
    _system("ecall", 0x0000_0073, lambda ops: ops.environment_call()),
    _system("ebreak", 0x0010_0073, lambda ops: ops.breakpoint()),
    _system("wfi", 0x1050_0073, lambda ops: ops.wait_for_interrupt()),
    _system("mret", 0x3020_0073, lambda ops: ops.return_from_trap()),
    # Zicsr
    *_csrs(),
    _i("inb", CUSTOM_0, 0, lambda ops, port: ops.port_in(port, 1), Format.PORT_IN),
    _i("inh", CUSTOM_0, 1, lambda ops, port: ops.port_in(port, 2), Format.PORT_IN),
    _i("inw", CUSTOM_0, 2, lambda ops, port: ops.port_in(port, 4), Format.PORT_IN),
    _i("outb", CUSTOM_0, 4, lambda ops, port, value: ops.port_out(port, value, 1), Format.PORT_OUT),
    _i("outh", CUSTOM_0, 5, lambda ops, port, value: ops.port_out(port, value, 2), Format.PORT_OUT),
    _i("outw", CUSTOM_0, 6, lambda ops, port, value: ops.port_out(port, value, 4), Format.PORT_OUT),
)

BY_NAME: dict[str, Instruction] = {instruction.name: instruction for instruction in INSTRUCTIONS}


def _five(ops: Any, by: Any) -> Any:
    return ops.and_(by, ops.constant(31))


def _shift_right_word(ops: Any, a: Any, by: Any, *, signed: bool) -> Any:
    return ops.extend(ops.shift_right(ops.extend(a, 32, signed=signed), by, signed=signed), 32, signed=True)


def _word(ops: Any, operation: Callable[..., Any], a: Any, b: Any, *, signed: bool) -> Any:
    wide = operation(ops.extend(a, 32, signed=signed), ops.extend(b, 32, signed=signed), signed=signed)
    return ops.extend(wide, 32, signed=True)
