"""From characters to tokens: comments, strings, numbers and statements. Knows no mnemonic and no value of a name.

Errors are raised as `TextError`, with the offset of the character they are about; `AssemblyError` counts that as line
and column once, at the door.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple

MAX_NUMBER = (1 << 64) - 1
"""The largest number that can be written."""


class AssemblyError(ValueError):
    """The text is no program: `message` says what is wrong at `line` and `column`, both counted from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message, line, column)
        self.message = message
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"


class TextError(Exception):
    """What is wrong, and at which offset into the text."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message, at)
        self.message = message
        self.at = at

    def located(self, source: str) -> AssemblyError:
        """Return the error with the line and the column of its offset in `source`."""
        line_start = source.rfind("\n", 0, self.at) + 1
        return AssemblyError(self.message, source.count("\n", 0, self.at) + 1, self.at - line_start + 1)


class Kind(Enum):
    """What a token is."""

    NAME = auto()
    NUMBER = auto()
    CHARACTER = auto()
    LOCAL = auto()
    """A reference to a numeric label: `1b`, `1f`."""
    STRING = auto()
    OPERATOR = auto()


class Token(NamedTuple):
    """A piece of the text, as it is written, and its offset."""

    kind: Kind
    text: str
    at: int


Tokens = Sequence[Token]

_LEXEMES = re.compile(
    r"""
    (?P<blank>    [ \t\r\f\v]+ | \#[^\n]* | //[^\n]* | /\*.*?\*/ )
  | (?P<end>      [\n;] )
  | (?P<NAME>     (?:[^\W\d]|[.$]) [\w.$]* )
  | (?P<LOCAL>    [0-9]+[bf](?![\w.$]) )
  | (?P<NUMBER>   [0-9][\w.$]* )
  | (?P<STRING>   "[^"\\\n]*(?:\\[^\n][^"\\\n]*)*" )
  | (?P<CHARACTER>'(?:\\(?:[0-7]{1,3}|x[0-9a-fA-F]+|[^\n])|[^\\\n])'? )
  | (?P<OPERATOR> <<|>>|<=|>=|==|!=|<>|&&|\|\||(?!/\*)[-+*/%&|^~!<>=(),:@] )
    """,
    re.VERBOSE | re.DOTALL,
)
_KINDS = {kind.name: kind for kind in Kind}
_UNFINISHED = {"/*": "this comment has no end: close it with */", '"': "this string has no end: close it with a quote"}


def statements(source: str) -> Iterator[list[Token]]:
    """Give the tokens of each statement that is not empty.

    Raises:
        TextError: a character that belongs to no token, a string or a comment without an end.
    """
    tokens: list[Token] = []
    position = 0
    while position < len(source):
        match = _LEXEMES.match(source, position)
        if match is None:
            raise TextError(_what_is_wrong(source, position), position)
        name = match.lastgroup or ""
        if name in _KINDS:
            tokens.append(Token(_KINDS[name], match.group(), position))
        elif name == "end" and tokens:
            yield tokens
            tokens = []
        position = match.end()
    if tokens:
        yield tokens


def _what_is_wrong(source: str, position: int) -> str:
    for opening, message in _UNFINISHED.items():
        if source.startswith(opening, position):
            return message
    return f"the character {source[position]!r} has no meaning here"


def is_operator(token: Token, text: str) -> bool:
    """Tell whether `token` is the operator or punctuation mark `text`."""
    return token.kind is Kind.OPERATOR and token.text == text


def split_at_commas(tokens: Tokens) -> list[Tokens]:
    """Cut operands apart at the commas; no tokens are no operands, and nothing between two commas is an empty one."""
    if not tokens:
        return []
    operands: list[Tokens] = []
    start = 0
    for index, token in enumerate(tokens):
        if is_operator(token, ","):
            operands.append(tokens[start:index])
            start = index + 1
    operands.append(tokens[start:])
    return operands


_NUMBER = re.compile(r"0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|(0[0-7]*)|([1-9][0-9]*)")
_BASES = (16, 2, 8, 10)


def number_of(token: Token) -> int:
    """Return the value of a number: decimal, 0x, 0b, or octal with a leading zero.

    Raises:
        TextError: it is no number, or larger than `MAX_NUMBER`.
    """
    match = _NUMBER.fullmatch(token.text)
    if match is None or match.lastindex is None:
        raise TextError(f"{_short(token.text)} is no number", token.at)
    # The length is looked at first: Python refuses to read very long decimals, and reads them in quadratic time.
    digits = match[match.lastindex].lstrip("0") or "0"
    base = _BASES[match.lastindex - 1]
    if len(digits) > MAX_NUMBER.bit_length() or int(digits, base) > MAX_NUMBER:
        raise TextError(f"{_short(token.text)} has more than 64 bits: the largest number is {MAX_NUMBER:#x}", token.at)
    return int(digits, base)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


_ESCAPES = {"b": b"\b", "f": b"\f", "n": b"\n", "r": b"\r", "t": b"\t", "v": b"\v"}
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]+)|(.))", re.DOTALL)


def bytes_of(token: Token) -> bytes:
    """Return what a string stands for: its escapes read as GNU as reads them, the rest as UTF-8.

    Raises:
        TextError: it holds half of a surrogate pair, which UTF-8 cannot say.
    """
    return _unescape(token.text[1:-1], token.at)


def character_of(token: Token) -> int:
    r"""Return the number of a character constant: `'a`, `'a'` or `'\n'`; the closing quote may be left out.

    Raises:
        TextError: the character is more than one byte.
    """
    text = token.text[1:]
    if len(text) > 1 and text.endswith("'") and text != "\\'":
        text = text[:-1]
    value = _unescape(text, token.at)
    if len(value) != 1:
        raise TextError(f"the character {text} is {len(value)} bytes in UTF-8: a constant holds one", token.at)
    return value[0]


def _unescape(text: str, at: int) -> bytes:
    pieces: list[bytes] = []
    position = 0
    try:
        for match in _ESCAPE.finditer(text):
            pieces.append(text[position : match.start()].encode())
            octal, hexadecimal, other = match.groups()
            if octal is not None:
                pieces.append(bytes((int(octal, 8) & 0xFF,)))
            elif hexadecimal is not None:
                # Of a longer number GNU as keeps the low byte: the last two digits.
                pieces.append(bytes((int(hexadecimal[-2:], 16),)))
            else:
                pieces.append(_ESCAPES.get(other) or other.encode())
            position = match.end()
        pieces.append(text[position:].encode())
    except UnicodeEncodeError as error:
        raise TextError(f"the character {error.object[error.start]!r} cannot be written in UTF-8", at) from None
    return b"".join(pieces)
