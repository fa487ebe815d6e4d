"""The assembler against GNU as and ld: every instruction, every pseudo-instruction, constants and long branches.

Needs Debian's binutils-riscv64-unknown-elf. Where it is absent `test_assembler_encodings.py` still holds what it said.
"""

import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.isa.test_assembler_encodings import ENCODINGS, ORIGIN
from tests.isa.words import ARCHITECTURE
from vmmd.isa.assembler import assemble
from vmmd.isa.assembler.pseudo import PSEUDO
from vmmd.isa.csrs import CSR_NUMBERS
from vmmd.isa.encoding import REGISTERS, Format
from vmmd.isa.instructions import INSTRUCTIONS

TOOLS = "riscv64-unknown-elf-"

pytestmark = pytest.mark.skipif(
    shutil.which(f"{TOOLS}as") is None,
    reason="GNU as for RISC-V is not installed (apt-get install binutils-riscv64-unknown-elf)",
)

Gnu = Callable[[str, int], bytes]


@pytest.fixture
def gnu(tmp_path: Path) -> Gnu:
    """Give a function that assembles and links a text and returns the bytes of its section of code."""

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def assemble_by_gnu(source: str, origin: int) -> bytes:
        (tmp_path / "guest.s").write_text(_ports_as_insn(source))
        run(f"{TOOLS}as", ARCHITECTURE, "-o", "guest.o", "guest.s")
        run(f"{TOOLS}ld", "--no-relax", "-e", "0", f"-Ttext={origin:#x}", "-o", "guest", "guest.o")
        run(f"{TOOLS}objcopy", "-O", "binary", "-j", ".text", "guest", "guest.bin")
        return (tmp_path / "guest.bin").read_bytes()

    return assemble_by_gnu


def _ports_as_insn(source: str) -> str:
    """Write T64's port I/O in the way in which GNU as takes instructions that it does not know."""
    for row in INSTRUCTIONS:
        if row.format in {Format.PORT_IN, Format.PORT_OUT}:
            source = re.sub(rf"(?m)^{row.name} ", f".insn i 0x0b, {row.match >> 12 & 7}, ", source)
    return source


def assert_equal(gnu: Gnu, source: str, origin: int = ORIGIN) -> None:
    ours = assemble(source, origin).code
    theirs = gnu(source, origin)
    # GNU as fills the section up to its alignment.
    rest = theirs[len(ours) :]
    assert theirs[: len(ours)] == ours
    assert not rest.replace(bytes.fromhex("13000000"), b"").strip(b"\0")


def some_register(chance: random.Random) -> str:
    return chance.choice([*REGISTERS, "fp", *(f"x{number}" for number in range(32))])


def some_number(chance: random.Random, lowest: int, highest: int) -> str:
    number = chance.choice([lowest, highest, 0, chance.randint(lowest, highest)])
    return chance.choice([f"{number}", f"{number:#x}", f"({number} + 3) - 3"])


def _registers(count: int) -> Callable[[random.Random], str]:
    return lambda chance: ", ".join(some_register(chance) for _ in range(count))


def _value(registers: int, lowest: int, highest: int) -> Callable[[random.Random], str]:
    return lambda chance: f"{_registers(registers)(chance)}, {some_number(chance, lowest, highest)}"


def _address(chance: random.Random) -> str:
    number = chance.choice(["", some_number(chance, -2048, 2047)])
    return f"{some_register(chance)}, {number}({some_register(chance)})"


def _distance(registers: int, reach: int) -> Callable[[random.Random], str]:
    def operands(chance: random.Random) -> str:
        distance = chance.choice([-reach, reach - 2, 0, chance.randrange(-reach, reach, 2)])
        return f"{_registers(registers)(chance)}, . + {distance}".replace("+ -", "- ")

    return operands


def _order(chance: random.Random) -> str:
    sets = ["i", "o", "r", "w", "io", "rw", "iorw", "ir", "orw", "iow"]
    return f"{chance.choice(sets)}, {chance.choice(sets)}"


def _atomic(registers: int) -> Callable[[random.Random], str]:
    names = _registers(registers)
    return lambda chance: f"{names(chance)}, ({chance.choice(REGISTERS)})"


def some_csr(chance: random.Random) -> str:
    return chance.choice([chance.choice(list(CSR_NUMBERS)), some_number(chance, 0, 4095)])


def _csr(source: Callable[[random.Random], str]) -> Callable[[random.Random], str]:
    return lambda chance: f"{some_register(chance)}, {some_csr(chance)}, {source(chance)}"


