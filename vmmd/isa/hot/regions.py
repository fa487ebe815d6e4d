"""Which instructions are translated together: from an entry and the code around it to a region of basic blocks.

A region follows branches, jumps and calls from its first entry, nearest first, up to `MOST_INSTRUCTIONS`. It ends at
whatever only the interpreter or the evaluation does, and where the code that was given ends. This is graph work on
words; it reads no memory and knows nothing of LLVM.

A region is entered at its **heads**, and every cycle in it has one. There its code looks at requests and at what is
left of the budget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from vmmd.isa.decode import decode
from vmmd.isa.encoding import IMMEDIATES, Format, rd, rs1
from vmmd.isa.instructions import Instruction
from vmmd.memory.limits import U64

MOST_INSTRUCTIONS = 128
"""A region's size at most. Each instruction can dirty two pages, and a dirty ring keeps room for as many."""

LEFT = frozenset({Format.PORT_IN, Format.PORT_OUT, Format.CSR, Format.CSR_IMMEDIATE, Format.SYSTEM})
"""Formats whose instructions no region has: they leave the guest, trap, or change what code is."""

JUMPS = frozenset({Format.BRANCH, Format.JAL, Format.JALR})
"""Formats that end a block."""

_LINKS = frozenset({1, 5})
"""The registers that hold a return address by convention, ra and t0."""


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions that run one after the other.

    Attributes:
        start: the address of the first.
        rows: what each is, with its word.
        successors: where it may go on within the region.
    """

    start: int
    rows: tuple[tuple[Instruction, int], ...]
    successors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """Blocks by their addresses.

    Attributes:
        entry: the address that it was made for.
        heads: where it may be entered, and how many instructions may retire from there to the next look at most.
        returns: the addresses behind its calls, where a `ret` probably goes.
        stops: addresses that it leaves to the interpreter, though they are code: see `LEFT`.
        extents: the code that it was made of, as (guest-physical address, bytes), in order.
    """

    entry: int
    blocks: dict[int, Block]
    heads: dict[int, int]
    returns: tuple[int, ...]
    stops: frozenset[int]
    extents: tuple[tuple[int, bytes], ...]

    @property
    def size(self) -> int:
        """How many instructions it has."""
        return sum(len(block.rows) for block in self.blocks.values())


def find_region(
    entry: int,
    code_at: int,
    code: bytes,
    most_instructions: int = MOST_INSTRUCTIONS,
) -> Region | None:
    """Return the region at an entry, or None where its first instruction is none that is translated.

    Args:
        entry: a guest-physical address, a multiple of four.
        code_at: where `code` lies in guest-physical memory.
        code: the bytes around the entry, as far as they may be looked at.
        most_instructions: its size at most; no more than `MOST_INSTRUCTIONS`.
    """
    search = _Search(code_at, code, min(most_instructions, MOST_INSTRUCTIONS))
    search.follow(entry)
    if entry not in search.rows:
        return None
    blocks = search.blocks(entry)
    returns = tuple(pc for pc in search.returns if pc in blocks)
    roots = (entry, *returns)
    heads = _needs(blocks, {*roots} | _gone_back_to(roots, blocks))
    return Region(entry, blocks, heads, returns, frozenset(search.stops), search.extents())


class _Search:
    def __init__(self, code_at: int, code: bytes, most_instructions: int) -> None:
        self._most_instructions = most_instructions
        self._code_at = code_at
        self._code = code
        self.rows: dict[int, tuple[Instruction, int]] = {}
        self.stops: set[int] = set()
        self.returns: list[int] = []
        self._leaders: set[int] = set()

    def follow(self, entry: int) -> None:
        """Take in instructions from an entry on, breadth first."""
        self._leaders.add(entry)
        waiting = deque([entry])
        while waiting:
            pc = waiting.popleft()
            while True:
                if pc in self.rows:
                    # Another way has been here already.
                    self._leaders.add(pc)
                    break
                if not self._take(pc):
                    break
                if self.rows[pc][0].format in JUMPS:
                    after = self._ways_on(pc)
                    self._leaders.update(after)
                    waiting.extend(after)
                    break
                pc = pc + 4 & U64

    def _take(self, pc: int) -> bool:
        offset = pc - self._code_at
        if len(self.rows) >= self._most_instructions or not 0 <= offset <= len(self._code) - 4 or pc & 3:
            return False
        word = int.from_bytes(self._code[offset : offset + 4], "little")
        row = translatable(word)
        if row is None:
            self.stops.add(pc)
            return False
        self.rows[pc] = row, word
        return True

    def _ways_on(self, pc: int) -> tuple[int, ...]:
        """Return where an instruction may go on as far as its word tells, those behind a call last."""
        row, word = self.rows[pc]
        after = pc + 4 & U64
        match row.format:
            case Format.BRANCH:
                return pc + IMMEDIATES[row.format].of(word) & U64, after
            case Format.JAL:
                target = pc + IMMEDIATES[row.format].of(word) & U64
                return (target, *self._behind_call(word, after))
            case Format.JALR:
                return self._behind_call(word, after)
        return (after,)

    def _behind_call(self, word: int, after: int) -> tuple[int, ...]:
        if rd(word) not in _LINKS:
            return ()
        if after not in self.returns:
            self.returns.append(after)
        return (after,)

    def blocks(self, entry: int) -> dict[int, Block]:
        """Return what was taken in, cut into blocks; the entry's is the first."""
        blocks: dict[int, Block] = {}
        for start in sorted(self._leaders & self.rows.keys(), key=lambda pc: (pc != entry, pc)):
            rows, pc = [], start
            while True:
                rows.append(self.rows[pc])
                after = self._block_ways_on(pc)
                next_ = pc + 4 & U64
                if self.rows[pc][0].format in JUMPS or next_ in self._leaders or next_ not in self.rows:
                    break
                pc = next_
            blocks[start] = Block(start, tuple(rows), tuple(pc for pc in after if pc in self.rows))
        return blocks

    def _block_ways_on(self, pc: int) -> tuple[int, ...]:
        row, word = self.rows[pc]
        match row.format:
            case Format.JAL:
                return (pc + IMMEDIATES[row.format].of(word) & U64,)
            case Format.JALR:
                return tuple(self.returns) if is_return(word) else ()
        return self._ways_on(pc)

    def extents(self) -> tuple[tuple[int, bytes], ...]:
        """Return the bytes that were taken in, as runs."""
        runs: list[tuple[int, bytes]] = []
        for pc in sorted(self.rows):
            word = self.rows[pc][1].to_bytes(4, "little")
            if runs and runs[-1][0] + len(runs[-1][1]) == pc:
                runs[-1] = runs[-1][0], runs[-1][1] + word
            else:
                runs.append((pc, word))
        return tuple(runs)


