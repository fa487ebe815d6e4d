"""Code under construction: the state of one function, and the `Ops` that meanings are written in, over LLVM's builder.

Here is what every function of the compiled engine is made of: the context's fields, jumps to other functions, ways
out of guest mode, loads and stores through cached translations. Which functions there are is `compile`'s business.

Guest accesses are aligned monotonic atomics, or plain accesses where an address is misaligned; both are one machine
instruction on the hosts that vmmd runs on.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from llvmlite import ir

from vmmd.isa.arithmetic import I8, I16, I32, I64, Arithmetic, number, widened
from vmmd.isa.context import CACHE_ENTRIES, NOT_RESERVED, REGION_SHIFT, CacheEntry, ContextRecord
from vmmd.isa.encoding import IMMEDIATES, RD_AT, RS1_AT, RS2_AT, Immediate
from vmmd.isa.instructions import SHAPES, Effect, Instruction, Operand
from vmmd.isa.stop import Stop
from vmmd.memory.limits import PAGE_SHIFT
from vmmd.memory.memslots import KVM_MEM_READONLY

PTR = ir.PointerType()
NULL = ir.Constant(PTR, None)
_SIZED = {1: I8, 2: I16, 4: I32, 8: I64}

_ATOMIC_RMW = {"swap": "xchg", "minu": "umin", "maxu": "umax"}
"""LLVM's names, where they are others."""

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


