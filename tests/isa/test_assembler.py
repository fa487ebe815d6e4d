"""The assembler's syntax, its directives, its symbols, its limits and its errors."""

import copy

import pytest

from vmmd.isa.assembler import MAX_CODE_BYTES, Assembly, AssemblyError, assemble

NOP = bytes.fromhex("13000000")


def code(source: str, origin: int = 0) -> bytes:
    return assemble(source, origin).code


def numbers(expressions: str) -> list[int]:
    data = code(f".dword {expressions}")
    return [int.from_bytes(data[at : at + 8], "little", signed=True) for at in range(0, len(data), 8)]


def error(source: str, origin: int = 0) -> AssemblyError:
    with pytest.raises(AssemblyError) as caught:
        assemble(source, origin)
    return caught.value


# Text


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


# Expressions


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


# Labels and names


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


# Directives


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


# Instructions


@pytest.mark.parametrize(
    ("source", "column", "message"),
    [
        ("frob a0", 1, "frob is no instruction of this machine"),
        ("addi a0, a0, 2048", 14, "2048 does not fit: from -2048 to 2047 do"),
        ("addi a0, a0, -2049", 14, "-2049 does not fit: from -2048 to 2047 do"),
        ("addi a0, a0, later\nlater = 5000", 14, "5000 does not fit: from -2048 to 2047 do"),
        ("sd a0, 4096(sp)", 8, "4096 does not fit: from -2048 to 2047 do"),
        ("slli a0, a0, 64", 14, "64 does not fit: from 0 to 63 do"),
        ("slliw a0, a0, 32", 15, "32 does not fit: from 0 to 31 do"),
        ("lui a0, 0x100000", 9, "1048576 does not fit into 20 bits: from 0 to 1048575 do"),
        ("auipc a0, -1", 11, "-1 does not fit into 20 bits: from 0 to 1048575 do"),
        ("j .+3", 3, "the distance 3 to 0x3 does not fit: multiples of 2 from -1048576 to 1048574 do"),
        ("beqz a0, .+1", 10, "the distance 1 to 0x1 does not fit: multiples of 2 from -4096 to 4094 do"),
        ("addi a0, 5, 5", 10, "addi takes a register here, and 5 is none"),
        ("mv a0, 5", 8, "mv takes a register here, and 5 is none"),
        ("li 5, a0", 4, "li takes a register here, and 5 is none"),
        ("li a0, a1", 8, "the value of a1 must be known here: define it above"),
        ("l: li a0, l", 11, "li takes a constant, and this is an address: la takes it"),
        ("l: addi a0, a0, l", 17, "the address 0x0 is no constant: %lo(...) or la take addresses"),
        ("l: lui a0, l", 12, "the address 0x0 is no constant: %hi(...) or la take addresses"),
        ("addi a0, a0, 5(a0)", 14, "addi takes a value here, and 5(a0) is none"),
        ("addi a0, a0, a1", 14, "a1 is a register, and a value is wanted here"),
        ("add a0, a1", 1, "these operands do not suit add: it is written add rd, rs1, rs2 or add rd, rs, imm"),
        ("ecall a0", 1, "these operands do not suit ecall: it is written ecall"),
        ("sub a0, a0, 5", 13, "sub takes a register here, and 5 is none"),
        ("add a0, , a1", 1, "an operand of add is missing between commas"),
        ("add a0, a1, a2,", 1, "an operand of add is missing between commas"),
        ("fence wr, rw", 7, "fence orders some of i, o, r and w, written in this order"),
        ("fence 3, rw", 7, "fence orders some of i, o, r and w, written in this order"),
        ("lui a0, %lo(5)", 9, "%lo does not fit into lui: %hi, %pcrel_hi do"),
        ("slli a0, a0, %lo(5)", 14, "%lo does not fit into slli: none does"),
        ("addi a0, a0, %lo 5", 14, "%lo takes a value in parentheses, and nothing behind them"),
        ("lui a0, %hi(1 << 40)", 13, "0x10000000000 is out of lui's reach: from -2147485696 to 2147481599 are in it"),
        ("addi a0, a0, %pcrel_lo(.)", 24, "no instruction with %pcrel_hi is at 0x0"),
    ],
)
def test_an_instruction_that_is_wrong_is_refused_where_it_stands(source: str, column: int, message: str) -> None:
    caught = error(source)
    assert (caught.line, caught.column, caught.message) == (1, column, message)


def test_an_immediate_may_be_a_name_or_a_distance_that_comes_later() -> None:
    assert code("addi a0, a0, size\na: nop\nb: .equ size, b-a") == code("addi a0, a0, 4\nnop")


