"""Which instructions are translated together: blocks, heads, needs and where a region ends."""

from __future__ import annotations

import random

import pytest

from tests.differential.any_words import any_word
from vmmd.isa.assembler import assemble
from vmmd.isa.hot.regions import MOST_INSTRUCTIONS, Region, find_region, translatable

AT = 0x1000


def region(source: str, entry: int = AT, **options: int) -> Region:
    found = find_region(entry, AT, assemble(source, AT).code, **options)
    assert found is not None
    return found


def test_a_loop_is_one_block_that_goes_back_to_itself() -> None:
    loop = region("1: addi a0, a0, 1\n bne a0, a1, 1b\n wfi")
    assert list(loop.blocks) == [AT]
    assert loop.blocks[AT].successors == (AT,)
    assert loop.heads == {AT: 2}
    assert loop.stops == {AT + 8}
    assert loop.extents == ((AT, assemble("1: addi a0, a0, 1\n bne a0, a1, 1b", AT).code),)


def test_a_head_needs_the_longest_way_to_the_next_look() -> None:
    found = region("1: beqz a0, 2f\n addi a1, a1, 1\n addi a1, a1, 1\n2: addi a2, a2, 1\n j 1b")
    assert found.heads == {AT: 5}


def test_a_call_is_followed_and_where_it_returns_to_is_a_head() -> None:
    found = region("1: jal ra, 2f\n j 1b\n2: addi a0, a0, 1\n ret")
    assert found.returns == (AT + 4,)
    assert set(found.heads) == {AT, AT + 4}
    assert found.blocks[AT + 8].successors == (AT + 4,)


def test_every_cycle_has_a_head_whatever_the_words_are() -> None:
    draw = random.Random(7)
    for _ in range(300):
        code = b"".join(any_word(draw).to_bytes(4, "little") for _ in range(64))
        found = find_region(AT, AT, code)
        if found is None:
            continue
        assert found.size <= MOST_INSTRUCTIONS
        # Without the edges into heads nothing can be gone round in.
        left = {
            start: {to for to in block.successors if to not in found.heads} for start, block in found.blocks.items()
        }
        while leaves := [start for start, ways in left.items() if not ways & left.keys()]:
            for start in leaves:
                del left[start]
        assert not left
        for head, need in found.heads.items():
            assert len(found.blocks[head].rows) <= need <= found.size


@pytest.mark.parametrize("source", ["ecall", "csrr a0, time", "inb a0, 0(a1)", "fence.i", "mret", ".word 0"])
def test_what_only_the_evaluation_does_begins_no_region(source: str) -> None:
    assert find_region(AT, AT, assemble(source, AT).code) is None
    assert translatable(int.from_bytes(assemble(source, AT).code[:4], "little")) is None


@pytest.mark.parametrize("entry", [AT - 4, AT + 2, AT + 8, 1 << 63])
def test_an_entry_that_is_not_in_the_code_has_no_region(entry: int) -> None:
    assert find_region(entry, AT, assemble("nop\n nop", AT).code) is None


def test_a_region_is_bounded() -> None:
    straight = "\n".join(["addi a0, a0, 1"] * 500)
    assert region(straight).size == MOST_INSTRUCTIONS
    assert region(straight, most_instructions=10).size == 10
    assert region(straight, most_instructions=10_000).size == MOST_INSTRUCTIONS