class Code(Arithmetic):
    """The body of one function whose first argument is a context.

    Attributes:
        b: LLVM's builder, at the place where the next instruction goes.
        state: the state in hand, where the function takes one.
    """

    def __init__(self, parts: Parts, function: ir.Function) -> None:
        self.parts = parts
        self.b = ir.IRBuilder(function.append_basic_block("entry"))
        self.context = function.args[0]
        self.state: dict[str, ir.Value] = {}
        if function.function_type is HANDLER:
            self.state = dict(zip(STATE, function.args, strict=True))

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

    def settle(self, retired: ir.Value) -> ir.Value:
        """Count retired instructions of the chunk, and return what is left of the budget."""
        self.put("retired", self.b.add(self.get("retired"), retired))
        left = self.b.sub(self.get("budget"), retired)
        self.put("budget", left)
        return left

    def stop(self, stop: Stop) -> None:
        """End this path and guest mode, before the instruction at pc."""
        self.settle(self.b.sub(self.get("chunk"), self.state["fuel"]))
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

    # Guest memory.

    def cache_entry(self, cache: str, gpa: ir.Value, shift: int = REGION_SHIFT) -> ir.Value:
        """Return the one entry of a cache that may hold an address's translation; `shift` is how it is spread."""
        b = self.b
        index = b.and_(b.lshr(gpa, number(shift)), number(CACHE_ENTRIES - 1))
        offset = b.mul(index, number(ctypes.sizeof(CacheEntry)))
        return b.gep(self.field(cache), [offset], source_etype=I8)

    def entry_field(self, entry: ir.Value, name: str) -> ir.Value:
        """Return the address of a cache entry's field."""
        return self.b.gep(entry, [number(getattr(CacheEntry, name).offset)], source_etype=I8)

    def entry(self, entry: ir.Value, name: str) -> ir.Value:
        """Return a cache entry's field."""
        return self.b.load(self.entry_field(entry, name), typ=I64)

    def translate(self, gpa: ir.Value, *, writing: bool) -> ir.Value:
        """Ask the cache behind the first, or search the view: the first one's entry, filled, or null."""
        cache, pages, refused = (
            ("write_cache", "write_pages", KVM_MEM_READONLY) if writing else ("read_cache", "read_pages", 0)
        )
        near, far = self.cache_entry(cache, gpa), self.cache_entry(pages, gpa, PAGE_SHIFT)
        return self.b.call(self.parts.translate, [self.context, gpa, near, far, number(refused)])

    def _reach(self, gpa: ir.Value, size: int, *, writing: bool) -> tuple[ir.Value, ir.Value]:
        """Return the cache entry that covers an access whole, and the access's offset in it; leave where none does.

        `offset <= entry.size - size` is the whole check: no entry is smaller than eight bytes.
        """
        b = self.b
        entry = self.cache_entry("write_cache" if writing else "read_cache", gpa)
        offset = b.sub(gpa, self.entry(entry, "gpa"))
        hit = b.icmp_unsigned("<=", offset, b.sub(self.entry(entry, "size"), number(size)))
        hit_block, miss, found, done = b.block, *(b.append_basic_block(name) for name in ("miss", "found", "reached"))
        branch = b.cbranch(hit, done, miss)
        branch.set_weights([99, 1])
        b.position_at_end(miss)
        filled = self.translate(gpa, writing=writing)
        with b.if_then(b.icmp_unsigned("==", filled, NULL), likely=False):
            self.tail(self.parts.leave)
        far = b.sub(gpa, self.entry(filled, "gpa"))
        within = b.icmp_unsigned("<=", far, b.sub(self.entry(filled, "size"), number(size)))
        beyond = b.append_basic_block("beyond")
        b.cbranch(within, found, beyond)
        b.position_at_end(beyond)
        self.tail(self.parts.leave)
        b.position_at_end(found)
        b.branch(done)
        b.position_at_end(done)
        merged = b.phi(I64)
        merged.add_incoming(offset, hit_block)
        merged.add_incoming(far, found)
        # A miss fills the very entry that was asked first.
        return entry, merged

    def _aligned(self, gpa: ir.Value, size: int) -> ir.Value:
        return self.b.icmp_unsigned("==", self.b.and_(gpa, number(size - 1)), number(0))

    def load(self, address: ir.Value, size: int, *, signed: bool) -> ir.Value:
        """See `Ops`."""
        b, kind = self.b, _SIZED[size]
        entry, offset = self._reach(address, size, writing=False)
        host = b.inttoptr(b.add(self.entry(entry, "host"), offset), PTR)
        if size == 1:
            value = b.load_atomic(host, "monotonic", 1, typ=kind)
        else:
            with b.if_else(self._aligned(address, size), likely=True) as (aligned, misaligned):
                with aligned:
                    whole, whole_block = b.load_atomic(host, "monotonic", size, typ=kind), b.block
                with misaligned:
                    pieces, pieces_block = b.load(host, align=1, typ=kind), b.block
            value = b.phi(kind)
            value.add_incoming(whole, whole_block)
            value.add_incoming(pieces, pieces_block)
        return widened(b, value, signed=signed)

    def store(self, address: ir.Value, value: ir.Value, size: int) -> None:
        """See `Ops`."""
        b = self.b
        entry, offset = self._reach(address, size, writing=True)
        host = b.inttoptr(b.add(self.entry(entry, "host"), offset), _SIZED[size].as_pointer())
        narrow = value if size == 8 else b.trunc(value, _SIZED[size])
        if size == 1:
            b.store_atomic(narrow, host, "monotonic", 1)
        else:
            with b.if_else(self._aligned(address, size), likely=True) as (aligned, misaligned):
                with aligned:
                    b.store_atomic(narrow, host, "monotonic", size)
                with misaligned:
                    b.store(narrow, host, align=1)
        self._log_store(entry, address, size)

    def _log_store(self, entry: ir.Value, address: ir.Value, size: int) -> None:
        """Mark what was stored, where its slot is logged."""
        b = self.b
        # The store came first and its mark comes after it: whoever takes the log then waits until this is done.
        log = self.entry(entry, "log")
        with b.if_then(b.icmp_unsigned("!=", log, number(0)), likely=False):
            first, slot = b.sub(address, self.entry(entry, "log_gpa")), self.entry(entry, "slot")
            last = b.add(first, number(size - 1))
            self._mark(log, first, slot)
            pages = b.xor(b.lshr(first, number(PAGE_SHIFT)), b.lshr(last, number(PAGE_SHIFT)))
            with b.if_then(b.icmp_unsigned("!=", pages, number(0)), likely=False):
                self._mark(log, last, slot)

    # Atomics. A misaligned one, and one that is not whole in writable memory, is the evaluation's.

    def _atomic_place(self, address: ir.Value, size: int) -> tuple[ir.Value, ir.Value]:
        """Return the cache entry and the typed host pointer of an atomic access."""
        b = self.b
        with b.if_then(b.not_(self._aligned(address, size)), likely=False):
            self.tail(self.parts.leave)
        entry, offset = self._reach(address, size, writing=True)
        return entry, b.inttoptr(b.add(self.entry(entry, "host"), offset), _SIZED[size].as_pointer())

    def amo(self, operation: str, address: ir.Value, value: ir.Value, size: int) -> ir.Value:
        """See `Ops`."""
        b = self.b
        entry, host = self._atomic_place(address, size)
        narrow = value if size == 8 else b.trunc(value, _SIZED[size])
        before = b.atomic_rmw(_ATOMIC_RMW.get(operation, operation), host, narrow, "seq_cst")
        self._log_store(entry, address, size)
        return widened(b, before, signed=True)

    def load_reserved(self, address: ir.Value, size: int) -> ir.Value:
        """See `Ops`."""
        b = self.b
        _, host = self._atomic_place(address, size)
        value = widened(b, b.load_atomic(host, "seq_cst", size, typ=_SIZED[size]), signed=True)
        self.put("reserved_at", address)
        self.put("reserved_value", value)
        return value

    def store_conditional(self, address: ir.Value, value: ir.Value, size: int) -> ir.Value:
        """See `Ops`."""
        b, kind = self.b, _SIZED[size]
        entry, host = self._atomic_place(address, size)
        reserved, expected = self.get("reserved_at"), self.get("reserved_value")
        self.put("reserved_at", number(NOT_RESERVED))
        stands = b.icmp_unsigned("==", reserved, address)
        before = b.block
        with b.if_then(stands):
            old, new = (word if size == 8 else b.trunc(word, kind) for word in (expected, value))
            done = b.extract_value(b.cmpxchg(host, old, new, "seq_cst", "seq_cst"), 1)
            with b.if_then(done):
                self._log_store(entry, address, size)
            failed, after = b.zext(b.not_(done), I64), b.block
        result = b.phi(I64)
        result.add_incoming(number(1), before)
        result.add_incoming(failed, after)
        return result

    def _mark(self, log: ir.Value, offset: ir.Value, slot: ir.Value) -> None:
        """Mark the page of a byte of a slot; look first, for most stores are to a page that is marked."""
        b = self.b
        word, bit = self.mark_of(log, b.lshr(offset, number(PAGE_SHIFT)))
        with b.if_then(self.lacks(b.load_atomic(word, "monotonic", 8, typ=I64), bit), likely=False):
            b.call(self.parts.mark, [self.context, log, offset, slot])

    def mark_of(self, log: ir.Value, page: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the address of the word that has a page's mark, and its bit."""
        b = self.b
        byte = b.shl(b.lshr(page, number(6)), number(3))
        return b.inttoptr(b.add(log, byte), PTR), b.shl(number(1), b.and_(page, number(63)))

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
            self.tail(self.parts.leave)

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

    def _immediate(self, row: Instruction) -> ir.Value:
        return _extracted(self.b, self.state["word"], IMMEDIATES[row.format])

    def _operand(self, kind: Operand, row: Instruction) -> ir.Value:
        match kind:
            case Operand.RS1:
                return self.b.load(self._register(RS1_AT), typ=I64)
            case Operand.RS2:
                return self.b.load(self._register(RS2_AT), typ=I64)
            case Operand.RD:
                return self.b.load(self._register(RD_AT), typ=I64)
            case Operand.IMMEDIATE:
                return self._immediate(row)
            case Operand.PC:
                return self.state["pc"]
            case Operand.SUM:
                return self.b.add(self.b.load(self._register(RS1_AT), typ=I64), self._immediate(row))

    # What leaves the guest, or orders memory.

    def fence(self) -> None:
        """See `Ops`."""
        self.b.fence("seq_cst")

    def fence_code(self) -> None:
        """Every fetch reads the bytes anew; the fence keeps this vCPU's own stores ahead of it."""
        self.b.fence("seq_cst")

    def port_in(self, port: ir.Value, size: int) -> ir.Value:
        """Leave it to the evaluation."""
        self.tail(self.parts.leave)
        return number(0)

    def port_out(self, port: ir.Value, value: ir.Value, size: int) -> None:
        """Leave it to the evaluation."""
        self.tail(self.parts.leave)

    def wait_for_interrupt(self) -> None:
        """Leave it to the evaluation."""
        self.tail(self.parts.leave)

    def environment_call(self) -> None:
        """Leave it to the evaluation."""
        self.tail(self.parts.leave)

    def breakpoint(self) -> None:
        """Leave it to the evaluation."""
        self.tail(self.parts.leave)


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