def translatable(word: int) -> Instruction | None:
    """Return the row of a word, or None where no region has such an instruction."""
    row = decode(word)
    return None if row is None or row.format in LEFT else row


def is_return(word: int) -> bool:
    """Tell whether a `jalr` is a function's return by the calling convention."""
    return rd(word) == 0 and rs1(word) in _LINKS


def _gone_back_to(roots: Iterable[int], blocks: dict[int, Block]) -> set[int]:
    """Return the blocks that edges go back to on the ways from some roots: without those there is no cycle."""
    found: set[int] = set()
    met: set[int] = set()
    # Those that are being gone through, depth first: an edge to one of them goes back.
    on_the_way: set[int] = set()

    def follow(at: int) -> None:
        met.add(at)
        on_the_way.add(at)
        for way in blocks[at].successors:
            if way in on_the_way:
                found.add(way)
            elif way not in met:
                follow(way)
        on_the_way.remove(at)

    for root in roots:
        if root not in met:
            follow(root)
    return found


def _needs(blocks: dict[int, Block], heads: set[int]) -> dict[int, int]:
    """Return for each head the longest way, in instructions, to where no block follows, or another head does."""
    longest: dict[int, int] = {}

    def measure(at: int) -> int:
        if at not in longest:
            onward = [measure(way) for way in blocks[at].successors if way not in heads]
            longest[at] = len(blocks[at].rows) + max(onward, default=0)
        return longest[at]

    return {head: measure(head) for head in sorted(heads)}