def test_auipc_reaches_two_gibibytes_and_low_addresses_from_anywhere() -> None:
    assert code("la a0, near\n.equ near, 0x80000100", 0x8000_0000) == code("auipc a0, 0\naddi a0, a0, 0x100")
    assert code("la a0, low\n.equ low, 0x100", 0x1_8000_0000) == code("lui a0, 0\naddi a0, a0, 0x100")
    assert "is -140737488355328 bytes away" in error("la a0, f\n.equ f, 1<<47", 1 << 48).message


def test_a_long_branch_jumps_over_a_jal_and_a_short_one_stays_at_the_very_limit() -> None:
    assert len(code("beqz a0, far\n.zero 4088\nfar:")) == 4092
    assert len(code("beqz a0, far\n.zero 4092\nfar:")) == 4100
    assert len(code("far: .zero 4096\nbeqz a0, far")) == 4100
    assert len(code("far: .zero 4100\nbeqz a0, far")) == 4108
    assert code("blt a0, a1, far\n.zero 8000\nfar:")[:8] == code("bge a0, a1, .+8\nj .+8004")


def test_ports_are_read_and_written() -> None:
    assert code("inb a0, 0x3f(a1)\noutw a0, -1(zero)\ninh a0, (a1)").hex() == "0b85f5030b65f0ff0b950500"


# Limits and the door


def test_an_error_shows_its_line_and_column_and_can_be_copied() -> None:
    caught = error("nop\n  frob")
    assert str(caught) == "line 2, column 3: frob is no instruction of this machine"
    assert str(copy.copy(caught)) == str(caught)


@pytest.mark.parametrize("origin", [-1, 1 << 64])
def test_an_origin_that_is_no_address_is_refused(origin: int) -> None:
    with pytest.raises(ValueError, match="is not between 0 and 0xffffffffffffffff"):
        assemble("nop", origin)


def test_code_may_end_at_the_last_address_and_not_behind_it() -> None:
    assert assemble("x: nop", (1 << 64) - 4).symbols == {"x": (1 << 64) - 4}
    assert "do not fit between" in error("nop; nop", (1 << 64) - 4).message


@pytest.mark.parametrize(
    "bomb",
    [
        f".zero {MAX_CODE_BYTES}\nnop",
        f".org {MAX_CODE_BYTES}\nnop",
        ".zero 16777216\n" * 1000,
        ".fill 4194304, 8, 1",
        ".byte 1\n.align 24\n" * 1000,
        f".org {MAX_CODE_BYTES}, 1\n.align 24\n.byte 1\n.align 24",
    ],
)
def test_output_behind_the_limit_is_refused_before_it_is_built(bomb: str) -> None:
    assert f"{MAX_CODE_BYTES} are allowed" in error(bomb).message


def test_output_up_to_the_limit_is_built() -> None:
    assert len(code(f".zero {MAX_CODE_BYTES}")) == MAX_CODE_BYTES
    assert len(code(f".org {MAX_CODE_BYTES}")) == MAX_CODE_BYTES


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (f".dword {'(' * 20_000}1{')' * 20_000}", 1),
        (f".dword {'-' * 20_000}1", 1),
        (f".dword {'+'.join(['1'] * 20_000)}", 20_000),
        ("".join(f".equ x{i}, x{i + 1}+1\n" for i in range(20_000)) + ".equ x20000, 0\n.dword x0", 20_000),
    ],
)
def test_depth_is_no_danger(source: str, value: int) -> None:
    assert int.from_bytes(code(source), "little") == value


@pytest.mark.parametrize(
    "source",
    [
        ".dword " + "(" * 20_000,
        ".dword " + "9" * 100_000,
        ".dword 0x" + "f" * 100_000,
        ".dword " + "a" * 100_000,
        "a" * 100_000,
        '"' * 20_001,
        "/*" * 20_000,
        "".join(f".equ x{i}, x{i + 1}+1\n" for i in range(5_000)) + ".equ x5000, x0",
        "\x00",
        '.ascii "\ud800"',
        "é" * 1000,
    ],
)
def test_a_text_made_to_hurt_gives_an_error_that_is_short(source: str) -> None:
    assert len(str(error(source))) < 300


def test_branches_that_push_each_other_out_of_reach_one_after_the_other_all_become_long() -> None:
    count = 6_000
    source = "".join(f"l{i}: beqz a0, l{i + 1023}\n" for i in range(count))
    source += "".join(f"l{i}:\n" for i in range(count, count + 1023))
    assert 4 * count < len(code(source)) <= 8 * count
