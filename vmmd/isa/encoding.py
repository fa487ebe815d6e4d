"""How operands lie in an instruction word: formats, register fields and immediates, for both directions.

Holds where the bits are, as the RISC-V unprivileged specification draws them, and nothing of what an instruction does.
Decoder, both engines, assembler and disassembler read this one description.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Format(Enum):
    """Which operands an instruction has, in the order and the manner in which assembly writes them."""

    R = auto()  # add rd, rs1, rs2
    I = auto()  # addi rd, rs1, imm  # noqa: E741  (the manual's own letter)
    SHIFT64 = auto()  # slli rd, rs1, shamt (6 bits)
    SHIFT32 = auto()  # slliw rd, rs1, shamt (5 bits)
    LOAD = auto()  # ld rd, imm(rs1)
    STORE = auto()  # sd rs2, imm(rs1)
    BRANCH = auto()  # beq rs1, rs2, target
    U = auto()  # lui rd, imm (its upper 20 bits are written)
    JAL = auto()  # jal rd, target
    JALR = auto()  # jalr rd, imm(rs1)
    FENCE = auto()  # fence predecessor, successor
    SYSTEM = auto()  # wfi: no operands
    AMO = auto()  # amoadd.w rd, rs2, (rs1)
    LR = auto()  # lr.w rd, (rs1)
    PORT_IN = auto()  # inb rd, imm(rs1)
    PORT_OUT = auto()  # outb rd, imm(rs1): rd is the source
    CSR = auto()  # csrrw rd, csr, rs1
    CSR_IMMEDIATE = auto()  # csrrwi rd, csr, imm (5 bits, in the place of rs1)


@dataclass(frozen=True, slots=True)
class Slice:
    """`width` bits of the word from bit `at` on are the immediate's bits from bit `to` on."""

    at: int
    to: int
    width: int


@dataclass(frozen=True, slots=True)
class Immediate:
    """An immediate operand: its pieces, its width in bits, and whether the highest bit is a sign."""

    slices: tuple[Slice, ...]
    width: int
    signed: bool

    def of(self, word: int) -> int:
        """Return the immediate that `word` holds, as a Python integer with its sign."""
        value = 0
        for piece in self.slices:
            value |= (word >> piece.at & (1 << piece.width) - 1) << piece.to
        return sign_extend(value, self.width) if self.signed else value

    def place(self, value: int) -> int:
        """Return the word's bits for `value`; the caller has checked that it `fits`."""
        word = 0
        for piece in self.slices:
            word |= (value >> piece.to & (1 << piece.width) - 1) << piece.at
        return word

    @property
    def lowest(self) -> int:
        """The smallest value that fits."""
        return -(1 << self.width - 1) if self.signed else 0

    @property
    def highest(self) -> int:
        """The largest value that fits, before its step is looked at."""
        return (1 << self.width - int(self.signed)) - 1

    @property
    def step(self) -> int:
        """Values are multiples of this: 2 where the word has no place for bit 0."""
        return 1 << min(piece.to for piece in self.slices)

    def fits(self, value: int) -> bool:
        """Tell whether `value` can be written into a word without loss."""
        return self.lowest <= value <= self.highest and value % self.step == 0


_I = Immediate((Slice(20, 0, 12),), 12, signed=True)

IMMEDIATES: dict[Format, Immediate] = {
    Format.I: _I,
    Format.LOAD: _I,
    Format.JALR: _I,
    Format.PORT_IN: _I,
    Format.PORT_OUT: _I,
    Format.SHIFT64: Immediate((Slice(20, 0, 6),), 6, signed=False),
    Format.SHIFT32: Immediate((Slice(20, 0, 5),), 5, signed=False),
    Format.STORE: Immediate((Slice(7, 0, 5), Slice(25, 5, 7)), 12, signed=True),
    Format.BRANCH: Immediate((Slice(8, 1, 4), Slice(25, 5, 6), Slice(7, 11, 1), Slice(31, 12, 1)), 13, signed=True),
    Format.U: Immediate((Slice(12, 12, 20),), 32, signed=True),
    Format.JAL: Immediate((Slice(21, 1, 10), Slice(20, 11, 1), Slice(12, 12, 8), Slice(31, 20, 1)), 21, signed=True),
    Format.CSR_IMMEDIATE: Immediate((Slice(15, 0, 5),), 5, signed=False),
}

RD_AT, RS1_AT, RS2_AT = 7, 15, 20
"""The lowest bits of the three register fields; each is five bits wide."""

CSR_AT = 20
"""The lowest of the twelve bits that number a control and status register."""

REGISTERS: tuple[str, ...] = tuple(
    ["zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1"]
    + [f"a{n}" for n in range(8)]
    + [f"s{n}" for n in range(2, 12)]
    + ["t3", "t4", "t5", "t6"]
)
"""The ABI names of x0 to x31, in order."""


def rd(word: int) -> int:
    """Return the number of the destination register."""
    return word >> RD_AT & 31


def rs1(word: int) -> int:
    """Return the number of the first source register."""
    return word >> RS1_AT & 31


def rs2(word: int) -> int:
    """Return the number of the second source register."""
    return word >> RS2_AT & 31


def csr(word: int) -> int:
    """Return the number of the control and status register."""
    return word >> CSR_AT & 0xFFF


def sign_extend(value: int, bits: int) -> int:
    """Read the low `bits` of `value` as a two's complement number."""
    low = value & (1 << bits) - 1
    return low - (low >> bits - 1 << bits)