OPERANDS: dict[Format, Callable[[random.Random], str]] = {
    Format.R: _registers(3),
    Format.I: _value(2, -2048, 2047),
    Format.SHIFT64: _value(2, 0, 63),
    Format.SHIFT32: _value(2, 0, 31),
    Format.LOAD: _address,
    Format.STORE: _address,
    Format.BRANCH: _distance(2, 4096),
    Format.U: _value(1, 0, 0xFFFFF),
    Format.JAL: _distance(1, 1 << 20),
    Format.JALR: _address,
    Format.FENCE: _order,
    Format.SYSTEM: lambda chance: "",
    Format.AMO: _atomic(2),
    Format.LR: _atomic(1),
    Format.PORT_IN: _address,
    Format.PORT_OUT: _address,
    Format.CSR: _csr(some_register),
    Format.CSR_IMMEDIATE: _csr(lambda chance: some_number(chance, 0, 31)),
}
"""Random operands of each format; a format that is new in the table of instructions wants a line here."""


def test_the_recorded_encodings_are_those_of_gnu_as(gnu: Gnu) -> None:
    for source, code in ENCODINGS:
        assert gnu(source, ORIGIN).hex().startswith(code), source


@pytest.mark.parametrize("row", INSTRUCTIONS, ids=lambda row: row.name)
def test_every_instruction_is_encoded_as_gnu_as_encodes_it(gnu: Gnu, row) -> None:
    chance = random.Random(row.name)
    # A jump's target must be an address, so the jumps stand far behind the beginning.
    lines = ["far: .zero 0x200000"] if row.format in {Format.JAL, Format.BRANCH} else []
    lines += [f"{row.name} {OPERANDS[row.format](chance)}".rstrip() for _ in range(200)]
    assert_equal(gnu, "\n".join(lines) + "\n")


PSEUDO_OPERANDS = {
    "": "nop ret fence fence.tso unimp ecall scall ebreak sbreak",
    "rr": "mv move not neg negw sext.b sext.h sext.w zext.b zext.h zext.w seqz snez sltz sgtz jalr",
    "rrr": "sgt sgtu",
    "rt": "beqz bnez blez bgez bltz bgtz jal call la lla lb lh lw ld lbu lhu lwu jump",
    "rrt": "bgt ble bgtu bleu",
    "t": "j jal call tail",
    "r": "jr jalr rdcycle rdtime rdinstret",
    "rri": "add addw and or xor slt sltu jalr",
    "rrs": "sll srl sra sllw srlw sraw",
    "rtr": "sb sh sw sd",
    "m": "jr jalr",
    "rc": "csrr",
    "cr": "csrw csrs csrc",
    "cs": "csrw csrs csrc csrwi csrsi csrci",
    "rcs": "csrrw csrrs csrrc",
}
"""Pseudo-instructions by what they take: registers, targets, immediates, shifts, addresses and CSRs."""


def _pseudo_lines(chance: random.Random, count: int) -> list[str]:
    operand = {
        "r": lambda: chance.choice(REGISTERS),
        "t": lambda: chance.choice(["before", "after", "before + 8", "after - 4", "."]),
        "i": lambda: some_number(chance, -2048, 2047),
        "s": lambda: some_number(chance, 0, 31),
        "m": lambda: _address(chance).split(", ", 1)[1],
        "c": lambda: chance.choice([some_csr(chance), "known", "known + 1", "pmpaddr0"]),
    }
    lines = []
    for takes, names in PSEUDO_OPERANDS.items():
        for name in names.split():
            for _ in range(count):
                operands = [operand[letter]() for letter in takes]
                operands = operands[::-1] if name == "jump" else operands
                lines.append(f"{name} {', '.join(operands)}".rstrip())
    chance.shuffle(lines)
    return lines


@pytest.mark.parametrize("seed", range(5))
def test_every_pseudo_instruction_is_made_of_what_gnu_as_makes_it_of(gnu: Gnu, seed: int) -> None:
    lines = _pseudo_lines(random.Random(seed), count=6)
    # A name that is both a CSR's to GNU as and a constant to us says the same to both.
    constants = ".equ known, 0x7c0\n.equ pmpaddr0, 0x3b0\n"
    assert_equal(gnu, f"{constants}before: nop\n" + "\n".join(lines) + "\nafter: nop\n")


def test_every_pseudo_instruction_of_the_table_is_compared() -> None:
    assert {*PSEUDO} - {name for names in PSEUDO_OPERANDS.values() for name in names.split()} == set()


