"""The half of `Ops` that only computes, over LLVM's builder.

Every operation has RISC-V's result for every operand, where LLVM's own would trap or be undefined: division by zero
and of the smallest number, shifts past the width. What each method means stands in `instructions.Ops`.
"""

from __future__ import annotations

from llvmlite import ir

I1, I8, I16, I32, I64, I128 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64, 128))


def number(value: int, kind: ir.IntType = I64) -> ir.Constant:
    """Return a constant."""
    return ir.Constant(kind, value)


def widened(b: ir.IRBuilder, value: ir.Value, *, signed: bool) -> ir.Value:
    """Extend a value of any width to 64 bits."""
    if value.type == I64:
        return value
    return b.sext(value, I64) if signed else b.zext(value, I64)


class Arithmetic:
    """Operations on 64-bit values and truth values; `b` is the builder that they go to."""

    b: ir.IRBuilder

    def constant(self, value: int) -> ir.Value:
        return number(value)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.add(a, b)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.sub(a, b)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.mul(a, b)

    def mul_high(self, a: ir.Value, b: ir.Value, *, a_signed: bool, b_signed: bool) -> ir.Value:
        wide_a = self.b.sext(a, I128) if a_signed else self.b.zext(a, I128)
        wide_b = self.b.sext(b, I128) if b_signed else self.b.zext(b, I128)
        return self.b.trunc(self.b.lshr(self.b.mul(wide_a, wide_b), number(64, I128)), I64)

    def div(self, a: ir.Value, b: ir.Value, *, signed: bool) -> ir.Value:
        by_zero, safe = self._divisor(a, b, signed=signed)
        quotient = self.b.sdiv(a, safe) if signed else self.b.udiv(a, safe)
        # The smallest number divided by 1 is itself: what RISC-V gives for its division by -1.
        return self.b.select(by_zero, number(-1), quotient)

    def rem(self, a: ir.Value, b: ir.Value, *, signed: bool) -> ir.Value:
        by_zero, safe = self._divisor(a, b, signed=signed)
        remainder = self.b.srem(a, safe) if signed else self.b.urem(a, safe)
        return self.b.select(by_zero, a, remainder)

    def _divisor(self, a: ir.Value, b: ir.Value, *, signed: bool) -> tuple[ir.Value, ir.Value]:
        """Return whether it is zero, and the divisor with 1 in the place of those that LLVM does not define."""
        by_zero = self.b.icmp_unsigned("==", b, number(0))
        undefined = by_zero
        if signed:
            smallest = self.b.icmp_unsigned("==", a, number(1 << 63))
            overflow = self.b.and_(smallest, self.b.icmp_unsigned("==", b, number(-1)))
            undefined = self.b.or_(by_zero, overflow)
        return by_zero, self.b.select(undefined, number(1), b)

    def and_(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.and_(a, b)

    def or_(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.or_(a, b)

    def xor(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.xor(a, b)

    def shift_left(self, a: ir.Value, by: ir.Value) -> ir.Value:
        return self.b.shl(a, self.b.and_(by, number(63)))

    def shift_right(self, a: ir.Value, by: ir.Value, *, signed: bool) -> ir.Value:
        bounded = self.b.and_(by, number(63))
        return self.b.ashr(a, bounded) if signed else self.b.lshr(a, bounded)

    def extend(self, a: ir.Value, bits: int, *, signed: bool) -> ir.Value:
        return widened(self.b, self.b.trunc(a, ir.IntType(bits)), signed=signed)

    def equal(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.icmp_unsigned("==", a, b)

    def less(self, a: ir.Value, b: ir.Value, *, signed: bool) -> ir.Value:
        return self.b.icmp_signed("<", a, b) if signed else self.b.icmp_unsigned("<", a, b)

    def not_(self, truth: ir.Value) -> ir.Value:
        return self.b.xor(truth, number(1, I1))

    def number(self, truth: ir.Value) -> ir.Value:
        return self.b.zext(truth, I64)
