"""The table, and what is read from it."""

from __future__ import annotations

import itertools

import pytest

from vmmd.isa.decode import decode
from vmmd.isa.encoding import IMMEDIATES, Immediate
from vmmd.isa.instructions import INSTRUCTIONS, SHAPES, Instruction


@pytest.mark.parametrize("row", INSTRUCTIONS, ids=lambda row: row.name)
def test_a_rows_own_word_decodes_to_it(row: Instruction) -> None:
    assert decode(row.match) is row
    assert decode(row.match | ~row.mask & 0xFFFF_FFFF) is row


def test_no_word_is_two_instructions() -> None:
    for one, other in itertools.combinations(INSTRUCTIONS, 2):
        common = one.mask & other.mask
        assert one.match & common != other.match & common, (one.name, other.name)


@pytest.mark.parametrize("word", [0x0000_0000, 0xFFFF_FFFF, 0x0000_0013 & ~3, 0x0200_0013 | 1 << 12 | 1 << 31])
def test_words_outside_the_table_are_no_instruction(word: int) -> None:
    assert decode(word) is None


@pytest.mark.parametrize("immediate", set(IMMEDIATES.values()), ids=str)
def test_an_immediate_that_fits_is_read_back_as_it_was_placed(immediate: Immediate) -> None:
    middle = (immediate.lowest + immediate.highest) // 2
    for value in (immediate.lowest, -immediate.step, 0, immediate.step, middle, immediate.highest):
        rounded = value - value % immediate.step
        if immediate.fits(rounded):
            assert immediate.of(immediate.place(rounded)) == rounded


def test_every_format_says_what_its_meaning_is_given() -> None:
    assert {row.format for row in INSTRUCTIONS} <= set(SHAPES)
