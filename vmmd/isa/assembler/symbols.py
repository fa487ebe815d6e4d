"""Names and what they mean: labels, numeric labels and assignments, as the text defines them from top to bottom.

A name that `.set` defines again means the new value from there on. A name that is used before it is defined means its
first definition. A second label of one name is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vmmd.isa.assembler.expressions import Expression, Place, Symbol, Value, evaluate
from vmmd.isa.assembler.text import TextError
from vmmd.isa.encoding import REGISTERS


class Symbols:
    """All names of one text."""

    def __init__(self) -> None:
        self._current: dict[str, Symbol] = {}
        self._locals_defined: dict[str, int] = {}

    def __iter__(self) -> Iterator[Symbol]:
        return iter(self._current.values())

    def refer(self, name: str, at: int) -> Symbol:
        """Return what `name` means at this point of the text, which may be known only later."""
        symbol = self._current.get(name)
        if symbol is None:
            symbol = self._current[name] = Symbol(name, at)
        return symbol

    def refer_local(self, text: str, at: int) -> Symbol:
        """Return the numeric label that `1b` (the last one above) or `1f` (the next one) means.

        Raises:
            TextError: there is none above.
        """
        number, direction = _plain(text[:-1]), text[-1]
        count = self._locals_defined.get(number, 0)
        if direction == "b" and count == 0:
            raise TextError(f"no label {number[:40]}: stands above", at)
        return self.refer(_local_name(number, count + (direction == "f")), at)

    def define_label(self, name: str, place: Place, at: int) -> None:
        """Let `name` mean a place.

        Raises:
            TextError: it has a meaning already.
        """
        symbol = self.refer(name, at)
        if symbol.meaning is not None:
            raise TextError(f"{name} is defined already", at)
        symbol.meaning, symbol.at = place, at

    def define_local(self, digits: str, place: Place, at: int) -> None:
        """Let the numeric label mean a place, from here to its next definition."""
        number = _plain(digits)
        count = self._locals_defined[number] = self._locals_defined.get(number, 0) + 1
        self.define_label(_local_name(number, count), place, at)

    def assign(self, name: str, expression: Expression, at: int, *, is_final: bool) -> None:
        """Let `name` mean an expression; `is_final` refuses a second definition, as `.equiv` does.

        Raises:
            TextError: it is a label, or may not be defined again.
        """
        symbol = self.refer(name, at)
        if symbol.meaning is not None:
            if is_final or symbol.is_final:
                raise TextError(f"{name} is defined already", at)
            symbol = self._current[name] = Symbol(name, at)
        symbol.meaning, symbol.at, symbol.is_final = known_meaning(expression), at, is_final


def known_meaning(expression: Expression) -> Value | Place | Expression:
    """Return the number or the place that an expression is known to be by now, or the expression itself."""
    try:
        value = value_so_far(expression)
    except TextError:
        return expression
    return value if value.base is None else Place(value.base, value.number)


def value_so_far(expression: Expression) -> Value:
    """Work an expression out at this point of the text. The base of an address is its fragment.

    Raises:
        TextError: it has no value, or has none yet.
    """
    return evaluate(expression, place_as_value, _known_by_now)


def place_as_value(place: Place) -> Value:
    """Return a place as the value that counts from its own fragment."""
    return Value(place.offset, place.fragment)


def _known_by_now(symbol: Symbol, at: int) -> Value:
    if isinstance(symbol.meaning, Value):
        return symbol.meaning
    if isinstance(symbol.meaning, Place):
        return place_as_value(symbol.meaning)
    raise TextError(f"the value of {shown(symbol.name)} must be known here: define it above", at)


class Resolver:
    """Works expressions out when all names have their meanings. Each name is worked out once, without recursion."""

    def __init__(self, locate: Callable[[Place], Value]) -> None:
        self._locate = locate
        self._resolved: dict[Symbol, Value | TextError] = {}

    def value(self, expression: Expression) -> Value:
        """Return the value of an expression.

        Raises:
            TextError: a name in it has no definition or is defined by itself, or an operation has no result.
        """
        return evaluate(expression, self._locate, self._look_up)

    def value_of(self, symbol: Symbol) -> Value:
        """Return the value of a symbol; raises as `value`."""
        return self._look_up(symbol, symbol.at)

    def _look_up(self, symbol: Symbol, at: int) -> Value:
        meaning = symbol.meaning
        if isinstance(meaning, Value):
            return meaning
        if isinstance(meaning, Place):
            return self._locate(meaning)
        if meaning is None:
            raise TextError(_undefined(symbol.name), at)
        if symbol not in self._resolved:
            self._resolve(symbol)
        result = self._resolved[symbol]
        if isinstance(result, TextError):
            raise TextError(result.message, result.at)
        return result

    def _resolve(self, wanted: Symbol) -> None:
        stack = [wanted]
        entered: set[Symbol] = set()
        while stack:
            symbol = stack[-1]
            if symbol in self._resolved or not isinstance(symbol.meaning, Expression):
                stack.pop()
                continue
            entered.add(symbol)
            missing = self._unresolved_in(symbol.meaning)
            # What was entered and is not resolved is on the way from `wanted` to here.
            if any(inner in entered for inner in missing):
                self._resolved[symbol] = TextError(f"{shown(symbol.name)} is defined by itself", symbol.at)
            elif missing:
                stack.extend(missing)
            else:
                self._resolved[symbol] = self._outcome(symbol.meaning)

    def _unresolved_in(self, expression: Expression) -> list[Symbol]:
        return [
            step
            for step in expression.steps
            if isinstance(step, Symbol) and isinstance(step.meaning, Expression) and step not in self._resolved
        ]

    def _outcome(self, expression: Expression) -> Value | TextError:
        try:
            return self.value(expression)
        except TextError as error:
            return error


def shown(name: str) -> str:
    """Return a symbol's name as the text writes it, cut where it is very long."""
    written = name.partition("\0")[0] + ":" if is_local(name) else name
    return written if len(written) <= 60 else f"{written[:57]}..."


def is_local(name: str) -> bool:
    """Tell whether a symbol is a numeric label."""
    return "\0" in name


def _plain(digits: str) -> str:
    return digits.lstrip("0") or "0"


def _local_name(number: str, count: int) -> str:
    # No name in a text holds a NUL, so the labels 1: and a name can never meet.
    return f"{number}\0{count}"


def _undefined(name: str) -> str:
    if is_local(name):
        return f"no label {shown(name)} stands below"
    if name in REGISTERS or name == "fp" or (name[0] == "x" and name[1:].isascii() and name[1:].isdigit()):
        return f"{shown(name)} is a register, and a value is wanted here"
    return f"{shown(name)} is not defined"
