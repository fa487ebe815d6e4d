"""Labels, names and directives of the assembler: what they mean, and the errors where they are wrong."""

import pytest

from tests.isa.assembling import NOP, code, error
from vmmd.isa.assembler import Assembly, assemble


def test_symbols_are_absolute_addresses_and_values() -> None:
    source = "start: nop\nUART = 0x10000000\nend:\n.equ size, end-start\n1: j 1b\n.set top, -1"
    assert assemble(source, 0x8000_0000).symbols == {
        "start": 0x8000_0000,
        "UART": 0x1000_0000,
        "end": 0x8000_0004,
        "size": 4,
        "top": 0xFFFF_FFFF_FFFF_FFFF,
    }


def test_numeric_labels_mean_the_nearest_one_in_their_direction() -> None:
    assert code("1: nop\n1: j 1b\nj 1f\n1: j 1b\n00: j 0b\nj 0f\n0: nop").hex() == (
        "130000006f0000006f0040006f0000006f0000006f00400013000000"
    )


def test_a_line_may_hold_several_labels_and_an_instruction() -> None:
    assert assemble("a: b : c: nop; d: nop").symbols == {"a": 0, "b": 0, "c": 0, "d": 4}


def test_a_name_that_set_defines_again_means_the_new_value_from_there_on() -> None:
    assert code(".set x, 1\n.byte x\n.set x, x+1\n.byte x, y\n.set y, 3\n.byte y\n.set y, 4") == bytes((1, 2, 3, 3))


def test_names_may_be_made_of_names_that_come_later() -> None:
    assert code(".byte y\n.equ y, z+1\nz = 5") == b"\x06"
    assert code(".set a, b\n.set b, c\nj a\nc: nop") == code("j c\nc: nop")


def test_a_label_may_have_the_name_of_a_register_or_an_instruction() -> None:
    assert code("a0: nop\nadd: j a0\nla a1, a0\nlw a1, a0") == code("x: nop\nj x\nla a1, x\nlw a1, x")


@pytest.mark.parametrize(
    ("source", "line", "column", "message"),
    [
        ("a: nop\na: nop", 2, 1, "a is defined already"),
        ("a: nop\n.set a, 1", 2, 6, "a is defined already"),
        (".equ a, 1\na: nop", 2, 1, "a is defined already"),
        (".equiv a, 1\n.equiv a, 2", 2, 8, "a is defined already"),
        ("a == 1\na = 2", 2, 1, "a is defined already"),
        (".equ a, a+1", 1, 6, "a is defined by itself"),
        (".equ a, b\n.equ b, a\n.byte a", 2, 6, "b is defined by itself"),
        ("j nowhere", 1, 3, "nowhere is not defined"),
        ("beqz a0, nowhere", 1, 10, "nowhere is not defined"),
        ("nop\n  .equ a, nowhere", 2, 11, "nowhere is not defined"),
        (".: nop", 1, 1, "'.' cannot be a label"),
        ("1x: nop", 1, 1, "'1x' cannot be a label"),
        ("5", 1, 1, "a statement begins with a name, not with '5'"),
    ],
)
def test_a_name_that_is_wrong_is_refused_where_it_stands(source: str, line: int, column: int, message: str) -> None:
    caught = error(source)
    assert (caught.line, caught.column, caught.message) == (line, column, message)


def test_data_directives_have_their_sizes_and_are_not_aligned() -> None:
    assert code(".byte 1, -1, 255\n.half 0x1234\n.word 0x12345678\n.dword 1") == bytes.fromhex(
        "01ffff3412785634120100000000000000"
    )
    assert code(".2byte 1; .4byte 2; .8byte 3; .short 4; .int 5; .long 6; .quad 7") == code(
        ".half 1; .word 2; .dword 3; .half 4; .word 5; .word 6; .dword 7"
    )


def test_space_is_zero_or_the_byte_that_is_given() -> None:
    assert code(".zero 2\n.skip 1\n.space 2, 0x55\n.zero 1, -1\nx = 2\n.zero x") == b"\0\0\0\x55\x55\xff\0\0"
    assert code(".fill 2, 3, 0x12345678\n.fill 2\n.fill 1, 5, -1") == bytes.fromhex("7856347856340000ffffffff00")


def test_alignment_of_code_is_filled_with_nops_and_other_alignment_with_its_byte() -> None:
    assert code("nop\n.align 3\nnop") == NOP * 3
    assert code("nop\n.balign 8, 0x55\nnop") == NOP + b"\x55" * 4 + NOP
    assert code("nop\n.p2align 4\n.align 4\nnop") == NOP * 5


def test_alignment_behind_a_string_is_real_alignment() -> None:
    assert assemble('.asciz "hello"\n.align 2\nafter: nop\n.byte 1\n.align 3\nlast:').symbols == {
        "after": 8,
        "last": 16,
    }


def test_alignment_is_of_addresses_not_of_offsets() -> None:
    assert assemble("nop\n.align 4\nx:", 0x1008).symbols["x"] == 0x1010


