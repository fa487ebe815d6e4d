"""The assembler's text and its constant expressions."""

import pytest

from tests.isa.assembling import NOP, code, error, numbers
from vmmd.isa.assembler import Assembly, assemble


def test_an_empty_text_is_an_empty_program() -> None:
    assert assemble("") == Assembly(b"", {})
    assert assemble(" \t\r\n;;; # nothing\n/* at\nall */") == Assembly(b"", {})


def test_comments_end_at_the_line_and_block_comments_may_span_lines() -> None:
    assert code("nop # one ; nop\nnop // two ; nop\n/* nop\nnop */ nop") == NOP * 3


def test_statements_are_separated_by_semicolons_and_lines() -> None:
    assert code("nop; nop;nop\r\nnop") == NOP * 4


def test_comment_marks_in_strings_and_characters_are_text() -> None:
    assert code(".ascii \"a#b;c//d/*\"\n.byte '#, ';'") == b"a#b;c//d/*#;"


def test_mnemonics_and_directives_are_read_in_any_case_and_registers_are_not() -> None:
    assert code("ADDI a0, a0, 1\n.BYTE 1") == code("addi a0, a0, 1\n.byte 1")
    assert error("addi A0, a0, 1").column == 6


def test_all_names_of_a_register_are_one_register() -> None:
    assert code("mv s0, a0") == code("mv fp, x10") == code("mv x8, x10")


def test_strings_are_utf8_with_the_escapes_of_as() -> None:
    assert code(r'.ascii "\1\12\1234\x41\x123\b\f\n\r\t\v\\\"\q"') == b'\x01\x0aS4A#\b\f\n\r\t\v\\"q'
    assert code('.asciz "é"') == b"\xc3\xa9\0"


def test_strings_without_a_comma_are_one_and_each_operand_of_asciz_ends_with_zero() -> None:
    assert code('.asciz "a" "b", "c"') == b"ab\0c\0"
    assert code('.string "a"\n.ascii "b", "c"') == b"a\0bc"


def test_operators_have_the_ranks_of_as_which_are_not_those_of_c() -> None:
    assert numbers("1+2*3, 1|2+4, 6&3+1, 1<<2+1, 2*3<<1, 2-1-1, 8/2/2, 1|2^3&1") == [7, 7, 3, 5, 12, 0, 2, 0]
    assert numbers("4+1==5, 3<2==0, 1||1&&0, 1+1&&0, -2*3, ~1+1, - -5, 2*-3, (1+2)*3") == [
        -1,
        -1,
        1,
        0,
        -6,
        -1,
        5,
        -6,
        9,
    ]


def test_comparisons_give_minus_one_and_logical_operators_one() -> None:
    assert numbers("7==7, 3<2, 4!=5, 4<>4, 5>=5, 1<=0, 2>1, -1<1") == [-1, 0, -1, 0, -1, 0, -1, -1]
    assert numbers("1&&2, 0||3, 0||0, !5, !0, 1!2") == [1, 1, 0, 0, 1, -3]


def test_numbers_wrap_at_64_bits_and_division_goes_towards_zero() -> None:
    assert numbers("0x7fffffffffffffff+1, 18446744073709551615, 1<<63>>63, -1>>60") == [-(1 << 63), -1, 1, 15]
    assert numbers("-7/2, -7%3, 7/-2, 5%-3") == [-3, -1, -3, 2]
    assert numbers("0x8000000000000000/-1, 0x4000000000000000*2") == [-(1 << 63), -(1 << 63)]


def test_numbers_are_written_in_four_bases_and_as_characters() -> None:
    assert numbers("017, 0b101, 0B1, 0x1F, 0X1f, 10, 0") == [15, 5, 1, 31, 31, 10, 0]
    assert numbers(r"'a, 'b', '\n', '\'', ''', '\\, 'a+1") == [97, 98, 10, 39, 39, 92, 98]


def test_the_distance_of_labels_is_a_number_and_the_point_is_the_datum_itself() -> None:
    assembled = assemble("nop\na: nop\nb: .word b-a, a-b\n.dword ., .-a", 0x1000)
    assert assembled.code[8:] == (
        (4).to_bytes(4, "little")
        + (-4 & 0xFFFF_FFFF).to_bytes(4, "little")
        + (0x1010).to_bytes(8, "little")
        + (0x14).to_bytes(8, "little")
    )


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1/0", "1 is divided by 0"),
        ("5%(1-1)", "5 is divided by 0"),
        ("1<<64", "the shift count 64 is not between 0 and 63"),
        ("1>>(1<<40)", "the shift count 1099511627776 is not between 0 and 63"),
        ("1<<-1", "the shift count -1 is not between 0 and 63"),
        ("18446744073709551616", "18446744073709551616 has more than 64 bits"),
        ("0x1ffffffffffffffff", "has more than 64 bits"),
        ("089", "089 is no number"),
        ("0xg", "0xg is no number"),
        ("1 2", "an operator or the operand's end is missing before '2'"),
        ("(1", "this parenthesis has no end"),
        ("1)", "this parenthesis has no beginning"),
        ("1+", "a value is missing here"),
        ("*1", "a value is missing before '*'"),
        ("1,,2", "a value is missing here"),
        ('"1"', "a string is no value"),
        ("nowhere", "nowhere is not defined"),
        ("a0", "a0 is a register"),
        ("l*2", "'*' takes numbers here, and this is an address"),
        ("-l", "'-' takes numbers here"),
        ("l+l", "'+' takes numbers here"),
        ("1b", "no label 1: stands above"),
        ("1f", "no label 1: stands below"),
        ("'é'", "is 2 bytes in UTF-8"),
    ],
)
def test_what_has_no_value_is_refused_with_the_reason(expression: str, message: str) -> None:
    assert message in error(f"l: .dword {expression}").message
