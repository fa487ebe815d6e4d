"""What the daemon and the translating process say to each other: one request, one answer, as bytes.

Numbers are 64 bits, little-endian. What does not have the form that it must have is refused with a ValueError: nothing
of an answer is used before all of it is known to be within bounds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MOST_BYTES = 1 << 20
"""A message's size at most."""

_TRANSLATED, _UNTRANSLATED = 1, 2


def _pack(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


class _Reader:
    """Takes a message apart from the front."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._at = 0

    def number(self) -> int:
        return self.numbers(1)[0]

    def numbers(self, count: int) -> tuple[int, ...]:
        end = self._at + 8 * count
        if end > len(self._message):
            raise ValueError(f"a message of {len(self._message)} bytes has no {count} numbers at {self._at}")
        numbers = struct.unpack_from(f"<{count}Q", self._message, self._at)
        self._at = end
        return numbers

    def counted(self) -> tuple[int, ...]:
        return self.numbers(self.number())

    def rest(self) -> bytes:
        return self._message[self._at :]


@dataclass(frozen=True, slots=True)
class Request:
    """Translate what begins at `entry`.

    Attributes:
        entry: a guest-physical address.
        code_at: where `code` lies in guest-physical memory.
        code: the bytes around the entry.
        most_instructions: the region's size at most.
    """

    entry: int
    code_at: int
    code: bytes
    most_instructions: int

    def pack(self) -> bytes:
        """Return it as bytes."""
        return _pack(self.entry, self.code_at, self.most_instructions) + self.code

    @classmethod
    def unpack(cls, message: bytes) -> Request:
        """Take it apart."""
        reader = _Reader(message)
        entry, code_at, most_instructions = reader.numbers(3)
        return cls(entry, code_at, reader.rest(), most_instructions)


@dataclass(frozen=True, slots=True)
class Untranslated:
    """There is no machine code, and why not."""

    why: str

    def pack(self) -> bytes:
        """Return it as bytes."""
        return _pack(_UNTRANSLATED) + self.why.encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """A region's machine code.

    Attributes:
        entries: the addresses that it may be entered at.
        blocks: those where its blocks begin.
        extents: what guest code it was made of, as (guest-physical address, bytes).
        code: machine code, whose function is at its beginning.
    """

    entries: tuple[int, ...]
    blocks: tuple[int, ...]
    extents: tuple[tuple[int, int], ...]
    code: bytes

    def pack(self) -> bytes:
        """Return it as bytes."""
        runs = [number for extent in self.extents for number in extent]
        counted = (len(self.entries), *self.entries, len(self.blocks), *self.blocks, len(runs), *runs)
        return _pack(_TRANSLATED, *counted) + self.code

    def check(self, request: Request) -> None:
        """Refuse an answer that is not of its request.

        Raises:
            ValueError: it says so.
        """
        if request.entry not in self.entries or not self.code:
            raise ValueError(f"an answer has no code for {request.entry:#x}")
        end = request.code_at + len(request.code)
        blocks = set(self.blocks)
        if not all(request.code_at <= pc < end and pc % 4 == 0 for pc in blocks):
            raise ValueError("an answer has blocks where it was not asked for any")
        if len(set(self.entries)) != len(self.entries) or not blocks.issuperset(self.entries):
            raise ValueError("an answer has entries that are no blocks, or one of them twice")
        for gpa, size in self.extents:
            if not (request.code_at <= gpa < gpa + size <= end) or size % 4 or gpa % 4:
                raise ValueError(f"an answer was made of {size} bytes at {gpa:#x}, which were not asked for")


def unpack_answer(message: bytes) -> Answer | Untranslated:
    """Take an answer apart.

    Raises:
        ValueError: it is none.
    """
    reader = _Reader(message)
    kind = reader.number()
    if kind == _UNTRANSLATED:
        return Untranslated(reader.rest().decode())
    if kind != _TRANSLATED:
        raise ValueError(f"an answer of kind {kind}")
    entries, blocks, runs = (reader.counted() for _ in range(3))
    if len(runs) % 2:
        raise ValueError("an extent without a size")
    extents = tuple(zip(runs[::2], runs[1::2], strict=True))
    return Answer(entries, blocks, extents, reader.rest())