def test_alignment_that_takes_more_than_its_limit_is_left_out() -> None:
    assert code("nop\n.p2align 3, 0x55, 2\nnop") == NOP * 2
    assert code("nop\n.p2align 3, 0x55, 4\nnop") == NOP + b"\x55" * 4 + NOP


@pytest.mark.parametrize("move", [". = 12", ". = . + 8", ".set ., 12", ".equ ., . + 8", ".org 12"])
def test_to_assign_the_place_moves_on_as_org_does(move: str) -> None:
    assert code(f"nop\n{move}\nnop", 0x1000) == NOP + bytes(8) + NOP
    assert list(assemble(f"nop\n{move}\nnop").symbols) == []


@pytest.mark.parametrize("move", [". = 0", ".set ., 0", ".org 0"])
def test_the_place_goes_forward_only(move: str) -> None:
    assert "forward only" in error(f"nop\n{move}").args[0]


def test_org_counts_from_the_origin_or_from_a_label() -> None:
    assert code("nop\n.org 12\nnop\n.org . + 4, 0x55\nnop", 0x1000) == NOP + bytes(8) + NOP + b"\x55" * 4 + NOP
    assert code("nop\nl: nop\n.org l+12\nnop", 0x1000) == NOP * 2 + bytes(8) + NOP


def test_org_behind_an_alignment_is_where_it_says() -> None:
    assembled = assemble(".align 6\nnop\n.align 4\n.org 0x100\nvector: nop", 0x1000)
    assert assembled.symbols["vector"] == 0x1100
    assert len(assembled.code) == 0x104


def test_a_branch_that_org_pushes_out_of_reach_is_long() -> None:
    source = "nop\nbeqz a0, far\n.align 8\n.org 4096+4\nfar: nop"
    assembled = assemble(source, 0x1000)
    assert assembled.symbols["far"] == 0x2004
    assert assembled.code[4:12] == code("bnez a0, .+8\nj .+4092")


def test_what_other_tools_want_to_know_changes_nothing() -> None:
    source = """
        .file "guest.c"
        .option norelax; .option norvc; .option nopic
        .attribute arch, "rv64i2p1_m2p0"
        .section .text.init, "ax", @progbits
        .globl _start; .global main, other
        .type _start, @function
    _start:
        .cfi_startproc
        nop
        .cfi_endproc
        .size _start, .-_start
        .ident "a compiler"
    """
    assert assemble(source) == Assembly(NOP, {"_start": 0})


@pytest.mark.parametrize(
    ("source", "column", "message"),
    [
        (".byte 256", 7, "256 does not fit into 1 bytes: from -128 to 255 do"),
        (".byte 1, -129", 10, "-129 does not fit into 1 bytes: from -128 to 255 do"),
        (".half 65536", 7, "65536 does not fit into 2 bytes: from -32768 to 65535 do"),
        (".word 0x100000000", 7, "4294967296 does not fit into 4 bytes: from -2147483648 to 4294967295 do"),
        (".zero -1", 7, ".zero takes 0 to 16777216 here, not -1"),
        (".zero later\nlater = 1", 7, "the value of later must be known here: define it above"),
        (".zero .", 7, ".zero takes a number here, and this is an address"),
        (".balign 12", 1, ".balign takes a power of two, not 12"),
        (".align 25", 8, ".align takes 0 to 24 here, not 25"),
        (".align 2, 256", 11, ".align takes -128 to 255 here, not 256"),
        (".align", 1, ".align takes 1 to 3 operands, and here are 0"),
        ("nop; .org 2", 6, ".org would go 2 bytes back: it goes forward only"),
        (".org 1<<40", 6, ".org takes 0 to 16777216 here, not 1099511627776"),
        (".equ 5, 5", 1, ".equ takes a name here"),
        (".equ x", 1, ".equ takes 2 operands, and here are 1"),
        (".ascii 5", 1, '.ascii takes strings in quotes, "like this"'),
        (".ascii x", 1, '.ascii takes strings in quotes, "like this"'),
        ("nop; .data", 6, ".data would begin the section .data: there is one alone, so put data behind the code"),
        (
            ".section .rodata",
            1,
            ".section would begin the section .rodata: there is one alone, so put data behind the code",
        ),
        ('.include "x"', 1, ".include is no directive of this assembler"),
        (".option rvc", 1, ".option rvc is not known: relax, norelax, norvc, nopic, push and pop are"),
        (".option pop", 1, ".option pop has no push above it"),
        ('.ascii "abc', 8, "this string has no end: close it with a quote"),
        ("/* abc", 1, "this comment has no end: close it with */"),
        ("nop `", 5, "the character '`' has no meaning here"),
    ],
)
def test_a_directive_that_is_wrong_is_refused_where_it_stands(source: str, column: int, message: str) -> None:
    caught = error(source)
    assert (caught.line, caught.column, caught.message) == (1, column, message)
