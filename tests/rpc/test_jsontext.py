"""JSON text: hostile bodies end in no more work than their length asks for, and numbers keep their digits."""

import pytest

from vmmd.rpc.jsontext import JsonError, Verbatim, decode, encode

MIB = 1 << 20
MANY_BRACKETS = b"[" + b"[]," * 40

# Each made a pattern that gives back what it has matched walk over the text once for each of its quotes.
ENDLESS = {
    "a string of quotes that does not end": MANY_BRACKETS + b'"' + b'\\"' * (MIB // 2),
    "a string of backslashes that does not end": MANY_BRACKETS + b'"' + b"\\\\" * (MIB // 2),
    "a string that ends in half an escape": MANY_BRACKETS + b'"' + b'\\"' * (MIB // 2) + b"\\",
    "many strings, the last without an end": MANY_BRACKETS + b'"",' * (MIB // 3) + b'"',
    "brackets in a string that does not end": MANY_BRACKETS + b'"' + b"[" * MIB,
    "line ends in a string that does not end": MANY_BRACKETS + b'"' + b"\\\n" * (MIB // 2),
}


@pytest.mark.parametrize("body", list(ENDLESS.values()), ids=list(ENDLESS))
def test_a_hostile_mebibyte_is_refused_in_one_walk(body: bytes) -> None:
    with pytest.raises(JsonError, match="not JSON"):
        decode(body, max_depth=16)


def test_a_mebibyte_of_brackets_is_too_deep() -> None:
    with pytest.raises(JsonError, match=r"limits\.json_depth = 16"):
        decode(b"[" * MIB, max_depth=16)


def test_brackets_in_strings_have_no_depth_whatever_is_escaped_before_them() -> None:
    texts = ['"' + "[" * 20 + '"', '"\\"' + "{" * 20 + '"', '"\\\\"', '""']
    value = decode(("[" + ",".join(texts * 5) + "]").encode(), max_depth=1)
    assert value == ["[" * 20, '"' + "{" * 20, "\\", ""] * 5


def test_brackets_behind_strings_have_theirs() -> None:
    with pytest.raises(JsonError, match="deeper"):
        decode(b'["\\\\",' + b"[" * 20 + b"]" * 21, max_depth=16)


@pytest.mark.parametrize("padding", ["", " " * 1000], ids=["a short text", "a long text"])
@pytest.mark.parametrize(
    ("number", "kind"),
    [("0", int), ("-1", int), ("9" * 600, int), ("9" * 640, int), ("9" * 641, Verbatim), ("-0", Verbatim)],
)
def test_a_number_is_the_same_to_the_digit_however_long_its_text_is(number: str, kind: type, padding: str) -> None:
    (value,) = decode(f"[{number}{padding}]".encode(), max_depth=4)
    assert type(value) is kind
    assert encode(value) == number.encode()
