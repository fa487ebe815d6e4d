"""The frame of a function of the compiled engine: its state, the context's fields, and where control goes.

What a function does with it stands in `accesses` and `emit`; which functions there are is `compile`'s business.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from vmmd.isa.arithmetic import I8, I32, I64, Arithmetic, number
from vmmd.isa.context import ContextRecord
from vmmd.isa.stop import Stop

PTR = ir.PointerType()
NULL = ir.Constant(PTR, None)

STATE = ("context", "pc", "fuel", "code_gpa", "code_size", "code_host", "word")
"""What one instruction hands to the next. fuel: instructions left in the chunk. code: the run that pc is in."""

HANDLER = ir.FunctionType(I64, (PTR, I64, I64, I64, I64, I64, I32))
"""A function of the state; it gives the `Stop` at the end of the chain."""

CONVENTION = "preserve_nonecc"
"""Passes up to a dozen arguments in registers and saves none of the caller's, as threaded interpreters want it."""


@dataclass(slots=True)
class Parts:
    """The functions and the table that code refers to."""

    translate: ir.Function
    mark: ir.Function
    dispatch: ir.Function
    refill: ir.Function
    refetch: ir.Function
    leave: ir.Function
    handlers: ir.GlobalVariable
    note_code: ir.Function
    forget_code: ir.Function


class Frame(Arithmetic):
    """The body of one function whose first argument is a context.

    Attributes:
        b: LLVM's builder, at the place where the next instruction goes.
        state: the state in hand, where the function takes one.
    """

    def __init__(self, parts: Parts | None, function: ir.Function) -> None:
        self._parts = parts
        self.b = ir.IRBuilder(function.append_basic_block("entry"))
        self.context = function.args[0]
        self.state: dict[str, ir.Value] = {}
        if function.function_type is HANDLER:
            self.state = dict(zip(STATE, function.args, strict=True))

    @property
    def parts(self) -> Parts:
        """What the code refers to; a region refers to nothing."""
        assert self._parts is not None, "a region finds what it calls through its context"  # noqa: S101
        return self._parts

    # The context's fields.

    def field(self, name: str) -> ir.Value:
        """Return the address of a field of the context."""
        return self.b.gep(self.context, [number(getattr(ContextRecord, name).offset)], source_etype=I8)

    def get(self, name: str) -> ir.Value:
        """Read a field that no one else writes meanwhile."""
        return self.b.load(self.field(name), typ=I64)

    def put(self, name: str, value: ir.Value) -> None:
        """Write a field that no one else reads meanwhile."""
        self.b.store(value, self.field(name))

    def get_shared(self, name: str) -> ir.Value:
        """Read a field of the handshake."""
        return self.b.load_atomic(self.field(name), "monotonic", 8, typ=I64)

    def put_shared(self, name: str, value: ir.Value, ordering: str = "monotonic") -> None:
        """Write a field of the handshake."""
        # llvmlite takes an atomic store through a typed pointer only.
        field = self.b.inttoptr(self.b.ptrtoint(self.field(name), I64), I64.as_pointer())
        self.b.store_atomic(value, field, ordering, 8)

    def word(self, record: ir.Value, index: int) -> ir.Value:
        """Read the 64-bit word of a record with that index."""
        return self.b.load(self.b.gep(record, [number(index * 8)], source_etype=I8), typ=I64)

    def element(self, array: str, kind: type[ctypes.Structure], index: ir.Value) -> ir.Value:
        """Return the address of a record in an array of the context's."""
        return self.b.gep(self.field(array), [self.b.mul(index, number(ctypes.sizeof(kind)))], source_etype=I8)

    def loop(self, count: ir.Value, body: Callable[[ir.Value], None]) -> None:
        """Run a body for 0 … count-1, and be behind it then; the body may end the function."""
        b = self.b
        before = b.block
        head, inside, after = (b.append_basic_block(name) for name in ("head", "body", "after"))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(number(0), before)
        b.cbranch(b.icmp_unsigned("<", index, count), inside, after)
        b.position_at_end(inside)
        body(index)
        index.add_incoming(b.add(index, number(1)), b.block)
        b.branch(head)
        b.position_at_end(after)

    def put_word(self, record: ir.Value, index: int, value: ir.Value) -> None:
        """Write the 64-bit word of a record with that index."""
        self.b.store(value, self.b.gep(record, [number(index * 8)], source_etype=I8))

    def is_zero(self, value: ir.Value) -> ir.Value:
        """Tell whether a value is 0."""
        return self.b.icmp_unsigned("==", value, number(0))

    def lacks(self, word: ir.Value, bit: ir.Value) -> ir.Value:
        """Tell whether a word does not have a bit."""
        return self.b.icmp_unsigned("==", self.b.and_(word, bit), number(0))

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Return the smaller of two unsigned values."""
        return self.b.select(self.b.icmp_unsigned("<", a, b), a, b)

    # Where control goes.

    def tail(self, function: ir.Value) -> None:
        """End this path in a jump to a function that takes the state."""
        arguments = [self.state[name] for name in STATE]
        self.b.ret(self.b.call(function, arguments, cconv=CONVENTION, tail="musttail"))

    def leave_here(self) -> None:
        """End this path before the instruction at pc, which is the evaluation's."""
        self.tail(self.parts.leave)

    def settle(self, retired: ir.Value) -> ir.Value:
        """Count retired instructions of the chunk, and return what is left of the budget."""
        self.put("retired", self.b.add(self.get("retired"), retired))
        left = self.b.sub(self.get("budget"), retired)
        self.put("budget", left)
        return left

    def settle_chunk(self) -> ir.Value:
        """Count what has retired of the chunk, and return what is left of the budget."""
        return self.settle(self.b.sub(self.get("chunk"), self.state["fuel"]))

    def stop(self, stop: Stop) -> None:
        """End this path and guest mode, before the instruction at pc."""
        self.settle_chunk()
        self.put("pc", self.state["pc"])
        self.b.ret(number(stop))

    def stop_if(self, truth: ir.Value, stop: Stop) -> None:
        """End guest mode where all is settled already."""
        with self.b.if_then(truth, likely=False):
            self.b.ret(number(stop))

    def go_on(self) -> None:
        """Jump to the function of the instruction at pc."""
        b, state = self.b, self.state
        with b.if_then(b.icmp_unsigned("==", state["fuel"], number(0)), likely=False):
            self.tail(self.parts.refill)
        # pc and the run's borders are multiples of four: no word reaches over the end.
        offset = b.sub(state["pc"], state["code_gpa"])
        with b.if_then(b.icmp_unsigned(">=", offset, state["code_size"]), likely=False):
            self.tail(self.parts.refetch)
        word = b.load_atomic(b.inttoptr(b.add(state["code_host"], offset), PTR), "monotonic", 4, typ=I32)
        state["word"] = word
        cell = b.gep(self.parts.handlers, [self._key(word)], source_etype=PTR)
        self.tail(b.load(cell, typ=HANDLER.as_pointer()))

    def _key(self, word: ir.Value) -> ir.Value:
        b = self.b
        parts = [b.and_(word, number(0x7F, I32))]
        for shift, mask in ((5, 0x380), (15, 0x400), (19, 0x800)):
            parts.append(b.and_(b.lshr(word, number(shift, I32)), number(mask, I32)))
        key = parts[0]
        for part in parts[1:]:
            key = b.or_(key, part)
        return b.zext(key, I64)
