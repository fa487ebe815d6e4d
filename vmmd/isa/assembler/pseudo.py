"""Instructions that are made of other instructions: a table that reads like the manual's, and the constants of `li`.

On the left stand operands by name: those with an r are registers, `mem` is `imm(register)`, all others are values. What
is on the right is read as if it had been written. A line is left out while T64 lacks an instruction that it needs.

Source: the RISC-V assembly programmer's manual, and GNU as for what it takes besides (`add a0, a1, 5`).
"""

from __future__ import annotations

from dataclasses import dataclass

from vmmd.isa.assembler.operands import Shape
from vmmd.isa.assembler.text import Token, Tokens, split_at_commas, statements
from vmmd.isa.encoding import IMMEDIATES, RD_AT, RS1_AT, sign_extend
from vmmd.isa.instructions import BY_NAME

_TABLE = """
nop                     -> addi zero, zero, 0
mv rd, rs               -> addi rd, rs, 0
move rd, rs             -> addi rd, rs, 0
not rd, rs              -> xori rd, rs, -1
neg rd, rs              -> sub rd, zero, rs
negw rd, rs             -> subw rd, zero, rs
sext.b rd, rs           -> slli rd, rs, 56; srai rd, rd, 56
sext.h rd, rs           -> slli rd, rs, 48; srai rd, rd, 48
sext.w rd, rs           -> addiw rd, rs, 0
zext.b rd, rs           -> andi rd, rs, 255
zext.h rd, rs           -> slli rd, rs, 48; srli rd, rd, 48
zext.w rd, rs           -> slli rd, rs, 32; srli rd, rd, 32
seqz rd, rs             -> sltiu rd, rs, 1
snez rd, rs             -> sltu rd, zero, rs
sltz rd, rs             -> slt rd, rs, zero
sgtz rd, rs             -> slt rd, zero, rs
sgt rd, rs, rt          -> slt rd, rt, rs
sgtu rd, rs, rt         -> sltu rd, rt, rs

beqz rs, target         -> beq rs, zero, target
bnez rs, target         -> bne rs, zero, target
blez rs, target         -> bge zero, rs, target
bgez rs, target         -> bge rs, zero, target
bltz rs, target         -> blt rs, zero, target
bgtz rs, target         -> blt zero, rs, target
bgt rs, rt, target      -> blt rt, rs, target
ble rs, rt, target      -> bge rt, rs, target
bgtu rs, rt, target     -> bltu rt, rs, target
bleu rs, rt, target     -> bgeu rt, rs, target

j target                -> jal zero, target
jal target              -> jal ra, target
jr rs                   -> jalr zero, 0(rs)
jr mem                  -> jalr zero, mem
jr rs, imm              -> jalr zero, imm(rs)
jalr rs                 -> jalr ra, 0(rs)
jalr mem                -> jalr ra, mem
jalr rd, rs             -> jalr rd, 0(rs)
jalr rd, rs, imm        -> jalr rd, imm(rs)
ret                     -> jalr zero, 0(ra)
call target             -> auipc ra, %pcrel_hi(target); jalr ra, %pcrel_lo(. - 4)(ra)
call rd, target         -> auipc t1, %pcrel_hi(target); jalr rd, %pcrel_lo(. - 4)(t1)
tail target             -> auipc t1, %pcrel_hi(target); jalr zero, %pcrel_lo(. - 4)(t1)
jump target, rt         -> auipc rt, %pcrel_hi(target); jalr zero, %pcrel_lo(. - 4)(rt)

la rd, symbol           -> auipc rd, %pcrel_hi(symbol); addi rd, rd, %pcrel_lo(. - 4)
lla rd, symbol          -> auipc rd, %pcrel_hi(symbol); addi rd, rd, %pcrel_lo(. - 4)
lb rd, symbol           -> auipc rd, %pcrel_hi(symbol); lb rd, %pcrel_lo(. - 4)(rd)
lh rd, symbol           -> auipc rd, %pcrel_hi(symbol); lh rd, %pcrel_lo(. - 4)(rd)
lw rd, symbol           -> auipc rd, %pcrel_hi(symbol); lw rd, %pcrel_lo(. - 4)(rd)
ld rd, symbol           -> auipc rd, %pcrel_hi(symbol); ld rd, %pcrel_lo(. - 4)(rd)
lbu rd, symbol          -> auipc rd, %pcrel_hi(symbol); lbu rd, %pcrel_lo(. - 4)(rd)
lhu rd, symbol          -> auipc rd, %pcrel_hi(symbol); lhu rd, %pcrel_lo(. - 4)(rd)
lwu rd, symbol          -> auipc rd, %pcrel_hi(symbol); lwu rd, %pcrel_lo(. - 4)(rd)
sb rs, symbol, rt       -> auipc rt, %pcrel_hi(symbol); sb rs, %pcrel_lo(. - 4)(rt)
sh rs, symbol, rt       -> auipc rt, %pcrel_hi(symbol); sh rs, %pcrel_lo(. - 4)(rt)
sw rs, symbol, rt       -> auipc rt, %pcrel_hi(symbol); sw rs, %pcrel_lo(. - 4)(rt)
sd rs, symbol, rt       -> auipc rt, %pcrel_hi(symbol); sd rs, %pcrel_lo(. - 4)(rt)

add rd, rs, imm         -> addi rd, rs, imm
addw rd, rs, imm        -> addiw rd, rs, imm
and rd, rs, imm         -> andi rd, rs, imm
or rd, rs, imm          -> ori rd, rs, imm
xor rd, rs, imm         -> xori rd, rs, imm
slt rd, rs, imm         -> slti rd, rs, imm
sltu rd, rs, imm        -> sltiu rd, rs, imm
sll rd, rs, imm         -> slli rd, rs, imm
srl rd, rs, imm         -> srli rd, rs, imm
sra rd, rs, imm         -> srai rd, rs, imm
sllw rd, rs, imm        -> slliw rd, rs, imm
srlw rd, rs, imm        -> srliw rd, rs, imm
sraw rd, rs, imm        -> sraiw rd, rs, imm

csrr rd, csr            -> csrrs rd, csr, zero
csrw csr, rs            -> csrrw zero, csr, rs
csrs csr, rs            -> csrrs zero, csr, rs
csrc csr, rs            -> csrrc zero, csr, rs
csrw csr, imm           -> csrrwi zero, csr, imm
csrs csr, imm           -> csrrsi zero, csr, imm
csrc csr, imm           -> csrrci zero, csr, imm
csrwi csr, imm          -> csrrwi zero, csr, imm
csrsi csr, imm          -> csrrsi zero, csr, imm
csrci csr, imm          -> csrrci zero, csr, imm
csrrw rd, csr, imm      -> csrrwi rd, csr, imm
csrrs rd, csr, imm      -> csrrsi rd, csr, imm
csrrc rd, csr, imm      -> csrrci rd, csr, imm
rdcycle rd              -> csrrs rd, cycle, zero
rdtime rd               -> csrrs rd, time, zero
rdinstret rd            -> csrrs rd, instret, zero

fence                   -> fence iorw, iorw
fence.tso               -> .4byte 0x8330000f
sbreak                  -> ebreak
scall                   -> ecall
unimp                   -> .4byte 0xc0001073
"""


