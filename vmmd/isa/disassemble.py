"""From code to text: the words of a piece of code as assembly that `assembler` turns into the same words again.

The rows are those of `instructions`, where operands lie is said by `encoding`, and what a pseudo-instruction stands for
by the assembler's table; here stands how operands are written, and which pseudo-instructions are. The manner is that of
GNU objdump, and differs in four places:

- The target of a branch is a distance from it, with the address in a comment (`bnez a0,.-8 # 0x80000010`). An address
  alone would be assembled as a branch over a jump, by GNU as too, since it does not move with the code.
- An instruction with an immediate keeps its own name (`addi`, `csrwi`), where binutils 2.40 writes `add` and `csrw`.
- A control and status register has a name if T64 has the register, and else its number.
- A word that no mnemonic expresses to the last bit is `.word`, whatever the machine does with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vmmd.isa.assembler.pseudo import CONSTANT_LOAD, PSEUDO
from vmmd.isa.assembler.text import Token, number_of, split_at_commas, statements
from vmmd.isa.csrs import CSR_NUMBERS
from vmmd.isa.decode import decode
from vmmd.isa.encoding import CSR_AT, IMMEDIATES, RD_AT, REGISTERS, RS1_AT, RS2_AT, Format, Immediate, csr, rs1
from vmmd.memory.limits import U64


class Line(NamedTuple):
    """One word of code: its address, its value and its text. What is left over at the end has less than four bytes."""

    address: int
    word: int
    text: str


def disassemble(code: bytes, origin: int = 0) -> list[Line]:
    """Write code as text, four bytes a line; one to three bytes at the end are one line, `.byte 0x01,0x02`.

    Each text, assembled at its line's address, gives the bytes of its line, and so do all of them together.

    Args:
        code: any bytes, little-endian words.
        origin: the guest address of the first byte.

    Raises:
        ValueError: the code does not lie in the 64-bit address space.
    """
    check_place(code, origin)
    return list(_lines(code, origin))


def check_place(code: bytes, origin: int) -> None:
    """Check that code can lie where it is said to.

    Raises:
        ValueError: it does not lie in the 64-bit address space.
    """
    if not 0 <= origin <= U64:
        raise ValueError(f"the origin {origin:#x} is not between 0 and {U64:#x}")
    if origin + len(code) > U64 + 1:
        raise ValueError(f"{len(code)} bytes of code do not fit between {origin:#x} and the last address")


def _lines(code: bytes, origin: int) -> Iterator[Line]:
    for at in range(0, len(code), 4):
        piece = code[at : at + 4]
        word = int.from_bytes(piece, "little")
        text = _text(word, origin + at) if len(piece) == 4 else f".byte {','.join(f'{byte:#04x}' for byte in piece)}"
        yield Line(origin + at, word, text)


def _text(word: int, address: int) -> str:
    if word in _WHOLE_WORDS:
        return _WHOLE_WORDS[word]
    row = decode(word)
    if row is not None and not (word ^ row.match) & ~(row.mask | _OPERAND_BITS[row.format]):
        operands = [show(word, address) for _, show in FIELDS[row.format]]
        if all(operands):
            return _shortened(row.name, ",".join(operands))
    return f".word {word:#010x}"


class Field(NamedTuple):
    """An operand: the bits of the word that it stands for, and its text in a word at an address.

    The text is empty where the operand cannot be written.
    """

    bits: int
    show: Callable[[int, int], str]


def _register(at: int) -> Field:
    return Field(31 << at, lambda word, address: REGISTERS[word >> at & 31])


def _number(form: Format) -> Field:
    immediate = IMMEDIATES[form]
    return Field(_bits(immediate), lambda word, address: f"{immediate.of(word)}")


def _shift(form: Format) -> Field:
    immediate = IMMEDIATES[form]
    return Field(_bits(immediate), lambda word, address: f"{immediate.of(word):#x}")


def _upper(form: Format) -> Field:
    immediate = IMMEDIATES[form]
    return Field(_bits(immediate), lambda word, address: f"{immediate.of(word) >> 12 & 0xFFFFF:#x}")


def _based(form: Format) -> Field:
    immediate = IMMEDIATES[form]
    bits = _bits(immediate) | 31 << RS1_AT
    return Field(bits, lambda word, address: f"{immediate.of(word)}({REGISTERS[rs1(word)]})")


def _branch_target(form: Format) -> Field:
    immediate = IMMEDIATES[form]

    def show(word: int, address: int) -> str:
        distance = immediate.of(word)
        return f".{distance:+} # {address + distance & U64:#x}"

    return Field(_bits(immediate), show)


def _jump_target(form: Format) -> Field:
    immediate = IMMEDIATES[form]
    return Field(_bits(immediate), lambda word, address: f"{address + immediate.of(word) & U64:#x}")


def _order(at: int) -> Field:
    return Field(15 << at, lambda word, address: "".join(c for n, c in enumerate("iorw") if word >> at & 8 >> n))


def _bits(immediate: Immediate) -> int:
    return immediate.place((1 << immediate.width) - 1)


_CSR_NAMES = {number: name for name, number in CSR_NUMBERS.items()}

_RD, _RS1, _RS2 = _register(RD_AT), _register(RS1_AT), _register(RS2_AT)
_PLACE = Field(31 << RS1_AT, lambda word, address: f"({REGISTERS[rs1(word)]})")
_CSR = Field(0xFFF << CSR_AT, lambda word, address: _CSR_NAMES.get(csr(word), f"{csr(word):#x}"))

FIELDS: dict[Format, tuple[Field, ...]] = {
    Format.R: (_RD, _RS1, _RS2),
    Format.I: (_RD, _RS1, _number(Format.I)),
    Format.SHIFT64: (_RD, _RS1, _shift(Format.SHIFT64)),
    Format.SHIFT32: (_RD, _RS1, _shift(Format.SHIFT32)),
    Format.LOAD: (_RD, _based(Format.LOAD)),
    Format.STORE: (_RS2, _based(Format.STORE)),
    Format.BRANCH: (_RS1, _RS2, _branch_target(Format.BRANCH)),
    Format.U: (_RD, _upper(Format.U)),
    Format.JAL: (_RD, _jump_target(Format.JAL)),
    Format.JALR: (_RD, _based(Format.JALR)),
    Format.FENCE: (_order(24), _order(20)),
    Format.SYSTEM: (),
    Format.AMO: (_RD, _RS2, _PLACE),
    Format.LR: (_RD, _PLACE),
    Format.PORT_IN: (_RD, _based(Format.PORT_IN)),
    Format.PORT_OUT: (_RD, _based(Format.PORT_OUT)),
    Format.CSR: (_RD, _CSR, _RS1),
    Format.CSR_IMMEDIATE: (_RD, _CSR, _number(Format.CSR_IMMEDIATE)),
}
"""The operands of each format, in the order in which they are written."""


def _all_bits(fields: tuple[Field, ...]) -> int:
    bits = 0
    for field in fields:
        bits |= field.bits
    return bits


_OPERAND_BITS = {form: _all_bits(fields) for form, fields in FIELDS.items()}

_WRITTEN = """
nop; li rd, imm; mv rd, rs; not rd, rs; neg rd, rs; negw rd, rs; sext.w rd, rs; zext.b rd, rs
seqz rd, rs; snez rd, rs; sltz rd, rs; sgtz rd, rs
beqz rs, target; bnez rs, target; blez rs, target; bgez rs, target; bltz rs, target; bgtz rs, target
j target; jal target; ret; jr rs; jr mem; jalr rs; jalr mem; jalr rd, rs
rdcycle rd; rdtime rd; rdinstret rd; csrr rd, csr
csrw csr, rs; csrs csr, rs; csrc csr, rs; csrwi csr, imm; csrsi csr, imm; csrci csr, imm
fence; fence.tso; unimp
"""
"""The pseudo-instructions that are written, as the assembler's table has them; of two that suit, the first one."""


