"""JSON text to values and back, by RFC 8259 and no further.

Python's decoder is too kind for a control plane, so what it forgives is refused here: NaN and Infinity, duplicate keys,
lone surrogates, text that is not UTF-8, nesting without end. Numbers that Python's types would change are kept as they
were written, so that a request's id comes back to the digit.
"""

import json
import re
from typing import Any, NoReturn

# CPython converts no more digits than this to an integer, and nothing on the wire but an id can be as long.
_LONGEST_INT = 640

# A string without an end goes on to the text's end, and what has matched is never given back: otherwise a text of such
# strings would be walked over again from each of its quotes.
_BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The text is no JSON, or is JSON that a careful reader refuses. The message says what and where."""


class Verbatim(float):
    """A number as it was written: a fraction, or an integer that `int` would not give back digit by digit."""

    text: str

    def __new__(cls, text: str) -> "Verbatim":
        """Keep the text beside the nearest float."""
        number = super().__new__(cls, text)
        number.text = text
        return number


def decode(body: bytes, *, max_depth: int) -> Any:
    """Give the value that a JSON text stands for.

    Args:
        body: The text, UTF-8 without a byte order mark.
        max_depth: How many arrays and objects may lie in one another.

    Returns:
        Python's usual types; numbers that have to keep their text are `Verbatim`.

    Raises:
        JsonError: Nothing of it is to be used.
    """
    try:
        # Space behind it is nothing: many files end in a line's end.
        text = body.decode("utf-8").rstrip(" \t\n\r")
    except UnicodeDecodeError as error:
        raise JsonError(f"the text is not UTF-8 (byte {error.start})") from None
    _check_depth(text, max_depth)
    # Where no integer can be one that has to keep its text, the decoder need not ask for each of them.
    decoder = _DECODER if len(text) > _LONGEST_INT or "-0" in text else _SHORT_DECODER
    try:
        # Nearly every text is one object or array without space before it, and what looks for that costs more.
        value, end = decoder.raw_decode(text) if text.startswith(("{", "[")) else (None, None)
        if end != len(text):
            value = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise JsonError(f"the text is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    if "\\u" in text and _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def encode(value: Any) -> bytes:
    """Give the JSON text of a value, in ASCII.

    Raises:
        TypeError: The value has a type that JSON has no text for.
        ValueError: It has a number that JSON has no text for.
    """
    if type(value) is int:
        # Nearly every request's id; what the encoder does around it costs ten times as much.
        return b"%d" % value
    if isinstance(value, Verbatim):
        return value.text.encode("ascii")
    return _ENCODER.encode(value).encode("ascii")


def _check_depth(text: str, max_depth: int) -> None:
    # Few brackets cannot be deep: the walk over the text is only for large requests, and for hostile ones.
    if text.count("[") + text.count("{") <= max_depth:
        return
    depth = 0
    for token in _BRACKETS.finditer(text):
        character = token.group()
        if character in ("[", "{"):
            depth += 1
            if depth > max_depth:
                raise JsonError(f"the text has arrays and objects nested deeper than limits.json_depth = {max_depth}")
        elif character in ("]", "}"):
            depth -= 1


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise JsonError("a string has half of a surrogate pair, which is no character") from None


def _integer(text: str) -> int | Verbatim:
    return Verbatim(text) if len(text) > _LONGEST_INT or text == "-0" else int(text)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise JsonError(f"an object has the member {name!r:.60} twice")
            seen.add(name)
    return members


def _no_constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is no JSON number")


# `json.dumps` would make an encoder for every value.
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(
    object_pairs_hook=_members, parse_float=Verbatim, parse_int=_integer, parse_constant=_no_constant
)
_SHORT_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_float=Verbatim, parse_constant=_no_constant)
