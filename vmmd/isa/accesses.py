"""Guest memory in compiled code: loads, stores and atomics through cached translations, and the marks of dirty logs.

Plain accesses are aligned monotonic atomics, or ordinary ones where an address is misaligned; both are one machine
instruction on the hosts that vmmd runs on. RISC-V's atomics are sequentially consistent.
"""

from __future__ import annotations

import ctypes

from llvmlite import ir

from vmmd.isa.arithmetic import I8, I16, I32, I64, number, widened
from vmmd.isa.context import CACHE_ENTRIES, NOT_RESERVED, REGION_SHIFT, CacheEntry
from vmmd.isa.frame import NULL, PTR, Frame
from vmmd.memory.limits import PAGE_SHIFT
from vmmd.memory.region import KVM_MEM_READONLY

SIZED = {1: I8, 2: I16, 4: I32, 8: I64}

_ATOMIC_RMW = {"swap": "xchg", "minu": "umin", "maxu": "umax"}
"""LLVM's names, where they are others."""


class Accesses(Frame):
    """A frame that reaches guest memory."""

    def call_part(self, name: str, arguments: list[ir.Value]) -> ir.Value:
        """Call one of the functions of `Parts` that do not end the path."""
        return self.b.call(getattr(self.parts, name), arguments)

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
        return self.call_part("translate", [self.context, gpa, near, far, number(refused)])

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
            self.leave_here()
        far = b.sub(gpa, self.entry(filled, "gpa"))
        within = b.icmp_unsigned("<=", far, b.sub(self.entry(filled, "size"), number(size)))
        beyond = b.append_basic_block("beyond")
        b.cbranch(within, found, beyond)
        b.position_at_end(beyond)
        self.leave_here()
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
        b, kind = self.b, SIZED[size]
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
        entry, offset = self._reach(address, size, writing=True)
        self.put_bytes(self.b.add(self.entry(entry, "host"), offset), address, value, size)
        self.note_store(entry, address, size)

    def put_bytes(self, host_address: ir.Value, address: ir.Value, value: ir.Value, size: int) -> None:
        """Store at a host address; `address` tells whether it is aligned."""
        b = self.b
        host = b.inttoptr(host_address, SIZED[size].as_pointer())
        narrow = value if size == 8 else b.trunc(value, SIZED[size])
        if size == 1:
            b.store_atomic(narrow, host, "monotonic", 1)
        else:
            with b.if_else(self._aligned(address, size), likely=True) as (aligned, misaligned):
                with aligned:
                    b.store_atomic(narrow, host, "monotonic", size)
                with misaligned:
                    b.store(narrow, host, align=1)

    def note_store(self, entry: ir.Value, address: ir.Value, size: int) -> None:
        """Take note of what was stored, where its slot is logged or its page has translated code."""
        with self.b.if_then(self.b.icmp_unsigned("!=", self.entry(entry, "watched"), number(0)), likely=False):
            self.mark_store(entry, address, size)
            is_code = self.b.icmp_unsigned("!=", self.entry(entry, "code"), number(0))
            with self.b.if_then(is_code):
                self.call_part("note_code", [self.context, entry, address, number(size)])

    def mark_store(self, entry: ir.Value, address: ir.Value, size: int) -> None:
        """Mark what was stored, where its slot is logged."""
        b = self.b
        # The store came first and its mark comes after it: whoever takes the log then waits until this is done.
        log = self.entry(entry, "log")
        with b.if_then(b.icmp_unsigned("!=", log, number(0))):
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
            self.leave_here()
        entry, offset = self._reach(address, size, writing=True)
        return entry, b.inttoptr(b.add(self.entry(entry, "host"), offset), SIZED[size].as_pointer())

    def amo(self, operation: str, address: ir.Value, value: ir.Value, size: int) -> ir.Value:
        """See `Ops`."""
        b = self.b
        entry, host = self._atomic_place(address, size)
        narrow = value if size == 8 else b.trunc(value, SIZED[size])
        before = b.atomic_rmw(_ATOMIC_RMW.get(operation, operation), host, narrow, "seq_cst")
        self.note_store(entry, address, size)
        return widened(b, before, signed=True)

    def load_reserved(self, address: ir.Value, size: int) -> ir.Value:
        """See `Ops`."""
        b = self.b
        _, host = self._atomic_place(address, size)
        value = widened(b, b.load_atomic(host, "seq_cst", size, typ=SIZED[size]), signed=True)
        self.put("reserved_at", address)
        self.put("reserved_value", value)
        return value

    def store_conditional(self, address: ir.Value, value: ir.Value, size: int) -> ir.Value:
        """See `Ops`."""
        b, kind = self.b, SIZED[size]
        entry, host = self._atomic_place(address, size)
        reserved, expected = self.get("reserved_at"), self.get("reserved_value")
        self.put("reserved_at", number(NOT_RESERVED))
        stands = b.icmp_unsigned("==", reserved, address)
        before = b.block
        with b.if_then(stands):
            old, new = (word if size == 8 else b.trunc(word, kind) for word in (expected, value))
            done = b.extract_value(b.cmpxchg(host, old, new, "seq_cst", "seq_cst"), 1)
            with b.if_then(done):
                self.note_store(entry, address, size)
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
            self.call_part("mark", [self.context, log, offset, slot])

    def mark_of(self, log: ir.Value, page: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the address of the word that has a page's mark, and its bit."""
        b = self.b
        byte = b.shl(b.lshr(page, number(6)), number(3))
        return b.inttoptr(b.add(log, byte), PTR), b.shl(number(1), b.and_(page, number(63)))
