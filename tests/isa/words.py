"""Words to disassemble and to run: random ones, each of a row of the instruction table."""

import random

from vmmd.isa.csrs import CSR_NUMBERS
from vmmd.isa.encoding import CSR_AT, RD_AT, RS1_AT, RS2_AT, Format
from vmmd.isa.instructions import Instruction

ARCHITECTURE = "-march=rv64ima_zicsr_zifencei"
"""What GNU as has to know to know every instruction of the table."""


def some_word(row: Instruction, chance: random.Random) -> int:
    """Return a word of `row` with random operands; every other register is x0 or ra, whose words have shorter names."""
    free = 0xFFFF_FFFF & ~row.mask
    bits = chance.choice([chance.getrandbits(32), chance.getrandbits(32), 0, 0xFFFF_FFFF, 0x0010_0000])
    for at in (RD_AT, RS1_AT, RS2_AT):
        if chance.random() < 0.5:
            bits = bits & ~(31 << at) | chance.choice([0, 1, chance.randrange(32)]) << at
    if row.format in {Format.CSR, Format.CSR_IMMEDIATE} and chance.random() < 0.8:
        bits = bits & ~(0xFFF << CSR_AT) | chance.choice(list(CSR_NUMBERS.values())) << CSR_AT
    return row.match | bits & free