@pytest.mark.parametrize("seed", range(4))
def test_constants_are_loaded_as_gnu_as_loads_them(gnu: Gnu, seed: int) -> None:
    chance = random.Random(seed)
    numbers = [chance.getrandbits(chance.randint(1, 64)) for _ in range(1000)]
    numbers += [number << chance.randint(0, 63) & (1 << 64) - 1 for number in numbers]
    numbers += [
        (1 << power) + off & (1 << 64) - 1 for power in range(65) for off in (-2049, -2048, -1, 0, 1, 2047, 2048)
    ]
    numbers += [-number for number in numbers if number <= 1 << 63]
    source = "".join(f"{chance.choice(['li', 'li', 'la'])} {chance.choice(REGISTERS)}, {n}\n" for n in numbers)
    # `la` of a constant takes no more than 32 bits in GNU as.
    lines = [
        line if -(1 << 31) <= n < 1 << 31 else line.replace("la ", "li ")
        for line, n in zip(source.splitlines(), numbers, strict=True)
    ]
    assert_equal(gnu, "\n".join(lines) + "\n")


def _program(chance: random.Random, *, relaxed: bool) -> str:
    """Write a program whose branches reach over each other at about the distance at which they become long."""
    count, labels = chance.choice([40, 100, 300]), chance.choice([20, 50])
    lines = [] if relaxed else [".option norelax"]
    where = sorted(chance.randrange(count) for _ in range(labels))
    for index in range(count):
        passed = sum(place < index for place in where)
        lines += [f"l{label}:" for label, place in enumerate(where) if place == index]
        near = min(labels - 1, max(0, passed + chance.randrange(-6, 7)))
        pieces = [
            f"beqz a0, l{near}",
            f"bltu a1, a2, l{near} + {chance.choice([-4, 0, 4])}",
            f"jal l{near}",
            f"call l{near}",
            f".zero {4 * chance.randrange(1, 400)}",
            f".align {chance.randrange(2, 8)}",
            ".word " + ", ".join([f"l{near}"] * chance.randrange(1, 300)),
            "nop\n" * chance.randrange(1, 100),
        ]
        if not relaxed:
            pieces += [".align 5, 0", ".balign 8, , 3", f".org . + {4 * chance.randrange(100)}"]
        lines.append(chance.choice(pieces))
    where_to_end = [f"l{label}:" for label, place in enumerate(where) if place >= count]
    return "\n".join(lines + where_to_end) + "\n"


@pytest.mark.parametrize("relaxed", [True, False], ids=["relax", "norelax"])
@pytest.mark.parametrize("seed", range(20))
def test_branches_become_long_where_those_of_gnu_as_do(gnu: Gnu, seed: int, relaxed: bool) -> None:
    assert_equal(gnu, _program(random.Random(seed), relaxed=relaxed), 0x10_0000)


@pytest.mark.parametrize("seed", range(20))
def test_branches_over_each_other_at_the_limit_end_as_those_of_gnu_as_do(gnu: Gnu, seed: int) -> None:
    chance = random.Random(seed)
    count = chance.choice([1500, 3000])
    lines = []
    for index in range(count):
        far = index + chance.choice([-1023, 900, 1010, 1022])
        target = far if 0 <= far < count and chance.random() < 0.5 else chance.randrange(count)
        lines.append(f"l{index}: " + chance.choice([f"bne a0, a1, l{target}", f"beqz a0, l{target}", "nop"]))
    assert_equal(gnu, "\n".join(lines) + "\n", 0x10_0000)


@pytest.mark.parametrize("origin", [0, 0x1000, 0x8000_0000, 0x1_8000_0000, 0xFFFF_FFFF_FFF0_0000])
def test_addresses_are_reached_from_any_origin_as_gnu_ld_reaches_them(gnu: Gnu, origin: int) -> None:
    source = """
        here: la a0, here; la a1, there; lla a2, there + 2047; lw a3, here; sd a4, there, t0
        la a0, low; lw a1, low; .equ low, 0x100
        call there; tail here; j there; beqz a0, here
        1: auipc a0, %pcrel_hi(there); ld a1, %pcrel_lo(1b)(a0); sw a2, %pcrel_lo(1b)(a0); addi a0, a0, %pcrel_lo(1b)
        .dword here, there - here, .
        there: nop
    """
    assert_equal(
        gnu, source.replace("la a0, low; lw a1, low", "nop") if 1 << 31 <= origin < 1 << 32 else source, origin
    )