@dataclass(frozen=True, slots=True)
class Form:
    """One line of the table: its operands' names and shapes, and the statements that it stands for."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    steps: tuple[tuple[Token, ...], ...]

    def expand(self, operands: list[Tokens], at: int) -> list[list[Token]]:
        """Return the statements with the operands in place; what the table itself says stands at `at`."""
        by_name = dict(zip(self.names, operands, strict=True))
        return [
            [written for token in step for written in by_name.get(token.text, (Token(token.kind, token.text, at),))]
            for step in self.steps
        ]


def _shape_by_name(name: str) -> Shape:
    if name == "mem":
        return Shape.MEMORY
    return Shape.REGISTER if name in {"rd", "rs", "rt"} else Shape.EXPRESSION


def _read_table() -> dict[str, tuple[Form, ...]]:
    forms: dict[str, tuple[Form, ...]] = {}
    for line in _TABLE.split("\n"):
        left, arrow, right = line.partition("->")
        steps = tuple(tuple(step) for step in statements(right))
        if not arrow or any(step[0].text not in BY_NAME and step[0].text != ".4byte" for step in steps):
            continue
        mnemonic, *operands = next(statements(left))
        names = tuple(operand[0].text for operand in split_at_commas(operands))
        form = Form(names, tuple(_shape_by_name(name) for name in names), steps)
        forms[mnemonic.text] = (*forms.get(mnemonic.text, ()), form)
    return forms


PSEUDO: dict[str, tuple[Form, ...]] = _read_table()
"""All forms of each pseudo-instruction, and the further forms of instructions that have some."""

CONSTANT_LOAD = "li"
ADDRESS_LOADS = frozenset({"la", "lla"})
"""`li` of a constant, and what `la` of one is, are made by `load_constant`: how many words they are depends on it."""


def load_constant(rd: int, number: int, *, short: bool) -> list[int]:
    """Return the words that load a signed 64-bit number, as GNU as chooses them.

    `short` takes one `addi` where that is enough (`li`); `la` of a constant takes `addiw`.
    """
    addi = IMMEDIATES[BY_NAME["addi"].format]
    if short and addi.fits(number):
        return [BY_NAME["addi"].match | rd << RD_AT | addi.place(number)]
    words: list[int] = []
    # From the last instruction to the first: twelve bits are taken off at the low end until 32 bits are left.
    while not -(1 << 31) <= number < 1 << 31:
        low = sign_extend(number, 12)
        if low:
            words.append(_word("addi", rd, rd, low))
        upper = sign_extend(number - low, 64)
        shift = max(12, (upper & -upper).bit_length() - 1)
        words.append(_word("slli", rd, rd, shift))
        number = upper >> shift
    low = sign_extend(number, 12)
    upper = number - low
    # GNU as looks at the register that lui has written, so x0 gets an addiw of 0 behind it.
    source = rd if upper else 0
    if low or source == 0:
        words.append(_word("addiw", rd, source, low))
    if upper:
        lui = BY_NAME["lui"]
        words.append(lui.match | rd << RD_AT | IMMEDIATES[lui.format].place(upper))
    return words[::-1]


def _word(name: str, rd: int, rs1: int, number: int) -> int:
    row = BY_NAME[name]
    return row.match | rd << RD_AT | rs1 << RS1_AT | IMMEDIATES[row.format].place(number)
