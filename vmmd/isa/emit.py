"""Code under construction: the `Ops` that meanings are written in, over LLVM's builder, and the rows made of them.

A row's operands are read, its meaning is asked for, and what comes of it is written; then the function goes on with
the next instruction. What needs the world outside is left to the evaluation.
"""

from __future__ import annotations

from llvmlite import ir

from vmmd.isa.accesses import Accesses
from vmmd.isa.arithmetic import I8, I32, I64, number, widened
from vmmd.isa.encoding import CSR_AT, IMMEDIATES, RD_AT, RS1_AT, RS2_AT, Immediate
from vmmd.isa.instructions import SHAPES, Effect, Instruction, Operand

_REGISTERS = {Operand.RS1: RS1_AT, Operand.RS2: RS2_AT, Operand.RD: RD_AT}
"""Where the registers of operands are named."""


class Code(Accesses):
    """The body of one instruction's function."""

    # A row of the instruction table.

    def perform(self, row: Instruction) -> None:
        """Do what a row means, and go on with the next instruction."""
        b, shape = self.b, SHAPES[row.format]
        result = row.meaning(self, *[self._operand(kind, row) for kind in shape.operands])
        if b.block.is_terminated:
            return
        after = b.add(self.state["pc"], number(4))
        if shape.effect is Effect.BRANCH:
            # Two ways on, and no choice between two values: so the host predicts the guest's branch.
            with b.if_then(result):
                target = b.add(self.state["pc"], self._immediate(row))
                self._refuse_misaligned(target)
                self._retire(target)
            self._retire(after)
            return
        if shape.effect is Effect.JUMP:
            self._refuse_misaligned(result)
            self._write_rd(after)
            after = result
        elif shape.effect is Effect.WRITE:
            self._write_rd(result)
        self._retire(after)

    def _retire(self, next_pc: ir.Value) -> None:
        before = dict(self.state)
        self.state["pc"] = next_pc
        self.state["fuel"] = self.b.sub(self.state["fuel"], number(1))
        self.go_on()
        self.state = before

    def _refuse_misaligned(self, target: ir.Value) -> None:
        b = self.b
        with b.if_then(b.icmp_unsigned("!=", b.and_(target, number(3)), number(0)), likely=False):
            self.leave_here()

    def _register(self, field_at: int) -> ir.Value:
        """Return the address of the register that a field of the word names."""
        b = self.b
        # Shifted so that the field is already the byte offset into x, eight bytes a register.
        offset = b.and_(b.lshr(self.state["word"], number(field_at - 3, I32)), number(31 << 3, I32))
        return b.gep(self.context, [b.zext(offset, I64)], source_etype=I8)

    def _write_rd(self, value: ir.Value) -> None:
        b = self.b
        b.store(value, self._register(RD_AT))
        # x0 is written like any other and set to 0 again: that costs less than to look.
        b.store(number(0), self.field("x"))

    def _field(self, at: int, width: int) -> ir.Value:
        """Return a field of the word as it is."""
        b = self.b
        shifted = b.lshr(self.state["word"], number(at, I32))
        return b.zext(b.and_(shifted, number((1 << width) - 1, I32)), I64)

    def _immediate(self, row: Instruction) -> ir.Value:
        return _extracted(self.b, self.state["word"], IMMEDIATES[row.format])

    def _operand(self, kind: Operand, row: Instruction) -> ir.Value:
        match kind:
            case Operand.RS1 | Operand.RS2 | Operand.RD:
                return self.b.load(self._register(_REGISTERS[kind]), typ=I64)
            case Operand.IMMEDIATE:
                return self._immediate(row)
            case Operand.PC:
                return self.state["pc"]
            case Operand.SUM:
                return self.b.add(self.b.load(self._register(RS1_AT), typ=I64), self._immediate(row))
            case Operand.CSR:
                return self._field(CSR_AT, 12)
            case Operand.SOURCE:
                return self._field(RS1_AT, 5)

    # What leaves the guest, or orders memory.

    def fence(self) -> None:
        """See `Ops`."""
        self.b.fence("seq_cst")

    def fence_code(self) -> None:
        """Have translated code compared anew; other fetches read the bytes each time, behind this vCPU's stores."""
        self.b.fence("seq_cst")
        self.call_part("forget_code", [self.context])

    def port_in(self, port: ir.Value, size: int) -> ir.Value:
        """Leave it to the evaluation."""
        self.leave_here()
        return number(0)

    def port_out(self, port: ir.Value, value: ir.Value, size: int) -> None:
        """Leave it to the evaluation."""
        self.leave_here()

    def wait_for_interrupt(self) -> None:
        """Leave it to the evaluation."""
        self.leave_here()

    def environment_call(self) -> None:
        """Leave it to the evaluation."""
        self.leave_here()

    def breakpoint(self) -> None:
        """Leave it to the evaluation."""
        self.leave_here()

    def return_from_trap(self) -> None:
        """Leave it to the evaluation."""
        self.leave_here()

    def change_csr(self, change: str, csr: ir.Value, value: ir.Value, source: ir.Value) -> ir.Value:
        """Leave it to the evaluation."""
        self.leave_here()
        return number(0)


def _extracted(b: ir.IRBuilder, word: ir.Value, immediate: Immediate) -> ir.Value:
    """Return the immediate of a word, as 64 bits."""
    value: ir.Value = number(0, I32)
    for piece in immediate.slices:
        bits = b.and_(b.lshr(word, number(piece.at, I32)), number((1 << piece.width) - 1, I32))
        value = b.or_(value, b.shl(bits, number(piece.to, I32)))
    if immediate.signed:
        spare = number(32 - immediate.width, I32)
        value = b.ashr(b.shl(value, spare), spare)
    return widened(b, value, signed=immediate.signed)
