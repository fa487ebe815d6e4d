"""The output as fragments, and where each of them lies once it is known which branches are long.

A fragment is bytes of known length and, after them, at most one piece whose length depends on where things lie: a
branch, an alignment or an `.org`. GNU as decides on branches before the linker shortens alignments of code. So there
are two layouts: the written one, in which such an alignment takes all the bytes that it could need, and the finished
one. A branch is long if its target is too far away in either, or is an address that does not move with the code.

Source of the order in which branches are looked at: `relax_segment` in write.c and `relaxed_branch_length` in
tc-riscv.c of GNU binutils 2.40. The result depends on it only where two branches lie over each other at the very limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vmmd.isa.assembler.expressions import Place, Value
from vmmd.isa.assembler.relocations import WITHOUT_PC, Patch
from vmmd.isa.assembler.symbols import Resolver, known_meaning, place_as_value
from vmmd.isa.assembler.text import TextError

MAX_CODE_BYTES = 16 << 20
"""The largest output. Nothing larger is ever built, whatever `.zero`, `.org` and `.align` ask for."""

MAX_ROUNDS = 32
"""How often branches are looked at again because others changed. If that is not enough, all of them become long."""

LONG_BRANCH_BYTES = 8
_NOP = bytes.fromhex("13000000")
_HALF_NOP = bytes.fromhex("0100")
_REACH = 4096


@dataclass(slots=True)
class Branch:
    """A conditional branch: four bytes, or eight where the opposite branch jumps over a jal."""

    word: int
    patch: Patch
    target: Place | None = None
    is_long: bool = True


@dataclass(frozen=True, slots=True)
class Alignment:
    """Up to the next multiple of `size_bytes`, with `fill` or nops, unless that takes more than `most_bytes`."""

    size_bytes: int
    fill: int | None
    most_bytes: int
    is_relaxed: bool
    at: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Up to an offset from the beginning, or to a place, with `fill`."""

    target: Value
    fill: int
    at: int


@dataclass(slots=True)
class Fragment:
    """Bytes, and what follows them."""

    data: bytearray = field(default_factory=bytearray)
    tail: Branch | Alignment | Origin | None = None


class Output:
    """What has been put out so far, and what of it waits for addresses."""

    def __init__(self) -> None:
        self.fragments = [Fragment()]
        self.patches: list[Patch] = []
        self._size_bytes = 0

    @property
    def here(self) -> Place:
        """Where the next byte goes."""
        return Place(len(self.fragments) - 1, len(self.fragments[-1].data))

    def append(self, data: bytes, at: int, count: int = 1) -> None:
        """Put the same bytes out `count` times.

        Raises:
            TextError: the output would be larger than `MAX_CODE_BYTES`; no memory has been taken for it.
        """
        self._count(len(data) * count, at)
        self.fragments[-1].data += data * count

    def put(self, word: int, size: int, patches: list[Patch], at: int) -> None:
        """Put out a little-endian word and what is to be put over its zeroes: constants now, the rest later.

        Raises:
            TextError: a constant does not fit, or the output is too large.
        """
        for patch in patches:
            meaning = known_meaning(patch.expression)
            if isinstance(meaning, Value) and patch.rule in WITHOUT_PC:
                word |= patch.bits(meaning, 0, {})
            else:
                self.patches.append(patch)
        self.append(word.to_bytes(size, "little"), at)

    def end_fragment(self, tail: Branch | Alignment | Origin, at: int) -> None:
        """Put out a piece whose length depends on the layout; raises as `append`."""
        self._count(4 if isinstance(tail, Branch) else 0, at)
        self.fragments[-1].tail = tail
        self.fragments.append(Fragment())

    def _count(self, size_bytes: int, at: int) -> None:
        self._size_bytes += size_bytes
        check_size(self._size_bytes, at)


def check_size(size_bytes: int, at: int) -> None:
    """Refuse an output of more than `MAX_CODE_BYTES`.

    Raises:
        TextError: it is larger.
    """
    if size_bytes > MAX_CODE_BYTES:
        raise TextError(f"the code grows to {size_bytes} bytes here: {MAX_CODE_BYTES} are allowed", at)


