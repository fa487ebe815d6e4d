"""What each format takes for operands, and how they get into the word. A new format is one line in `SYNTAX`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from vmmd.isa.assembler.expressions import Expression
from vmmd.isa.assembler.relocations import Rule
from vmmd.isa.assembler.symbols import value_so_far
from vmmd.isa.assembler.text import Kind, TextError, Tokens, is_operator
from vmmd.isa.csrs import CSR_NUMBERS
from vmmd.isa.encoding import CSR_AT, IMMEDIATES, RD_AT, REGISTERS, RS1_AT, RS2_AT, Format, Immediate
from vmmd.isa.instructions import Instruction

REGISTER_NUMBERS: dict[str, int] = {
    **{name: number for number, name in enumerate(REGISTERS)},
    **{f"x{number}": number for number in range(32)},
    "fp": 8,
}
"""All names of registers."""


class Shape(Enum):
    """What an operand looks like, and what a form of an instruction asks for."""

    REGISTER = "a register"
    MEMORY = "an address like 8(sp)"
    EXPRESSION = "a value"


def shape_of(tokens: Tokens) -> Shape:
    """Return what an operand looks like; what is neither a register nor an address is to be a value."""
    if len(tokens) == 1 and tokens[0].kind is Kind.NAME and tokens[0].text in REGISTER_NUMBERS:
        return Shape.REGISTER
    # `%hi(a1)` is a value too: of a label that has a register's name.
    is_function = len(tokens) == 5 and is_operator(tokens[0], "%")
    if (
        len(tokens) >= 3
        and not is_function
        and is_operator(tokens[-3], "(")
        and shape_of(tokens[-2:-1]) is Shape.REGISTER
        and is_operator(tokens[-1], ")")
    ):
        return Shape.MEMORY
    return Shape.EXPRESSION


def without_plt(tokens: Tokens) -> Tokens:
    """Drop the `@plt` with which compilers mark calls: in one piece of code it means nothing."""
    is_marked = len(tokens) > 2 and is_operator(tokens[-2], "@") and tokens[-1].text == "plt"
    return tokens[:-2] if is_marked else tokens


def suits(shape: Shape, wanted: Shape) -> bool:
    """Tell whether an operand can stand where `wanted` is. A register's name may also be a label's."""
    return shape is wanted or (wanted is Shape.EXPRESSION and shape is Shape.REGISTER)


@dataclass(slots=True)
class Draft:
    """An instruction while its operands are read: the word so far, and what is to be put over its zeroes later."""

    instruction: Instruction
    read: Callable[[Tokens], Expression]
    word: int
    values: list[tuple[Expression, Rule, Immediate]] = field(default_factory=list)

    def wait_for(self, tokens: Tokens, rule: Rule) -> None:
        """Let the format's immediate be the value of `tokens`."""
        self.values.append((self.read(tokens), rule, IMMEDIATES[self.instruction.format]))


@dataclass(frozen=True, slots=True)
class Slot:
    """One operand of a format: its name in messages, its shape, and what it does to the draft."""

    name: str
    shape: Shape
    take: Callable[[Draft, Tokens], None]


def _register(name: str, at: int) -> Slot:
    def take(draft: Draft, tokens: Tokens) -> None:
        draft.word |= REGISTER_NUMBERS[tokens[0].text] << at

    return Slot(name, Shape.REGISTER, take)


_FUNCTIONS: dict[str, Rule] = {
    "hi": Rule.HIGH,
    "lo": Rule.LOW,
    "pcrel_hi": Rule.PC_HIGH,
    "pcrel_lo": Rule.PC_LOW,
}


def _value(plain: Rule, *functions: str) -> Callable[[Draft, Tokens], None]:
    """Make the reader of a value that is `plain`, or stands in one of the assembler functions `%name(...)`."""
    usable = ", ".join(f"%{name}" for name in functions)

    def take(draft: Draft, tokens: Tokens) -> None:
        if not (tokens and is_operator(tokens[0], "%")):
            draft.wait_for(tokens, plain)
            return
        name = tokens[1].text if len(tokens) > 1 else ""
        if name not in functions:
            known = f"{usable} do" if functions else "none does"
            raise TextError(f"%{name[:40]} does not fit into {draft.instruction.name}: {known}", tokens[0].at)
        if not (len(tokens) > 4 and is_operator(tokens[2], "(") and is_operator(tokens[-1], ")")):
            raise TextError(f"%{name} takes a value in parentheses, and nothing behind them", tokens[0].at)
        draft.wait_for(tokens[3:-1], _FUNCTIONS[name])

    return take


_low = _value(Rule.NUMBER, "lo", "pcrel_lo")


