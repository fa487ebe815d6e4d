"""The assembler's door and its limits: large outputs, deep texts and texts made to hurt."""

import copy

import pytest

from tests.isa.assembling import code, error
from vmmd.isa.assembler import MAX_CODE_BYTES, assemble


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
