"""Compares a subject with another on one program, and finds the first instruction after which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tests.differential.program import Program
from tests.differential.subjects import MakeSubject, State


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two subjects part.

    Attributes:
        program: what shows it. The last of its instructions is the first after which they differ.
        before: what both are before that instruction.
        expected: what the reference is after it.
        found: what the other is after it.
    """

    program: Program
    before: State
    expected: State
    found: State


@dataclass(frozen=True, slots=True)
class Seen:
    """That a subject differs: its name, the number of the portion after which it does, and whether it could not run."""

    name: str
    portion: int
    left: bool


def compare(program: Program, reference: MakeSubject, others: Mapping[str, MakeSubject]) -> Seen | None:
    """Run a program on all, and compare after each portion.

    Returns:
        The first that differs from the reference. None where all agree, and where the reference cannot run the program.
    """
    expecting = reference(program)
    subjects = {name: make(program) for name, make in others.items()}
    for number, instructions in enumerate(program.portions):
        expecting.run(instructions)
        expected = expecting.state()
        for name, subject in subjects.items():
            subject.run(instructions)
            found = subject.state()
            if found != expected:
                return None if expected.left else Seen(name, number, found.left is not None)
    return None


def find_difference(program: Program, reference: MakeSubject, other: MakeSubject) -> Difference | None:
    """Run a program on both, and return where they differ first, or None."""
    seen = compare(program, reference, {"other": other})
    if seen is None:
        return None
    same, different = sum(program.portions[: seen.portion]), sum(program.portions[: seen.portion + 1])
    while different - same > 1:
        middle = (same + different) // 2
        cut = cut_after(program, middle)
        if _end(cut, reference) == _end(cut, other):
            same = middle
        else:
            different = middle
    shown = cut_after(program, different)
    before = _end(cut_after(program, same), reference)
    return Difference(shown, before, _end(shown, reference), _end(shown, other))


def cut_after(program: Program, instructions: int) -> Program:
    """Return a program that ends after so many instructions, which it runs in the same portions."""
    return replace(program, portions=tuple(_cut(program.portions, instructions)))


def _cut(portions: tuple[int, ...], left: int) -> Iterator[int]:
    for portion in portions:
        if left:
            yield min(portion, left)
            left -= min(portion, left)


def _end(program: Program, make: MakeSubject) -> State:
    subject = make(program)
    for instructions in program.portions:
        subject.run(instructions)
    return subject.state()