def _take_address(draft: Draft, tokens: Tokens) -> None:
    draft.word |= REGISTER_NUMBERS[tokens[-2].text] << RS1_AT
    if len(tokens) > 3:
        _low(draft, tokens[:-3])


def _take_place(draft: Draft, tokens: Tokens) -> None:
    """Take the address of an atomic: a register in parentheses, with nothing or a 0 before them."""
    if len(tokens) > 3 and not (len(tokens) == 4 and tokens[0].text == "0"):
        raise TextError(f"{draft.instruction.name} has no offset: write (register)", tokens[0].at)
    draft.word |= REGISTER_NUMBERS[tokens[-2].text] << RS1_AT


def _take_target(draft: Draft, tokens: Tokens) -> None:
    draft.wait_for(tokens, Rule.DISTANCE)


def _order(name: str, at: int) -> Slot:
    """Make the slot of a fence's four bits: accesses to devices and memory, in the order of the letters in `iorw`."""

    def take(draft: Draft, tokens: Tokens) -> None:
        letters = tokens[0].text if len(tokens) == 1 else ""
        if not letters or letters != "".join(letter for letter in "iorw" if letter in letters):
            raise TextError("fence orders some of i, o, r and w, written in this order", tokens[0].at)
        draft.word |= sum(8 >> "iorw".index(letter) for letter in letters) << at

    return Slot(name, Shape.EXPRESSION, take)


_LAST_CSR = 0xFFF
_CSR_USAGE = f"write a number from 0 to {_LAST_CSR}, or one of {', '.join(CSR_NUMBERS)}"


def _take_csr(draft: Draft, tokens: Tokens) -> None:
    """Take the name of one of T64's registers, or the number of any: a constant that is known here, as GNU as wants."""
    name = tokens[0].text if len(tokens) == 1 and tokens[0].kind is Kind.NAME else ""
    number = CSR_NUMBERS.get(name)
    draft.word |= (_csr_number(draft.read(tokens), name) if number is None else number) << CSR_AT


def _csr_number(expression: Expression, name: str) -> int:
    """Return the number that an expression gives; `name` is all of it where it is a name alone."""
    try:
        value = value_so_far(expression)
    except TextError:
        if not name:
            raise
        raise TextError(f"{name[:40]} names no CSR of T64 and no constant above: {_CSR_USAGE}", expression.at) from None
    if not value.is_absolute:
        raise TextError(f"an address numbers no CSR: {_CSR_USAGE}", expression.at)
    if not 0 <= value.number <= _LAST_CSR:
        raise TextError(f"{value.number} numbers no CSR: {_CSR_USAGE}", expression.at)
    return value.number


_RD, _RS1, _RS2 = _register("rd", RD_AT), _register("rs1", RS1_AT), _register("rs2", RS2_AT)
_IMMEDIATE = Slot("imm", Shape.EXPRESSION, _low)
_SHIFT = Slot("shamt", Shape.EXPRESSION, _value(Rule.NUMBER))
_CSR = Slot("csr", Shape.EXPRESSION, _take_csr)
_SMALL = Slot("imm", Shape.EXPRESSION, _value(Rule.NUMBER))
_UPPER = Slot("imm", Shape.EXPRESSION, _value(Rule.UPPER, "hi", "pcrel_hi"))
_ADDRESS = Slot("imm(rs1)", Shape.MEMORY, _take_address)
_PLACE = Slot("(rs1)", Shape.MEMORY, _take_place)
_TARGET = Slot("target", Shape.EXPRESSION, _take_target)

SYNTAX: dict[Format, tuple[Slot, ...]] = {
    Format.R: (_RD, _RS1, _RS2),
    Format.I: (_RD, _RS1, _IMMEDIATE),
    Format.SHIFT64: (_RD, _RS1, _SHIFT),
    Format.SHIFT32: (_RD, _RS1, _SHIFT),
    Format.LOAD: (_RD, _ADDRESS),
    Format.STORE: (_RS2, _ADDRESS),
    Format.BRANCH: (_RS1, _RS2, _TARGET),
    Format.U: (_RD, _UPPER),
    Format.JAL: (_RD, _TARGET),
    Format.JALR: (_RD, _ADDRESS),
    Format.FENCE: (_order("predecessor", 24), _order("successor", 20)),
    Format.SYSTEM: (),
    Format.AMO: (_RD, _RS2, _PLACE),
    Format.LR: (_RD, _PLACE),
    Format.PORT_IN: (_RD, _ADDRESS),
    Format.PORT_OUT: (_RD, _ADDRESS),
    Format.CSR: (_RD, _CSR, _RS1),
    Format.CSR_IMMEDIATE: (_RD, _CSR, _SMALL),
}
"""The operands of each format, in the order in which they are written."""