class Layout:
    """The offsets of all fragments from the beginning. `origin` is the beginning's address."""

    def __init__(self, fragments: list[Fragment], origin: int) -> None:
        self._fragments = fragments
        self._origin = origin
        self._branches = [(index, part.tail) for index, part in enumerate(fragments) if isinstance(part.tail, Branch)]
        self._find_targets()
        self._decide()
        self.starts = self._finish()

    def pieces(self) -> Iterator[tuple[Fragment, int]]:
        """Give each fragment and the length of its tail in bytes."""
        for index, fragment in enumerate(self._fragments):
            yield fragment, self._tail_bytes(index, self.starts, finished=True)

    def _find_targets(self) -> None:
        resolver = Resolver(place_as_value)
        for _, branch in self._branches:
            try:
                value = resolver.value(branch.patch.expression)
            except TextError:
                # What is wrong is said when the branch is put out; a sum over fragments is right there, and long.
                continue
            if value.base is not None:
                branch.target = Place(value.base, value.number)

    def _decide(self) -> None:
        """Decide which branches are long.

        GNU as goes over all fragments until nothing changes, and moves them as it goes, so that a branch sees a target
        ahead where it was before. That takes rounds in proportion to the text. So from `MAX_ROUNDS` rounds on targets
        ahead are taken where they will be, which needs few more.
        """
        starts, lengths = self._guess()
        for knows_ahead in (False, True):
            for _ in range(MAX_ROUNDS):
                if not self._revise(starts, lengths, knows_ahead=knows_ahead):
                    return
        self._make_all_long()

    def _guess(self) -> tuple[list[int], list[int]]:
        """Return first offsets and lengths. Where later fragments lie is not known: GNU as takes 0 for their offset."""
        starts = [0] * len(self._fragments)
        lengths = [0] * len(self._fragments)
        offset = 0
        for index, fragment in enumerate(self._fragments):
            starts[index] = offset
            if isinstance(fragment.tail, Branch):
                fragment.tail.is_long = self._is_far(index, fragment.tail, starts)
            if not isinstance(fragment.tail, Origin):
                lengths[index] = self._tail_bytes(index, starts, finished=False)
            offset += len(fragment.data) + lengths[index]
        return starts, lengths

    def _revise(self, starts: list[int], lengths: list[int], *, knows_ahead: bool) -> bool:
        """Go over all fragments once; tell whether a length changed."""
        moved_by = 0
        changed = False
        for index, fragment in enumerate(self._fragments):
            if moved_by:
                starts[index] += moved_by
            tail = fragment.tail
            if isinstance(tail, Branch):
                tail.is_long = self._is_far(index, tail, starts, moved_by if knows_ahead else 0)
                length = LONG_BRANCH_BYTES if tail.is_long else 4
            else:
                length = self._tail_bytes(index, starts, finished=False)
            if length != lengths[index]:
                moved_by += length - lengths[index]
                lengths[index] = length
                changed = True
        return changed

    def _finish(self) -> list[int]:
        """Shorten the alignments. An `.org` behind one can push a target out of reach: that branch becomes long too."""
        for _ in range(MAX_ROUNDS):
            starts = self._place_all()
            strays = [
                branch for index, branch in self._branches if not branch.is_long and self._is_far(index, branch, starts)
            ]
            if not strays:
                return starts
            for branch in strays:
                branch.is_long = True
        self._make_all_long()
        return self._place_all()

    def _make_all_long(self) -> None:
        for _, branch in self._branches:
            branch.is_long = True

    def _place_all(self) -> list[int]:
        starts = [0] * len(self._fragments)
        for index in range(len(starts) - 1):
            end = starts[index] + len(self._fragments[index].data)
            starts[index + 1] = end + self._tail_bytes(index, starts, finished=True)
        # What is fixed was counted when it was put out: here it is these pieces that make the output too large.
        check_size(starts[-1] + len(self._fragments[-1].data), self._last_piece_at())
        return starts

    def _last_piece_at(self) -> int:
        tail = self._fragments[-2].tail if len(self._fragments) > 1 else None
        if isinstance(tail, Branch):
            return tail.patch.expression.at
        return tail.at if tail is not None else 0

    def _is_far(self, index: int, branch: Branch, starts: list[int], ahead_moves_by: int = 0) -> bool:
        if branch.target is None:
            return True
        here = starts[index] + len(self._fragments[index].data)
        there = starts[branch.target.fragment] + branch.target.offset
        if branch.target.fragment > index:
            there += ahead_moves_by
        return not -_REACH <= there - here < _REACH

    def _tail_bytes(self, index: int, starts: list[int], *, finished: bool) -> int:
        tail = self._fragments[index].tail
        offset = starts[index] + len(self._fragments[index].data)
        match tail:
            case None:
                return 0
            case Branch():
                return LONG_BRANCH_BYTES if tail.is_long else 4
            case Alignment():
                if tail.is_relaxed and not finished:
                    return tail.size_bytes - 4
                size_bytes = -(self._origin + offset) % tail.size_bytes
                if size_bytes > tail.most_bytes:
                    return 0
            case Origin(target, _, at):
                base = 0 if target.base is None else starts[target.base]
                size_bytes = base + target.number - offset
                if finished and size_bytes < 0:
                    raise TextError(f".org would go {-size_bytes} bytes back: it goes forward only", at)
                size_bytes = max(size_bytes, 0)
        check_size(offset + size_bytes, tail.at)
        return size_bytes


def tail_data(tail: Alignment | Origin | None, size_bytes: int) -> bytes:
    """Return what fills the tail's `size_bytes`: its own byte, or nops."""
    if tail is None:
        return b""
    if tail.fill is not None:
        return bytes((tail.fill,)) * size_bytes
    # No instruction fits into a rest of less than four bytes. These are the bytes that GNU as puts there.
    return bytes(size_bytes & 1) + _HALF_NOP * (size_bytes >> 1 & 1) + _NOP * (size_bytes >> 2)