@dataclass(frozen=True, slots=True)
class Short:
    """A shorter way to write some operands of an instruction."""

    operands: re.Pattern[str]
    name: str
    template: str


def _shortened(name: str, operands: str) -> str:
    for short in _SHORTS.get(name, ()):
        match = short.operands.fullmatch(operands)
        if match is not None:
            name, operands = short.name, match.expand(short.template)
            break
    return f"{name} {operands}" if operands else name


# GNU as chooses the words of `li` by its number, so it is no line of the assembler's table; this is the one for small
# numbers.
_SMALL_LOAD = next(statements("addi rd, zero, imm"))


def _steps(name: str, operands: tuple[str, ...]) -> tuple[tuple[Token, ...], ...]:
    """Return the instructions that a pseudo-instruction with operands of those names stands for."""
    if name == CONSTANT_LOAD:
        return (tuple(_SMALL_LOAD),)
    return next(form.steps for form in PSEUDO[name] if form.names == operands)


def _read_written() -> tuple[dict[int, str], dict[str, list[Short]]]:
    """Turn the lines of `_WRITTEN` round: what is a word as a whole, and the short ways of each instruction."""
    words: dict[int, str] = {}
    shorts: dict[str, list[Short]] = {}
    for name, *rest in statements(_WRITTEN):
        operands = tuple(operand[0].text for operand in split_at_commas(rest))
        ((made_of, *parts),) = _steps(name.text, operands)
        if made_of.text == ".4byte":
            words[number_of(parts[0])] = name.text
            continue
        pattern = "".join(
            f"(?P<{part.text}>[^,]+)" if part.text in operands else re.escape(part.text) for part in parts
        )
        template = ",".join(rf"\g<{operand}>" for operand in operands)
        shorts.setdefault(made_of.text, []).append(Short(re.compile(pattern), name.text, template))
    return words, shorts


_WHOLE_WORDS, _SHORTS = _read_written()
