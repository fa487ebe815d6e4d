"""Random programs over all of RV64I, M and A, each from one seed.

Every register field can be every register; a few registers have a part to play and are never written: they hold
addresses, masks and the place of the code. Which they are is drawn for each program. A program runs in a circle, so
that each of its instructions meets several values, until its instructions are used up.

Left out on purpose, because RISC-V or T64 leaves the choice:

- what leaves the guest, traps, and control and status registers: T64 and Unicorn have other machines around;
- misaligned atomics, and jumps to addresses that are no multiple of 4: T64 traps, Unicorn's processor has compressed
  instructions and does not;
- an `sc` of another width than the `lr` before it: the specification lets it fail or not, and QEMU's .w after .d may
  store and tell that it failed. All `lr` and `sc` of a program have one width;
- code that is rewritten and run without a `fence.i` in between.

Kept on purpose, though the specification allows more: an `sc` fails without a reservation, at another address, and
where memory changed; it does not where the value that `lr` read was put back (T64 compares and swaps, as QEMU does).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.differential.program import CODE_AT, DATA_AT, DATA_BYTES, FarTo, Item, Program, Rewrite, To, halves, word_of
from vmmd.isa.encoding import IMMEDIATES, Format
from vmmd.isa.instructions import INSTRUCTIONS
from vmmd.memory.limits import PAGE_SIZE, U64

GROUPS = 90
INSTRUCTIONS_A_PROGRAM = 1500

_LEAVES = {Format.CSR, Format.CSR_IMMEDIATE, Format.PORT_IN, Format.PORT_OUT}
ROWS = tuple(
    row for row in INSTRUCTIONS if row.format not in _LEAVES and row.name not in {"ecall", "ebreak", "wfi", "mret"}
)
"""The rows that programs are made of: all of RV64I, M and A, and fence.i."""


def _names(*formats: Format) -> list[str]:
    return [row.name for row in ROWS if row.format in formats]


_COMPUTING = _names(Format.R, Format.I, Format.SHIFT64, Format.SHIFT32, Format.U)
_DIVIDING = [name for name in _names(Format.R) if name.startswith(("div", "rem"))]
_SHIFTING = [name for name in _names(Format.R) if name.startswith(("sll", "srl", "sra"))]
_ACCESSING = _names(Format.LOAD, Format.STORE)
_BRANCHING = _names(Format.BRANCH)
_AMOS = [name for name in _names(Format.AMO) if name.startswith("amo")]
_RESERVING = _names(Format.LR)
_CONDITIONAL = [name for name in _names(Format.AMO) if name.startswith("sc.")]

_EDGES = [0, 1, 2, U64, U64 - 1, 1 << 63, (1 << 63) - 1, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 32]
_EDGES += [0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_7FFF_FFFF, 0x8000_0000_8000_0000, 63, 64, 31, 32, 0x80, 0xFF, 0x8000]

_MASK = 0x3FFF
"""What an index into the data is reduced to."""


def interesting(draw: random.Random) -> int:
    """Return a number of 64 bits from where mistakes are."""
    kind = draw.randrange(6)
    if kind < 3:
        return draw.choice(_EDGES)
    if kind == 3:
        return DATA_AT + draw.randrange(DATA_BYTES)
    return draw.getrandbits(64) if kind == 4 else (draw.choice(_EDGES) + draw.randrange(-3, 4)) & U64


def immediate_of(draw: random.Random, name: str, form: Format) -> int:
    """Return an immediate that a row takes, as often as not one of its edges."""
    if form not in IMMEDIATES:
        return 0
    field = IMMEDIATES[form]
    value = draw.choice((field.lowest, field.highest, 0, 1, -1, draw.randrange(field.lowest, field.highest + 1)))
    value = min(max(value, field.lowest), field.highest)
    return value - value % field.step


_FORMS = {row.name: row.format for row in ROWS}


def generate(seed: str) -> Program:
    """Return the program of a seed, which may be any text."""
    return _Generator(seed).program()


class _Generator:
    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.draw = random.Random(seed)  # of a text, the same in every process
        registers = self.draw.sample(range(1, 32), 31)
        # With a part to play: two aligned addresses, one at 2^31, one anywhere, two masks, the code, and a counter.
        self.low, self.aligned, self.border, self.anywhere, self.mask, self.mask8, self.code, self.counter = registers[
            :8
        ]
        self.free = registers[8:]
        self.letter = self.draw.choice("wd")
        self.kinds: list[tuple[int, Callable[[int], list[Item]]]] = [
            (30, self._compute),
            (6, self._make_value),
            (6, self._corner),
            (18, self._access),
            (8, self._access_somewhere),
            (14, self._branch),
            (3, self._jump),
            (18, self._amo),
            (6, self._reserve),
            (3, self._conditional),
            (2, self._fence),
            (2, self._rewrite),
            (3, self._loop),
        ]

    def program(self) -> Program:
        draw = self.draw
        makers, weights = [kind[1] for kind in self.kinds], [kind[0] for kind in self.kinds]
        groups: list[tuple[int, tuple[Item, ...]]] = []
        while len(groups) < GROUPS:
            number = len(groups)
            items = draw.choices(makers, weights)[0](number)
            groups.append((number, tuple(items)))
        last: Item = To("jal", 0, self._rd()) if draw.random() < 0.5 else FarTo(0, self._rd(), self._scratch(), 0)
        groups.append((len(groups), (last,)))
        # It lies over the border of two pages, which are two slots.
        start = CODE_AT + PAGE_SIZE - 4 * draw.randrange(1, 160)
        return Program(self.seed, start, tuple(groups), self._registers(start), self._data(), self._portions())

    def _registers(self, start: int) -> tuple[int, ...]:
        draw = self.draw
        values = [0] + [interesting(draw) for _ in range(31)]
        values[self.low] = DATA_AT + PAGE_SIZE
        values[self.aligned] = DATA_AT + draw.randrange(PAGE_SIZE, DATA_BYTES - PAGE_SIZE, 8)
        values[self.border] = 1 << 31
        values[self.anywhere] = DATA_AT + draw.randrange(PAGE_SIZE, DATA_BYTES - PAGE_SIZE)
        values[self.mask], values[self.mask8] = _MASK, _MASK & ~7
        values[self.code], values[self.counter] = start, 0
        return tuple(values)

    def _data(self) -> bytes:
        values = [interesting(self.draw).to_bytes(8, "little") for _ in range(256)]
        return b"".join(self.draw.choices(values, k=DATA_BYTES // 8))

    def _portions(self) -> tuple[int, ...]:
        left, portions = INSTRUCTIONS_A_PROGRAM, []
        while left:
            portions.append(min(left, self.draw.choice((1, 2, self.draw.randrange(1, 600)))))
            left -= portions[-1]
        return tuple(portions)

    def _rd(self) -> int:
        return self.draw.choice([0, *self.free])

    def _scratch(self) -> int:
        return self.draw.choice(self.free)

    def _any(self) -> int:
        return self.draw.randrange(32)

    def _row(self, name: str) -> int:
        return word_of(name, self._rd(), self._any(), self._any(), immediate_of(self.draw, name, _FORMS[name]))

    def _compute(self, number: int) -> list[Item]:
        return [self._row(self.draw.choice(_COMPUTING))]

    def _make_value(self, number: int) -> list[Item]:
        """Have a register hold an interesting value again, after computing has made noise of it."""
        rd = self._scratch()
        one = self.draw.choice((1, -1, 2, 0x7FF, -0x800))
        shift = word_of(self.draw.choice(("slli", "srli", "srai")), rd, rd, immediate=self.draw.choice((0, 31, 32, 63)))
        return [word_of("addi", rd, 0, immediate=one), shift]

    def _corner(self, number: int) -> list[Item]:
        """Divide by zero and the smallest by -1, and shift by the width and more."""
        a, b = self.draw.sample(self.free, 2)
        if self.draw.random() < 0.4:
            by = self.draw.choice((31, 32, 33, 63, 64, 65, -1, -32, 0x7E0))
            return [word_of("addi", b, 0, immediate=by), word_of(self.draw.choice(_SHIFTING), self._rd(), a, b)]
        divide = word_of(self.draw.choice(_DIVIDING), self._rd(), a, b)
        if self.draw.random() < 0.4:
            return [word_of("addi", b, 0, immediate=0), divide]
        smallest = word_of("slli", a, a, immediate=self.draw.choice((31, 63)))
        return [word_of("addi", a, 0, immediate=-1), smallest, word_of("addi", b, 0, immediate=-1), divide]

    def _near(self) -> int:
        """Return an offset: aligned, or around the address, so that one at a page's border crosses it."""
        return self.draw.choice((8 * self.draw.randrange(-256, 256), self.draw.randrange(-8, 9), self._far()))

    def _far(self) -> int:
        return self.draw.randrange(-2048, 2048)

    def _access(self, number: int) -> list[Item]:
        name = self.draw.choice(_ACCESSING)
        base = self.draw.choice((self.low, self.aligned, self.border, self.border, self.anywhere))
        return [word_of(name, self._rd(), base, self._any(), self._near())]

    def _address(self, mask: int) -> tuple[int, list[Item]]:
        """Compute an address in the data from whatever a register holds."""
        at = self._scratch()
        return at, [word_of("and", at, self._any(), mask), word_of("add", at, at, self.low)]

    def _access_somewhere(self, number: int) -> list[Item]:
        at, items = self._address(self.mask)
        return [*items, word_of(self.draw.choice(_ACCESSING), self._rd(), at, self._any(), self._far())]

    def _atomic_address(self, name: str) -> tuple[int, list[Item]]:
        if self.draw.random() < 0.6:
            return self.draw.choice((self.low, self.aligned, self.border)), []
        at, items = self._address(self.mask8)
        if ".w" in name and self.draw.random() < 0.5:
            items.append(word_of("addi", at, at, immediate=4))
        return at, items

    def _amo(self, number: int) -> list[Item]:
        name = self.draw.choice(_AMOS)
        at, items = self._atomic_address(name)
        return [*items, word_of(name, self._rd(), at, self._any())]

    def _of_width(self, names: list[str]) -> str:
        return self.draw.choice([name for name in names if name.split(".")[1] == self.letter])

    def _reserve(self, number: int) -> list[Item]:
        """`lr` and `sc` with what may come in between: nothing, computing, stores there, another reservation."""
        draw, name = self.draw, self._of_width(_RESERVING)
        at, items = self._atomic_address(name)
        was, other = draw.sample([register for register in self.free if register != at], 2)
        items.append(word_of(name, was, at))
        store = f"s{self.letter}"
        between: list[list[Item]] = [
            [],
            [word_of("addi", other, was, immediate=1)],
            [word_of(store, rs1=at, rs2=self._any())],
            [word_of(store, rs1=at, rs2=0), word_of(store, rs1=at, rs2=was)],
            [word_of("sb", rs1=at, rs2=self._any(), immediate=draw.randrange(-2, 8))],
            [word_of(f"amoadd.{self.letter}", other, at, self._any())],
            [word_of(self._of_width(_RESERVING), other, self.border)],
        ]
        items += draw.choice(between)
        items.append(word_of(self._of_width(_CONDITIONAL), self._rd(), at, self._any()))
        return items

    def _conditional(self, number: int) -> list[Item]:
        """An `sc` by itself; what was reserved last, if anything is, may be its address or another one."""
        name = self._of_width(_CONDITIONAL)
        at, items = self._atomic_address(name)
        return [*items, word_of(name, self._rd(), at, self._any())]

    def _fence(self, number: int) -> list[Item]:
        if self.draw.random() < 0.3:
            return [word_of("fence.i")]
        return [word_of("fence") | self.draw.getrandbits(8) << 20]

    def _ahead(self, number: int) -> int:
        return min(number + self.draw.randrange(1, 6), GROUPS)

    def _branch(self, number: int) -> list[Item]:
        rs1, rs2 = self._any(), self._any()
        if self.draw.random() < 0.2:
            rs2 = rs1
        return [To(self.draw.choice(_BRANCHING), self._ahead(number), rs1=rs1, rs2=rs2)]

    def _jump(self, number: int) -> list[Item]:
        if self.draw.random() < 0.5:
            return [To("jal", self._ahead(number), self._rd())]
        by = self._scratch()
        return [FarTo(self._ahead(number), self.draw.choice((by, self._rd())), by, self.draw.randrange(2))]

    def _loop(self, number: int) -> list[Item]:
        """Go back a few times: as often as the counter says, which counts down and is set anew where it has run out."""
        draw, on = self.draw, self._scratch()
        back = max(number - draw.randrange(1, 5), 0)
        name = draw.choice(_BRANCHING)
        counts = [word_of("addi", self.counter, self.counter, immediate=-1), word_of("slt", on, 0, self.counter)]
        if name in {"bne", "blt", "bltu"}:
            go_back = To(name, back, rs1=0, rs2=on)
        else:
            # 0 where it is to go back, and -1 where it is not.
            counts.append(word_of("addi", on, on, immediate=-1))
            go_back = To(name, back, rs1=on) if name != "bgeu" else To(name, back, rs1=0, rs2=on)
        return [*counts, go_back, word_of("addi", self.counter, 0, immediate=draw.randrange(1, 5))]

    def _rewrite(self, number: int) -> list[Item]:
        """Write an instruction over the group's last, and run it: its immediate is whatever a register holds now."""
        word, immediate = self.draw.sample(self.free, 2)
        name = self.draw.choice(("addi", "xori", "ori", "andi", "slti", "sltiu", "addiw"))
        high, low = halves(word_of(name, self._rd(), self._any()))
        return [
            word_of("slli", immediate, self._any(), immediate=52),
            word_of("srli", immediate, immediate, immediate=32),
            word_of("lui", word, immediate=high),
            word_of("addiw", word, word, immediate=low),
            word_of("or", word, word, immediate),
            Rewrite(word, self.code, 2),
            word_of("fence.i"),
            word_of("addi"),
        ]
