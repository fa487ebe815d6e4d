"""The disassembler: what it makes of every word is assembled to the same word again, and what its text looks like."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.isa.words import some_word
from vmmd.isa.assembler import assemble
from vmmd.isa.assembler.pseudo import PSEUDO
from vmmd.isa.decode import KEY_MASK, KEYS, bits_of
from vmmd.isa.disassemble import Line, disassemble
from vmmd.isa.instructions import BY_NAME, INSTRUCTIONS

LAST = (1 << 64) - 1
ORIGINS = [0, 4, 0x1000, 0x8000_0000, 1 << 63, 0xFFFF_FFFF_FFF0_0000]


def text(word: int, origin: int = 0) -> str:
    (line,) = disassemble(word.to_bytes(4, "little"), origin)
    assert (line.address, line.word) == (origin, word)
    return line.text


def assert_comes_back(code: bytes, origin: int) -> None:
    lines = disassemble(code, origin)
    assert assemble("\n".join(line.text for line in lines), origin).code == code


def code_of(words: list[int]) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)


@pytest.mark.parametrize("origin", ORIGINS)
def test_words_of_every_key_come_back(origin: int) -> None:
    chance = random.Random(origin)
    rests = [0, 0xFFFF_FFFF, *(chance.getrandbits(32) for _ in range(6))]
    assert_comes_back(code_of([bits_of(key) | rest & ~KEY_MASK for key in range(KEYS) for rest in rests]), origin)


@pytest.mark.parametrize("origin", [*ORIGINS, LAST + 1 - 4 * 100 * len(INSTRUCTIONS)])
def test_every_instruction_comes_back_with_any_operands(origin: int) -> None:
    chance = random.Random(origin)
    words = [some_word(row, chance) for row in INSTRUCTIONS for _ in range(100)]
    assert_comes_back(code_of(words), origin)


@settings(deadline=None, max_examples=500)
@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, LAST - 3))
def test_any_word_comes_back_at_any_address(word: int, origin: int) -> None:
    assert_comes_back(code_of([word]), origin)
    assert text(word, origin).startswith(".word ") or text(word, origin).split()[0] in {*BY_NAME, *PSEUDO, "li"}


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.integers(0, LAST - 200))
def test_any_bytes_come_back_and_the_words_are_those_of_the_bytes(code: bytes, origin: int) -> None:
    assert_comes_back(code, origin)
    lines = disassemble(code, origin)
    assert [line.address for line in lines] == list(range(origin, origin + len(code), 4))
    assert b"".join(line.word.to_bytes(4, "little") for line in lines)[: len(code)] == code


@pytest.mark.parametrize("row", INSTRUCTIONS, ids=lambda row: row.name)
def test_an_instruction_with_ordinary_operands_is_written_with_a_mnemonic(row) -> None:
    usual = row.match | 0x0155_0500 & ~row.mask
    if row.name == "fence":
        usual = row.match | 0x0310_0000
    if row.name == "fence.i":
        usual = row.match
    assert not text(usual).startswith(".word")


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("addi a0, a1, -5", "addi a0,a1,-5"),
        ("addi zero, zero, 0", "nop"),
        ("addi zero, zero, 1", "li zero,1"),
        ("addi zero, a0, 0", "mv zero,a0"),
        ("slli a0, a1, 63", "slli a0,a1,0x3f"),
        ("lui a0, 0xfffff", "lui a0,0xfffff"),
        ("ld s0, -8(sp)", "ld s0,-8(sp)"),
        ("sd s0, 0(sp)", "sd s0,0(sp)"),
        ("beq a0, zero, . + 8", "beqz a0,.+8 # 0x1008"),
        ("bltu a0, a1, . - 4", "bltu a0,a1,.-4 # 0xffc"),
        ("jal zero, . + 16", "j 0x1010"),
        ("jal ra, . - 16", "jal 0xff0"),
        ("jal t0, .", "jal t0,0x1000"),
        ("jalr zero, 0(ra)", "ret"),
        ("jalr zero, 4(ra)", "jr 4(ra)"),
        ("jalr ra, 0(a0)", "jalr a0"),
        ("jalr t0, 0(a0)", "jalr t0,a0"),
        ("jalr t0, 8(a0)", "jalr t0,8(a0)"),
        ("amoadd.w.aqrl a0, a1, (a2)", "amoadd.w.aqrl a0,a1,(a2)"),
        ("lr.d a0, (a1)", "lr.d a0,(a1)"),
        ("csrrs a0, mhartid, zero", "csrr a0,mhartid"),
        ("csrrs a0, time, zero", "rdtime a0"),
        ("csrrw zero, mtvec, a0", "csrw mtvec,a0"),
        ("csrrwi zero, mie, 8", "csrwi mie,8"),
        ("csrrci a0, 0x301, 31", "csrrci a0,0x301,31"),
        ("fence iorw, iorw", "fence"),
        ("fence rw, w", "fence rw,w"),
        ("fence.tso", "fence.tso"),
        ("unimp", "unimp"),
        ("outb a0, 1(a1)", "outb a0,1(a1)"),
        ("mret", "mret"),
        ("wfi", "wfi"),
    ],
)
def test_text_is_written_in_the_manner_of_objdump(source: str, written: str) -> None:
    word = int.from_bytes(assemble(source, 0x1000).code, "little")
    assert text(word, 0x1000) == written


@pytest.mark.parametrize(
    "word",
    [
        0,
        0xFFFF_FFFF,
        0x0000_0001,
        0x0000_000F,  # fence of nothing
        0x1330_000F,  # fence with a mode that has no name
        0x0330_008F,  # fence with a destination
        0x0010_100F,  # fence.i with an immediate
        0x0020_0073,  # uret, which T64 lacks
        0x1015_252F | 1 << 20,  # lr.w with a second source
    ],
)
def test_a_word_that_no_mnemonic_expresses_is_a_word(word: int) -> None:
    assert text(word) == f".word {word:#010x}"


def test_jumps_over_the_ends_of_the_address_space_name_the_address_that_is_reached() -> None:
    back = int.from_bytes(assemble("j . - 8").code, "little")
    assert text(back, 0) == f"j {LAST - 7:#x}"
    on = int.from_bytes(assemble("beqz a0, . + 8").code, "little")
    assert text(on, LAST - 3) == "beqz a0,.+8 # 0x4"


def test_what_is_left_over_at_the_end_is_bytes() -> None:
    assert disassemble(bytes.fromhex("13000000010203"), 0x1000) == [
        Line(0x1000, 0x13, "nop"),
        Line(0x1004, 0x030201, ".byte 0x01,0x02,0x03"),
    ]
    assert disassemble(b"") == []


def test_code_that_is_not_in_the_address_space_is_refused() -> None:
    assert disassemble(bytes(4), LAST - 3)[0].address == LAST - 3
    with pytest.raises(ValueError, match=r"5 bytes of code do not fit between 0xfffffffffffffffc and the last address"):
        disassemble(bytes(5), LAST - 3)
    for origin in (-1, LAST + 1):
        with pytest.raises(ValueError, match=r"is not between 0 and 0xffffffffffffffff"):
            disassemble(b"", origin)
