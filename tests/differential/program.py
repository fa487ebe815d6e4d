"""A random program: groups of words that are only entered at their first, and the machine that it starts on.

Words are made from the instruction table alone. Branches and jumps name the group that they lead to, so that groups can
be left out and the rest laid out anew; what an address in a word comes to is settled by `Program.words`.

The machine is the same for all programs: two slots of code that touch in the guest and not in the host, and two slots
of data around 2^31, so that accesses cross pages, slots and the border where `lui` begins to sign-extend.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmmd.isa.encoding import IMMEDIATES, RD_AT, RS1_AT, RS2_AT
from vmmd.isa.instructions import BY_NAME
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import Region

CODE_AT = 0x1000
CODE_BYTES = 2 * PAGE_SIZE
DATA_AT = (1 << 31) - 4 * PAGE_SIZE
DATA_BYTES = 8 * PAGE_SIZE

REGIONS = (
    Region(0, 0, CODE_AT, PAGE_SIZE, 0),
    Region(1, 0, CODE_AT + PAGE_SIZE, PAGE_SIZE, 3 * PAGE_SIZE),
    Region(2, 0, DATA_AT, DATA_BYTES // 2, 8 * PAGE_SIZE),
    Region(3, 0, DATA_AT + DATA_BYTES // 2, DATA_BYTES // 2, 4 * PAGE_SIZE),
)


def word_of(name: str, rd: int = 0, rs1: int = 0, rs2: int = 0, immediate: int = 0) -> int:
    """Return an instruction's word; fields that the row fixes are left as they are."""
    row = BY_NAME[name]
    free = ~row.mask & 0xFFFF_FFFF
    word = row.match | (rd << RD_AT | rs1 << RS1_AT | rs2 << RS2_AT) & free
    if row.format in IMMEDIATES:
        field = IMMEDIATES[row.format]
        assert field.fits(immediate), f"{name} does not take {immediate}"
        place = field.place(-1 if field.signed else field.highest)
        word = word & ~place | field.place(immediate)
    return word


def halves(value: int) -> tuple[int, int]:
    """Cut a number of 32 bits into the immediates of `lui` or `auipc` and of an instruction that adds the rest."""
    low = (value & 0xFFF ^ 0x800) - 0x800
    high = value - low & 0xFFFF_FFFF
    return (high ^ 0x8000_0000) - 0x8000_0000, low


@dataclass(frozen=True, slots=True)
class To:
    """A branch or `jal` to a group: to its first word."""

    name: str
    target: int
    rd: int = 0
    rs1: int = 0
    rs2: int = 0


@dataclass(frozen=True, slots=True)
class FarTo:
    """`auipc` and `jalr` to a group. `odd` is added to the immediate, whose lowest bit `jalr` clears."""

    target: int
    rd: int
    by: int
    odd: int


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A store of a register that holds a word of code over one that lies `ahead` words ahead.

    Attributes:
        rs2: the register.
        code: the register that holds where the program starts.
        ahead: how many words.
    """

    rs2: int
    code: int
    ahead: int


Item = int | To | FarTo | Rewrite


def _width(item: Item) -> int:
    return 2 if isinstance(item, FarTo) else 1


@dataclass(frozen=True, slots=True)
class Program:
    """What runs, and on what.

    Attributes:
        seed: what it was made from.
        start: the address of the first word.
        groups: by their numbers, in the order in which they lie in memory.
        registers: x0 to x31 at the start.
        data: what lies at `DATA_AT`.
        portions: how many instructions are run between two comparisons.
    """

    seed: str
    start: int
    groups: tuple[tuple[int, tuple[Item, ...]], ...]
    registers: tuple[int, ...]
    data: bytes
    portions: tuple[int, ...]

    @property
    def words(self) -> list[int]:
        """The words as they lie in memory. A group that was left out stands for the one behind it."""
        places: dict[int, int] = {}
        at = 0
        for number, items in self.groups:
            places[number] = at
            at += 4 * sum(map(_width, items))
        words: list[int] = []
        for _, items in self.groups:
            for item in items:
                words += self._laid(item, 4 * len(words), places)
        return words

    def _laid(self, item: Item, at: int, places: dict[int, int]) -> list[int]:
        if isinstance(item, int):
            return [item]
        if isinstance(item, Rewrite):
            return [word_of("sw", rs1=item.code, rs2=item.rs2, immediate=at + 4 * item.ahead)]
        target = _place(places, item.target)
        if isinstance(item, To):
            return [word_of(item.name, item.rd, item.rs1, item.rs2, target - at)]
        high, low = halves(target - at)
        return [
            word_of("auipc", item.by, immediate=high),
            word_of("jalr", item.rd, item.by, immediate=low + item.odd),
        ]


def _place(places: dict[int, int], target: int) -> int:
    """Return where a group lies; one that was left out stands for the next, and behind the last comes the first."""
    return places[min((number for number in places if number >= target), default=min(places))]
