"""Constant expressions: GNU as's operators and their ranks, read into postfix order and worked out on a stack.

Numbers have 64 bits and a sign, and wrap. A value is a number, or a number from a base: an address. Addresses can be
added to and taken from each other as GNU as allows it; nothing else can be done with them. There is no recursion here,
so depth costs memory in proportion to the text and nothing else. What names mean is the matter of `symbols`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vmmd.isa.assembler.text import Kind, TextError, Token, Tokens, character_of, is_operator, number_of
from vmmd.isa.encoding import sign_extend


class Place(NamedTuple):
    """A position in the output before addresses are known: a fragment of the layout and an offset into it."""

    fragment: int
    offset: int


class Value(NamedTuple):
    """A signed 64-bit number; counted from `base` where that is not None."""

    number: int
    base: int | None = None

    @property
    def is_absolute(self) -> bool:
        """Whether the value is a plain number, wherever the code will lie."""
        return self.base is None


class Symbol:
    """One definition of a name; `meaning` is None while only uses have been read. `at` is its offset in the text."""

    __slots__ = ("at", "is_final", "meaning", "name")

    def __init__(self, name: str, at: int) -> None:
        self.name = name
        self.at = at
        self.meaning: Value | Place | Expression | None = None
        self.is_final = True


class Names(Protocol):
    """Where an expression looks its names up while it is read."""

    def refer(self, name: str, at: int) -> Symbol:
        """Return the symbol that `name` means at this point of the text."""

    def refer_local(self, text: str, at: int) -> Symbol:
        """Return the numeric label that `1b` or `1f` means at this point of the text."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator. Of two neighbours the one with the higher rank comes first, of equals the left one."""

    text: str
    rank: int
    arity: int
    function: Callable[..., int]


Step = int | Place | Symbol | Operator


@dataclass(frozen=True, slots=True)
class Expression:
    """Steps in postfix order, the offset of each in the text, and that of the whole."""

    steps: tuple[Step, ...]
    offsets: tuple[int, ...]
    at: int


def wrap(number: int) -> int:
    """Return `number` modulo 2^64 as a signed number."""
    return sign_extend(number, 64)


