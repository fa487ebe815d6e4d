"""The directives: data, space, alignment, assignments, and those of other tools that change nothing here.

A directive whose effect on the code is unknown here is refused, never passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from vmmd.isa.assembler.expressions import Expression, Value
from vmmd.isa.assembler.layout import MAX_CODE_BYTES, Alignment, Origin, Output
from vmmd.isa.assembler.relocations import Patch, Rule
from vmmd.isa.assembler.symbols import Symbols, value_so_far
from vmmd.isa.assembler.text import Kind, TextError, Token, Tokens, bytes_of


@dataclass(slots=True)
class Options:
    """What `.option` and `.section` have said so far."""

    relax: bool = True
    saved: list[bool] = field(default_factory=list)
    section: str = ".text"


class Reader(Protocol):
    """What a directive acts on: the program as it has been read so far."""

    symbols: Symbols
    output: Output
    options: Options

    def read(self, tokens: Tokens, at: int) -> Expression:
        """Read an expression at this point of the output."""


@dataclass(frozen=True, slots=True)
class Directive:
    """A directive as it stands in the text."""

    program: Reader
    name: Token
    operands: list[Tokens]

    def expect(self, fewest: int, most: int) -> None:
        """Refuse another number of operands."""
        if not fewest <= len(self.operands) <= most:
            wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            raise self.error(f"takes {wanted} operands, and here are {len(self.operands)}")

    def error(self, message: str) -> TextError:
        """Return an error about the directive as a whole."""
        return TextError(f"{self.name.text[:40]} {message}", self.name.at)

    def value(self, index: int) -> Value:
        """Return the value of an operand, which must be known here."""
        return value_so_far(self.program.read(self.operands[index], self.name.at))

    def number(self, index: int, lowest: int, highest: int, default: int | None = None) -> int:
        """Return an operand that is a number in a range; one that may be left out has a default."""
        if default is not None and (index >= len(self.operands) or not self.operands[index]):
            return default
        value = self.value(index)
        at = self.operands[index][0].at
        if not value.is_absolute:
            raise TextError(f"{self.name.text} takes a number here, and this is an address", at)
        if not lowest <= value.number <= highest:
            raise TextError(f"{self.name.text} takes {lowest} to {highest} here, not {value.number}", at)
        return value.number

    def byte(self, index: int) -> int:
        """Return the byte to fill with, 0 where none is given."""
        return self.number(index, -128, 255, 0) & 0xFF


Action = Callable[[Directive], None]


def take(program: Reader, name: Token, operands: list[Tokens]) -> None:
    """Do what a directive says.

    Raises:
        TextError: it is unknown, or its operands are not what it takes.
    """
    spelled = name.text.lower()
    action = _ACTIONS.get(spelled)
    if action is None and not spelled.startswith(".cfi_"):
        raise TextError(f"{name.text[:40]} is no directive of this assembler", name.at)
    if action is not None:
        action(Directive(program, name, operands))


def _data(size: int) -> Action:
    def act(directive: Directive) -> None:
        output, at = directive.program.output, directive.name.at
        for operand in directive.operands:
            expression = directive.program.read(operand, at)
            output.put(0, size, [Patch(output.here, size, expression, Rule.DATA)], at)

    return act


def _text(end: bytes) -> Action:
    def act(directive: Directive) -> None:
        for operand in directive.operands:
            if not operand or any(token.kind is not Kind.STRING for token in operand):
                raise directive.error('takes strings in quotes, "like this"')
            # Strings without a comma between them are one.
            data = b"".join(bytes_of(token) for token in operand) + end
            directive.program.output.append(data, directive.name.at)

    return act


def _space(directive: Directive) -> None:
    directive.expect(1, 2)
    count = directive.number(0, 0, MAX_CODE_BYTES)
    directive.program.output.append(bytes((directive.byte(1),)), directive.name.at, count)


def _fill(directive: Directive) -> None:
    directive.expect(1, 3)
    count = directive.number(0, 0, MAX_CODE_BYTES)
    size = directive.number(1, 0, 8, 1)
    # GNU as fills with the low four bytes of the value and zeroes above them.
    value = directive.number(2, -(1 << 63), (1 << 63) - 1, 0) & 0xFFFF_FFFF
    directive.program.output.append(value.to_bytes(8, "little")[:size], directive.name.at, count)


def _align_to_power(directive: Directive) -> None:
    directive.expect(1, 3)
    _align(directive, 1 << directive.number(0, 0, MAX_CODE_BYTES.bit_length() - 1))


def _align_to_bytes(directive: Directive) -> None:
    directive.expect(1, 3)
    size_bytes = directive.number(0, 0, MAX_CODE_BYTES) or 1
    if size_bytes & size_bytes - 1:
        raise directive.error(f"takes a power of two, not {size_bytes}")
    _align(directive, size_bytes)


def _align(directive: Directive, size_bytes: int) -> None:
    has_fill = len(directive.operands) > 1 and len(directive.operands[1]) > 0
    fill = directive.byte(1) if has_fill else None
    most = directive.number(2, 0, (1 << 63) - 1, 0) or size_bytes
    # Where the linker may shorten an alignment of code, GNU as leaves all of it to the linker, the limit included.
    is_relaxed = fill is None and size_bytes > 4 and directive.program.options.relax
    if is_relaxed:
        most = size_bytes
    tail = Alignment(size_bytes, fill, most, is_relaxed, directive.name.at)
    if size_bytes > 1:
        directive.program.output.end_fragment(tail, directive.name.at)


def _org(directive: Directive) -> None:
    directive.expect(1, 2)
    target = directive.value(0)
    if target.is_absolute:
        directive.number(0, 0, MAX_CODE_BYTES)
    tail = Origin(target, directive.byte(1), directive.name.at)
    directive.program.output.end_fragment(tail, directive.name.at)


def _assign(*, is_final: bool) -> Action:
    def act(directive: Directive) -> None:
        directive.expect(2, 2)
        if [token.text for token in directive.operands[0]] == ["."] and not is_final:
            # GNU as moves on with this, as with .org.
            _org(replace(directive, operands=directive.operands[1:]))
            return
        name = _single_name(directive, 0)
        expression = directive.program.read(directive.operands[1], name.at)
        directive.program.symbols.assign(name.text, expression, name.at, is_final=is_final)

    return act


def _single_name(directive: Directive, index: int) -> Token:
    operand = directive.operands[index]
    if len(operand) != 1 or operand[0].kind is not Kind.NAME or operand[0].text == ".":
        raise directive.error("takes a name here")
    return operand[0]


def _option(directive: Directive) -> None:
    directive.expect(1, 1)
    options = directive.program.options
    word = _single_name(directive, 0).text
    match word:
        case "relax" | "norelax":
            options.relax = word == "relax"
        case "push":
            options.saved.append(options.relax)
        case "pop" if options.saved:
            options.relax = options.saved.pop()
        case "pop":
            raise directive.error("pop has no push above it")
        case "norvc" | "nopic":
            pass
        case _:
            raise directive.error(f"{word[:40]} is not known: relax, norelax, norvc, nopic, push and pop are")


def _section(directive: Directive) -> None:
    """Accept one section of code: its first name may be any that begins with `.text`."""
    name = directive.name.text.lower()
    if name == ".section":
        directive.expect(1, 4)
        name = _single_name(directive, 0).text
    elif directive.operands:
        # A subsection: only the first one is at hand.
        directive.number(0, 0, 0)
    program = directive.program
    if name == program.options.section:
        return
    if name.split(".")[1:2] != ["text"] or program.output.here != (0, 0):
        raise directive.error(f"would begin the section {name[:40]}: there is one alone, so put data behind the code")
    program.options.section = name


def _nothing(directive: Directive) -> None:
    """Accept what tells other tools something and puts no byte out."""


_ACTIONS: dict[str, Action] = {
    **dict.fromkeys((".byte", ".dc.b"), _data(1)),
    **dict.fromkeys((".half", ".short", ".hword", ".2byte", ".dc.w"), _data(2)),
    **dict.fromkeys((".word", ".int", ".long", ".4byte", ".dc.l"), _data(4)),
    **dict.fromkeys((".dword", ".quad", ".8byte"), _data(8)),
    ".ascii": _text(b""),
    **dict.fromkeys((".asciz", ".string"), _text(b"\0")),
    **dict.fromkeys((".zero", ".skip", ".space"), _space),
    ".fill": _fill,
    **dict.fromkeys((".align", ".p2align"), _align_to_power),
    ".balign": _align_to_bytes,
    ".org": _org,
    **dict.fromkeys((".equ", ".set"), _assign(is_final=False)),
    ".equiv": _assign(is_final=True),
    ".option": _option,
    **dict.fromkeys((".text", ".section", ".data", ".rodata", ".bss"), _section),
    **dict.fromkeys(
        (
            ".globl",
            ".global",
            ".local",
            ".hidden",
            ".extern",
            ".type",
            ".size",
            ".file",
            ".loc",
            ".ident",
            ".attribute",
        ),
        _nothing,
    ),
}
"""What each directive does, by its name in small letters; those that begin with `.cfi_` do nothing."""
