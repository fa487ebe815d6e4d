"""From a word to its row of the instruction table; a word that no row matches is an illegal instruction."""

from __future__ import annotations

from functools import cache, lru_cache

from vmmd.isa.instructions import INSTRUCTIONS, Instruction

KEY_MASK = 0x7F | 0x7000 | 1 << 25 | 1 << 30
"""The bits that tell most instructions apart: opcode, funct3, and the two bits of funct7 that RV64IM uses."""

KEYS = 1 << 12
"""How many values `key_of` has."""


def key_of(word: int) -> int:
    """Gather the bits of `KEY_MASK` into a small number."""
    return word & 0x7F | word >> 5 & 0x380 | word >> 15 & 0x400 | word >> 19 & 0x800


def bits_of(key: int) -> int:
    """Return the word that has only the bits that `key` was gathered from."""
    return key & 0x7F | (key & 0x380) << 5 | (key & 0x400) << 15 | (key & 0x800) << 19


@cache
def candidates(key: int) -> tuple[Instruction, ...]:
    """Return the rows that a word of that key can be; found when first asked, for most keys are no instruction's."""
    bits = bits_of(key)
    return tuple(row for row in INSTRUCTIONS if not (row.match ^ bits) & row.mask & KEY_MASK)


@lru_cache(maxsize=4096)
def decode(word: int) -> Instruction | None:
    """Return the row that `word` is, or None."""
    for row in candidates(key_of(word)):
        if word & row.mask == row.match:
            return row
    return None