def _divide(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _checked_shift(shift: Callable[[int, int], int]) -> Callable[[int, int], int]:
    def checked(a: int, by: int) -> int:
        if not 0 <= by < 64:
            raise ValueError(f"the shift count {by} is not between 0 and 63")
        return shift(a, by)

    return checked


def _checked_division(divide: Callable[[int, int], int]) -> Callable[[int, int], int]:
    def checked(a: int, b: int) -> int:
        if b == 0:
            raise ValueError(f"{a} is divided by 0")
        return divide(a, b)

    return checked


_COMPARISONS: dict[str, Callable[[int, int], int]] = {
    "==": lambda a, b: -(a == b),
    "!=": lambda a, b: -(a != b),
    "<>": lambda a, b: -(a != b),
    "<": lambda a, b: -(a < b),
    "<=": lambda a, b: -(a <= b),
    ">": lambda a, b: -(a > b),
    ">=": lambda a, b: -(a >= b),
}

_BINARY_BY_RANK: dict[int, dict[str, Callable[[int, int], int]]] = {
    8: {
        "*": lambda a, b: a * b,
        "/": _checked_division(_divide),
        "%": _checked_division(lambda a, b: a - _divide(a, b) * b),
        "<<": _checked_shift(lambda a, by: a << by),
        ">>": _checked_shift(lambda a, by: (a & (1 << 64) - 1) >> by),
    },
    7: {
        "|": lambda a, b: a | b,
        "&": lambda a, b: a & b,
        "^": lambda a, b: a ^ b,
        "!": lambda a, b: a | ~b,
    },
    6: {"+": lambda a, b: a + b, "-": lambda a, b: a - b},
    5: _COMPARISONS,
    4: {"&&": lambda a, b: int(bool(a) and bool(b))},
    3: {"||": lambda a, b: int(bool(a) or bool(b))},
}

BINARY: dict[str, Operator] = {
    text: Operator(text, rank, 2, function)
    for rank, functions in _BINARY_BY_RANK.items()
    for text, function in functions.items()
}
UNARY: dict[str, Operator] = {
    "-": Operator("-", 9, 1, lambda a: -a),
    "+": Operator("+", 9, 1, lambda a: a),
    "~": Operator("~", 9, 1, lambda a: ~a),
    "!": Operator("!", 9, 1, lambda a: int(not a)),
}
_OPEN = Operator("(", 0, 0, lambda: 0)


class _Reader:
    """Turns tokens into postfix order: Dijkstra's shunting yard."""

    def __init__(self, names: Names, here: Place) -> None:
        self._names = names
        self._here = here
        self._steps: list[Step] = []
        self._offsets: list[int] = []
        self._waiting: list[tuple[Operator, int]] = []
        self._value_is_next = True

    def read(self, tokens: Tokens, at: int) -> Expression:
        for token in tokens:
            if self._value_is_next:
                self._take_value(token)
            else:
                self._take_operator(token)
        if self._value_is_next:
            raise TextError("a value is missing here", tokens[-1].at if tokens else at)
        self._settle(1)
        if self._waiting:
            raise TextError("this parenthesis has no end", self._waiting[-1][1])
        return Expression(tuple(self._steps), tuple(self._offsets), tokens[0].at)

    def _push(self, step: Step, at: int) -> None:
        self._steps.append(step)
        self._offsets.append(at)

    def _take_value(self, token: Token) -> None:
        if token.kind is Kind.OPERATOR:
            operator = _OPEN if token.text == "(" else UNARY.get(token.text)
            if operator is None:
                raise TextError(f"a value is missing before {token.text!r}", token.at)
            self._waiting.append((operator, token.at))
            return
        self._push(self._value(token), token.at)
        self._value_is_next = False

    def _value(self, token: Token) -> Step:
        match token.kind:
            case Kind.NUMBER:
                return wrap(number_of(token))
            case Kind.CHARACTER:
                return character_of(token)
            case Kind.LOCAL:
                return self._names.refer_local(token.text, token.at)
            case Kind.NAME:
                return self._here if token.text == "." else self._names.refer(token.text, token.at)
            case _:
                raise TextError("a string is no value: a character constant is written 'a'", token.at)

    def _take_operator(self, token: Token) -> None:
        if is_operator(token, ")"):
            self._settle(1)
            if not self._waiting:
                raise TextError("this parenthesis has no beginning", token.at)
            self._waiting.pop()
            return
        operator = BINARY.get(token.text) if token.kind is Kind.OPERATOR else None
        if operator is None:
            raise TextError(f"an operator or the operand's end is missing before {token.text[:40]!r}", token.at)
        self._settle(operator.rank)
        self._waiting.append((operator, token.at))
        self._value_is_next = True

    def _settle(self, rank: int) -> None:
        while self._waiting and self._waiting[-1][0].rank >= rank:
            self._push(*self._waiting.pop())


def read_expression(tokens: Tokens, at: int, names: Names, here: Place) -> Expression:
    """Read all of `tokens` as one expression; `here` is what `.` means, `at` where an error about nothing points.

    Raises:
        TextError: it is no expression.
    """
    return _Reader(names, here).read(tokens, at)


def constant(number: int, at: int) -> Expression:
    """Return the expression that is a number."""
    return Expression((wrap(number),), (at,), at)


def evaluate(
    expression: Expression, locate: Callable[[Place], Value], look_up: Callable[[Symbol, int], Value]
) -> Value:
    """Work an expression out. `locate` gives places their values, `look_up` gives symbols theirs, or raises TextError.

    Raises:
        TextError: an operation that has no result, at its operator.
    """
    stack: list[Value] = []
    for step, at in zip(expression.steps, expression.offsets, strict=True):
        if isinstance(step, int):
            stack.append(Value(step))
        elif isinstance(step, Place):
            stack.append(locate(step))
        elif isinstance(step, Operator):
            operands = stack[-step.arity :]
            del stack[-step.arity :]
            stack.append(_apply(step, operands, at))
        else:
            stack.append(look_up(step, at))
    return stack.pop()


def _apply(operator: Operator, operands: Sequence[Value], at: int) -> Value:
    base = _base_of_result(operator, [operand.base for operand in operands], at)
    try:
        return Value(wrap(operator.function(*(operand.number for operand in operands))), base)
    except ValueError as error:
        raise TextError(str(error), at) from None


def _base_of_result(operator: Operator, bases: Sequence[int | None], at: int) -> int | None:
    if bases == [None] * operator.arity:
        return None
    if operator.arity == 2:
        left, right = bases
        if operator.text == "+" and None in bases:
            return right if left is None else left
        if operator.text == "-" and right is None:
            return left
        if left == right and (operator.text == "-" or operator.text in _COMPARISONS):
            return None
        if operator.text == "-" and left is not None:
            raise TextError("the distance between these labels is not known yet at this point", at)
    raise TextError(f"{operator.text!r} takes numbers here, and this is an address", at)
