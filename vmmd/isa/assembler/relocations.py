"""The bits of an operand whose value waits for addresses, and the check that the value fits.

A rule is what the linker calls a relocation. All are RISC-V's own (psABI), under names that say what they take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from vmmd.isa.assembler.expressions import Expression, Place, Value, wrap
from vmmd.isa.assembler.text import TextError
from vmmd.isa.encoding import IMMEDIATES, Format, Immediate, sign_extend

MASK_64 = (1 << 64) - 1


class Rule(Enum):
    """What of a value goes into the word."""

    DATA = auto()
    """All of it, as a little-endian number."""
    NUMBER = auto()
    """The value, which must be no address."""
    UPPER = auto()
    """The value, as the upper 20 bits of lui and auipc."""
    DISTANCE = auto()
    """The distance from the instruction: a jump's target (R_RISCV_JAL, R_RISCV_BRANCH)."""
    HIGH = auto()
    """The upper 20 bits, rounded so that the low part is signed (R_RISCV_HI20)."""
    LOW = auto()
    """The low 12 bits, signed (R_RISCV_LO12_I, R_RISCV_LO12_S)."""
    PC_HIGH = auto()
    """As HIGH, of the distance from the instruction (R_RISCV_PCREL_HI20)."""
    PC_LOW = auto()
    """As LOW, of the distance that the PC_HIGH at the value's address took (R_RISCV_PCREL_LO12_I and _S)."""


@dataclass(frozen=True, slots=True)
class Distance:
    """What a PC_HIGH took: the distance, or the address itself where `is_absolute`."""

    number: int
    is_absolute: bool


def high_part(number: int) -> int:
    """Return `number` without what a signed 12-bit addition gives it back."""
    return number + 0x800 & ~0xFFF


@dataclass(frozen=True, slots=True)
class Patch:
    """A place of `size` bytes that waits for its value. `immediate` says where the bits lie; data has none."""

    place: Place
    size: int
    expression: Expression
    rule: Rule
    immediate: Immediate | None = None

    def bits(self, value: Value, pc: int, distances: Mapping[int, Distance]) -> int:
        """Return what goes over the zeroes at the address `pc`; `distances` has what each PC_HIGH took, by its address.

        Raises:
            TextError: the value does not fit; the message says what would.
        """
        try:
            if self.immediate is None:
                return _data(self.size, value)
            if self.rule is Rule.PC_LOW:
                return _pc_low(self.immediate, value, distances)
            return _BITS[self.rule](self.immediate, value, pc)
        except ValueError as error:
            raise TextError(str(error), self.expression.at) from None

    def distance(self, value: Value, pc: int) -> Distance:
        """Return what the PC_HIGH at `pc` takes; raises as `bits`."""
        try:
            return _pc_distance(value, pc)
        except ValueError as error:
            raise TextError(str(error), self.expression.at) from None


def _pc_distance(value: Value, pc: int) -> Distance:
    """Return what auipc's operand is made of.

    From far away GNU ld reaches addresses near 0 and near 2^64 with lui in auipc's place; so does this.
    """
    distance = wrap(value.number - pc)
    for candidate in (Distance(distance, is_absolute=False), Distance(value.number, is_absolute=True)):
        if IMMEDIATES[Format.U].fits(high_part(candidate.number)):
            return candidate
    raise ValueError(f"{_address(value)} is {distance} bytes away: auipc reaches -2147485696 to 2147481599")


def _data(size: int, value: Value) -> int:
    lowest, highest = -(1 << 8 * size - 1), (1 << 8 * size) - 1
    if not lowest <= value.number <= highest:
        raise ValueError(f"{value.number} does not fit into {size} bytes: from {lowest} to {highest} do")
    return value.number & highest


def _pc_low(immediate: Immediate, value: Value, distances: Mapping[int, Distance]) -> int:
    found = distances.get(value.number & MASK_64)
    if found is None:
        raise ValueError(f"no instruction with %pcrel_hi is at {_address(value)}")
    return immediate.place(sign_extend(found.number, 12))


def _number(immediate: Immediate, value: Value, pc: int) -> int:
    if not value.is_absolute:
        raise ValueError(f"the address {_address(value)} is no constant: %lo(...) or la take addresses")
    return _placed(immediate, value.number, f"{value.number}")


def _upper(immediate: Immediate, value: Value, pc: int) -> int:
    if not value.is_absolute:
        raise ValueError(f"the address {_address(value)} is no constant: %hi(...) or la take addresses")
    if not 0 <= value.number <= 0xFFFFF:
        raise ValueError(f"{value.number} does not fit into 20 bits: from 0 to 1048575 do")
    return immediate.place(value.number << 12)


def _distance(immediate: Immediate, value: Value, pc: int) -> int:
    distance = wrap(value.number - pc)
    return _placed(immediate, distance, f"the distance {distance} to {_address(value)}")


def _high(immediate: Immediate, value: Value, pc: int) -> int:
    high = high_part(value.number)
    # A constant may also be written as an unsigned number of 32 bits.
    if value.is_absolute and 0 <= value.number < 1 << 32:
        high = sign_extend(high, 32)
    if not immediate.fits(high):
        raise ValueError(f"{_address(value)} is out of lui's reach: from -2147485696 to 2147481599 are in it")
    return immediate.place(high)


def _low(immediate: Immediate, value: Value, pc: int) -> int:
    return immediate.place(sign_extend(value.number, 12))


def _pc_high(immediate: Immediate, value: Value, pc: int) -> int:
    taken = _pc_distance(value, pc)
    return immediate.place(high_part(taken.number)) | (_AUIPC_TO_LUI if taken.is_absolute else 0)


WITHOUT_PC = frozenset({Rule.DATA, Rule.NUMBER, Rule.UPPER, Rule.HIGH, Rule.LOW})
"""The rules that need nothing but a number, so that a constant can be put in at once."""

_AUIPC_TO_LUI = 0x37 & ~0x17

_BITS: dict[Rule, Callable[[Immediate, Value, int], int]] = {
    Rule.NUMBER: _number,
    Rule.UPPER: _upper,
    Rule.DISTANCE: _distance,
    Rule.HIGH: _high,
    Rule.LOW: _low,
    Rule.PC_HIGH: _pc_high,
}


def _placed(immediate: Immediate, number: int, what: str) -> int:
    if not immediate.fits(number):
        step = immediate.step
        highest = immediate.highest // step * step
        multiples = f" multiples of {step}" if step > 1 else ""
        raise ValueError(f"{what} does not fit:{multiples} from {immediate.lowest} to {highest} do")
    return immediate.place(number)


def _address(value: Value) -> str:
    return f"{value.number & MASK_64:#x}"
