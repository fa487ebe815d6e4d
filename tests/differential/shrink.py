"""Makes a program that shows a difference as short and as plain as it can.

Delta debugging: groups are left out, first all of them, then halves, down to single ones; then words of groups; then
data and registers become 0. What still shows a difference is kept. A program that the reference cannot run is none
that shows one. A group whose words are left out may do what programs do not (`generate` says what); vmmd leaves the
guest then, and such a program is not kept in the place of one in which it did not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.differential.compare import Difference, compare, find_difference
from tests.differential.program import Program
from tests.differential.subjects import MakeSubject

_MOST_STEPS = 100
"""So many instructions are compared one by one."""


def shrink(difference: Difference, reference: MakeSubject, other: MakeSubject) -> Difference:
    """Return the shortest difference between the two that was found."""
    return _Shrinker(reference, other, left=difference.found.left is not None).shrink(difference)


class _Shrinker:
    def __init__(self, reference: MakeSubject, other: MakeSubject, *, left: bool) -> None:
        self._reference = reference
        self._other = other
        self._left = left

    def shrink(self, difference: Difference) -> Difference:
        best = difference
        while True:
            program = self._first_of(best.program, [replace(best.program, portions=_portions(best.program))])
            program = self._plainer(self._without_words(self._without_groups(program)))
            found = find_difference(program, self._reference, self._other)
            assert found is not None, "what was kept shows a difference"
            if found.program == best.program:
                return found
            best = found

    def _first_of(self, program: Program, candidates: Iterator[Program] | list[Program]) -> Program:
        """Return the first candidate that still shows a difference of the kind, else the program that does."""
        for candidate in candidates:
            seen = compare(candidate, self._reference, {"other": self._other})
            if seen is not None and seen.left == self._left:
                return candidate
        return program

    def _without_groups(self, program: Program) -> Program:
        step = len(program.groups) - 1
        while step:
            start = 0
            while start < len(program.groups):
                rest = program.groups[:start] + program.groups[start + step :]
                kept = self._first_of(program, [replace(program, groups=rest)] if rest else [])
                if kept is program:
                    start += step
                program = kept
            step //= 2
        return program

    def _without_words(self, program: Program) -> Program:
        while True:
            shorter = self._first_of(program, _with_a_word_less(program))
            if shorter is program:
                return program
            program = shorter

    def _plainer(self, program: Program) -> Program:
        program = self._first_of(program, [replace(program, data=bytes(len(program.data)))])
        for number in range(1, 32):
            registers = [*program.registers]
            registers[number] = 0
            if program.registers[number]:
                program = self._first_of(program, [replace(program, registers=tuple(registers))])
        return program


def _portions(program: Program) -> tuple[int, ...]:
    """Return the plainest portions: single instructions, so that what is left of a program need not run to the end."""
    instructions = sum(program.portions)
    return (1,) * instructions if instructions <= _MOST_STEPS else (instructions,)


def _with_a_word_less(program: Program) -> Iterator[Program]:
    """Give the program without each item of a group that has several."""
    for index, (number, items) in enumerate(program.groups):
        for left_out in range(len(items) if len(items) > 1 else 0):
            group = number, items[:left_out] + items[left_out + 1 :]
            yield replace(program, groups=(*program.groups[:index], group, *program.groups[index + 1 :]))
