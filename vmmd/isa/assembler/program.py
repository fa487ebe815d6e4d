"""The first pass: statement after statement into an `Output`, with all that is known before addresses are."""

from __future__ import annotations

from collections.abc import Sequence

from vmmd.isa.assembler import directives
from vmmd.isa.assembler.expressions import Expression, read_expression
from vmmd.isa.assembler.layout import Branch, Output
from vmmd.isa.assembler.operands import SYNTAX, Draft, Shape, shape_of, suits, without_plt
from vmmd.isa.assembler.pseudo import ADDRESS_LOADS, CONSTANT_LOAD, PSEUDO, load_constant
from vmmd.isa.assembler.relocations import Patch
from vmmd.isa.assembler.symbols import Symbols, value_so_far
from vmmd.isa.assembler.text import Kind, TextError, Token, Tokens, is_operator, split_at_commas
from vmmd.isa.encoding import RD_AT, Format
from vmmd.isa.instructions import BY_NAME, Instruction


class Program:
    """A text while it is read: its names, its output and the options that hold at this point of it."""

    def __init__(self) -> None:
        self.symbols = Symbols()
        self.output = Output()
        self.options = directives.Options()

    def take(self, statement: Tokens) -> None:
        """Take a statement: labels, and then an assignment, a directive or an instruction."""
        tokens = self._take_labels(statement)
        if not tokens:
            return
        first = tokens[0]
        if first.kind is not Kind.NAME:
            raise TextError(f"a statement begins with a name, not with {first.text[:40]!r}", first.at)
        is_assignment = len(tokens) > 1 and tokens[1].text in {"=", "=="} and tokens[1].kind is Kind.OPERATOR
        if is_assignment and first.text == ".":
            directives.take(self, Token(Kind.NAME, ".org", first.at), split_at_commas(tokens[2:]))
        elif is_assignment:
            expression = self.read(tokens[2:], tokens[1].at)
            self.symbols.assign(first.text, expression, first.at, is_final=tokens[1].text == "==")
        elif first.text.startswith("."):
            directives.take(self, first, split_at_commas(tokens[1:]))
        else:
            self._take_instruction(first, [without_plt(operand) for operand in split_at_commas(tokens[1:])])

    def read(self, tokens: Tokens, at: int) -> Expression:
        """Read an expression at this point of the output."""
        return read_expression(tokens, at, self.symbols, self.output.here)

    def _take_labels(self, tokens: Tokens) -> Tokens:
        start = 0
        while len(tokens) > start + 1 and is_operator(tokens[start + 1], ":"):
            label = tokens[start]
            if label.kind is Kind.NUMBER and label.text.isascii() and label.text.isdigit():
                self.symbols.define_local(label.text, self.output.here, label.at)
            elif label.kind is Kind.NAME and label.text != ".":
                self.symbols.define_label(label.text, self.output.here, label.at)
            else:
                raise TextError(f"{label.text[:40]!r} cannot be a label", label.at)
            start += 2
        return tokens[start:]

    def _take_instruction(self, mnemonic: Token, operands: list[Tokens]) -> None:
        name = mnemonic.text.lower()
        if not all(operands):
            raise TextError(f"an operand of {name[:40]} is missing between commas", mnemonic.at)
        row = BY_NAME.get(name)
        forms = PSEUDO.get(name, ())
        if row is None and not forms and name != CONSTANT_LOAD:
            raise TextError(f"{mnemonic.text[:40]} is no instruction of this machine", mnemonic.at)
        if self._take_constant_load(name, operands):
            return
        shapes = [shape_of(operand) for operand in operands]
        if row is not None and _fit(shapes, [slot.shape for slot in SYNTAX[row.format]]):
            self._encode(row, mnemonic.at, operands)
            return
        for form in forms:
            if _fit(shapes, form.shapes):
                for step in form.expand(operands, mnemonic.at):
                    self.take(step)
                return
        raise _unfit(mnemonic, operands, shapes)

    def _take_constant_load(self, name: str, operands: list[Tokens]) -> bool:
        """Take `li`, and `la` of what is known to be a constant here."""
        if name not in ADDRESS_LOADS and name != CONSTANT_LOAD:
            return False
        if len(operands) != 2 or shape_of(operands[0]) is not Shape.REGISTER:
            return False
        expression = self.read(operands[1], operands[1][0].at)
        try:
            value = value_so_far(expression)
            if not value.is_absolute:
                raise TextError(f"{name} takes a constant, and this is an address: la takes it", expression.at)
        except TextError:
            if name == CONSTANT_LOAD:
                raise
            return False
        draft = Draft(BY_NAME["addi"], self._read_operand, 0)
        SYNTAX[Format.I][0].take(draft, operands[0])
        for word in load_constant(draft.word >> RD_AT, value.number, short=name == CONSTANT_LOAD):
            self.output.append(word.to_bytes(4, "little"), expression.at)
        return True

    def _read_operand(self, tokens: Tokens) -> Expression:
        return self.read(tokens, tokens[0].at)

    def _encode(self, row: Instruction, at: int, operands: list[Tokens]) -> None:
        draft = Draft(row, self._read_operand, row.match)
        for slot, operand in zip(SYNTAX[row.format], operands, strict=True):
            slot.take(draft, operand)
        here = self.output.here
        patches = [Patch(here, 4, expression, rule, immediate) for expression, rule, immediate in draft.values]
        if row.format is Format.BRANCH:
            self.output.end_fragment(Branch(draft.word, patches[0]), at)
        else:
            self.output.put(draft.word, 4, patches, at)


def _fit(shapes: list[Shape], wanted: Sequence[Shape]) -> bool:
    return len(shapes) == len(wanted) and all(map(suits, shapes, wanted))


def _unfit(mnemonic: Token, operands: list[Tokens], shapes: list[Shape]) -> TextError:
    """Say what the instruction takes; where only one form has as many operands, at the one that is wrong."""
    name = mnemonic.text.lower()
    forms = [(form.names, form.shapes) for form in PSEUDO.get(name, ())]
    if name in BY_NAME:
        slots = SYNTAX[BY_NAME[name].format]
        forms.insert(0, (tuple(slot.name for slot in slots), tuple(slot.shape for slot in slots)))
    if name == CONSTANT_LOAD:
        forms.append((("rd", "imm"), (Shape.REGISTER, Shape.EXPRESSION)))
    usable = [wanted for _, wanted in forms if len(wanted) == len(operands)]
    if len(usable) == 1:
        for operand, shape, wanted in zip(operands, shapes, usable[0], strict=True):
            if not suits(shape, wanted):
                text = "".join(token.text for token in operand)[:40]
                return TextError(f"{name} takes {wanted.value} here, and {text} is none", operand[0].at)
    usage = " or ".join(f"{name} {', '.join(names)}".rstrip() for names, _ in forms)
    return TextError(f"these operands do not suit {name}: it is written {usage}", mnemonic.at)
