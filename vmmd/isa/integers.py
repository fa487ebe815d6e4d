"""The evaluation's arithmetic: the half of `Ops` that touches nothing, over Python integers from 0 to 2^64 - 1."""

from __future__ import annotations

from vmmd.isa.encoding import sign_extend
from vmmd.memory.limits import U64


class Integers:
    """Arithmetic of 64 bits. What each operation means stands in `instructions.Ops`."""

    def constant(self, value: int) -> int:
        return value & U64

    def add(self, a: int, b: int) -> int:
        return a + b & U64

    def sub(self, a: int, b: int) -> int:
        return a - b & U64

    def mul(self, a: int, b: int) -> int:
        return a * b & U64

    def mul_high(self, a: int, b: int, *, a_signed: bool, b_signed: bool) -> int:
        return _read(a, signed=a_signed) * _read(b, signed=b_signed) >> 64 & U64

    def div(self, a: int, b: int, *, signed: bool) -> int:
        if b == 0:
            return U64
        dividend, divisor = _read(a, signed=signed), _read(b, signed=signed)
        quotient = abs(dividend) // abs(divisor)
        return (quotient if (dividend < 0) == (divisor < 0) else -quotient) & U64

    def rem(self, a: int, b: int, *, signed: bool) -> int:
        if b == 0:
            return a
        dividend, divisor = _read(a, signed=signed), _read(b, signed=signed)
        remainder = abs(dividend) % abs(divisor)
        return (remainder if dividend >= 0 else -remainder) & U64

    def and_(self, a: int, b: int) -> int:
        return a & b

    def or_(self, a: int, b: int) -> int:
        return a | b

    def xor(self, a: int, b: int) -> int:
        return a ^ b

    def shift_left(self, a: int, by: int) -> int:
        return a << (by & 63) & U64

    def shift_right(self, a: int, by: int, *, signed: bool) -> int:
        return _read(a, signed=signed) >> (by & 63) & U64

    def extend(self, a: int, bits: int, *, signed: bool) -> int:
        return sign_extend(a, bits) & U64 if signed else a & (1 << bits) - 1

    def equal(self, a: int, b: int) -> int:
        return a == b

    def less(self, a: int, b: int, *, signed: bool) -> int:
        return _read(a, signed=signed) < _read(b, signed=signed)

    def not_(self, truth: int) -> int:
        return not truth

    def number(self, truth: int) -> int:
        return int(truth)


def _read(value: int, *, signed: bool) -> int:
    return sign_extend(value, 64) if signed else value
