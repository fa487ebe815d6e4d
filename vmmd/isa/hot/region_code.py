"""A region's machine code: a third reader of the instruction table, over LLVM's builder.

A region is one function of the engine's state. Guest registers are values of LLVM's, loaded from the context at the
entry and stored to it at the exits; immediates and pcs are constants. What budget is left is counted at the ends of
blocks and looked at at the heads, where requests are too.

Memory is reached through **windows**: a run of guest-physical addresses and where it lies, kept in values of its own
for each register that addresses are made of. A window is filled from the context's caches, so by a translation that a
memslot gave, and is gone when the region is left; a vCPU takes another view only outside of guest mode, so no window
outlives its view. Stores to logged slots and to pages with translated code have no window and go the slow way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from vmmd.isa.accesses import SIZED, Accesses
from vmmd.isa.arithmetic import I8, I64, number, widened
from vmmd.isa.encoding import IMMEDIATES, Format, rd, rs1, rs2
from vmmd.isa.frame import CONVENTION, HANDLER, NULL, PTR
from vmmd.isa.hot.linkage import LINKAGE, NOT_STORED, STORED
from vmmd.isa.hot.regions import Block, Region, is_return
from vmmd.isa.instructions import SHAPES, Effect, Instruction, Operand
from vmmd.memory.limits import U64

ENTRY = "region"
"""The function's name."""

_KINDS = {
    "go": HANDLER,
    "interpret": HANDLER,
    "reach_read": ir.FunctionType(PTR, (PTR, I64)),
    "reach_write": ir.FunctionType(PTR, (PTR, I64)),
    "store_slowly": ir.FunctionType(I64, (PTR, PTR, I64, I64, I64)),
    "translate": ir.FunctionType(PTR, (PTR, I64, PTR, PTR, I64)),
    "mark": ir.FunctionType(ir.VoidType(), (PTR, I64, I64, I64)),
    "note_code": ir.FunctionType(ir.VoidType(), (PTR, PTR, I64, I64)),
}

_SAVING = frozenset({"reach_read", "reach_write", "store_slowly"})
"""Functions that keep the registers of who calls them."""


def build(region: Region) -> ir.Module:
    """Return the module with the region's function."""
    module = ir.Module("region")
    function = ir.Function(module, HANDLER, ENTRY)
    function.attributes.add("nounwind")
    function.calling_convention = CONVENTION
    RegionCode(function, region).emit()
    return module


@dataclass(slots=True)
class _Window:
    """Where a run's first address, its bytes and its distance to host memory are kept."""

    gpa: ir.Value
    size: ir.Value
    distance: ir.Value


class RegionCode(Accesses):
    """The body of a region's function."""

    def __init__(self, function: ir.Function, region: Region) -> None:
        super().__init__(None, function)
        self._function = function
        self._region = region
        self._entry = self.b.block
        self._starts = {pc: function.append_basic_block(f"at_{pc:x}") for pc in region.blocks}
        self._go, self._interpret = (function.append_basic_block(name) for name in ("go", "interpret"))
        self._registers: dict[int, ir.Value] = {}
        self._windows: dict[tuple[int, bool], _Window] = {}
        self._written: set[int] = set()
        self._entered_at = self.state["pc"]
        self._pc = region.entry
        self._retired = 0
        self._base = 0
        self._fuel = self._variable(self.state["fuel"])
        self._exit_pc = self._variable(number(0))
        self._exit_fuel = self._variable(number(0))

    def emit(self) -> None:
        """Emit everything."""
        for block in self._region.blocks.values():
            self.b.position_at_end(self._starts[block.start])
            self._block(block)
        self._leave(self._go, "go")
        self._leave(self._interpret, "interpret")
        self.b.position_at_end(self._entry)
        ways = self.b.switch(self._entered_at, self._function.append_basic_block("nowhere"))
        for pc in self._region.heads:
            ways.add_case(number(pc), self._starts[pc])
        self.b.position_at_end(ways.default)
        self._exit(self._interpret, self._entered_at, 0)

    # Variables, which LLVM turns into values.

    def _variable(self, initial: ir.Value) -> ir.Value:
        """Return a variable's place; it is made at the entry."""
        at_entry = ir.IRBuilder(self._entry)
        place = at_entry.alloca(I64)
        at_entry.store(initial, place)
        return place

    def _get(self, place: ir.Value) -> ir.Value:
        return self.b.load(place, typ=I64)

    def _register(self, index: int) -> ir.Value:
        place = self._registers.get(index)
        if place is None:
            at_entry = ir.IRBuilder(self._entry)
            field = at_entry.gep(self.context, [number(index * 8)], source_etype=I8)
            place = self._registers[index] = self._variable(at_entry.load(field, typ=I64))
        return place

    def _read(self, index: int) -> ir.Value:
        return self._get(self._register(index)) if index else number(0)

    def _write(self, index: int, value: ir.Value) -> None:
        if index:
            self._written.add(index)
            self.b.store(value, self._register(index))

    def _window(self, *, writing: bool) -> _Window:
        """Return the window of the register that the address at hand is made of."""
        key = self._base, writing
        if key not in self._windows:
            self._windows[key] = _Window(*(self._variable(number(0)) for _ in range(3)))
        return self._windows[key]

    # Exits.

    def _part(self, name: str) -> ir.Value:
        place = self.b.gep(
            self.b.inttoptr(self.get("linkage"), PTR), [number(LINKAGE.index(name) * 8)], source_etype=I8
        )
        return self.b.inttoptr(self.b.load(place, typ=I64), _KINDS[name].as_pointer())

    def call_part(self, name: str, arguments: list[ir.Value]) -> ir.Value:
        """See `Accesses`."""
        return self.b.call(self._part(name), arguments, cconv="preserve_mostcc" if name in _SAVING else "")

    def _leave(self, block: ir.Block, name: str) -> None:
        """End an exit: store what was written, and go on in a function of the engine."""
        b = self.b
        b.position_at_end(block)
        for index in sorted(self._written):
            b.store(self._get(self._registers[index]), b.gep(self.context, [number(index * 8)], source_etype=I8))
        self.state |= {"pc": self._get(self._exit_pc), "fuel": self._get(self._exit_fuel)}
        self.state |= dict.fromkeys(("code_gpa", "code_size", "code_host"), number(0))
        self.tail(self._part(name))

    def _exit(self, block: ir.Block, pc: ir.Value, retired: int) -> None:
        """End this path by leaving the region at a pc, so many instructions of the block behind it."""
        self.b.store(pc, self._exit_pc)
        self.b.store(self.b.sub(self._get(self._fuel), number(retired)), self._exit_fuel)
        self.b.branch(block)

    def leave_here(self) -> None:
        """Leave before the instruction at hand."""
        self._exit(self._interpret, number(self._pc), self._retired)

    def _go_to(self, pc: int) -> None:
        """End this path, behind the block's last instruction, in another block or outside."""
        if pc in self._region.blocks:
            self.b.store(self.b.sub(self._get(self._fuel), number(self._retired)), self._fuel)
            self.b.branch(self._starts[pc])
        else:
            self._exit(self._interpret if pc in self._region.stops else self._go, number(pc), self._retired)

    # Blocks and rows.

    def _block(self, block: Block) -> None:
        b = self.b
        need = self._region.heads.get(block.start)
        self._pc, self._retired = block.start, 0
        if need is not None:
            is_short = b.icmp_unsigned("<", self._get(self._fuel), number(need))
            with b.if_then(is_short, likely=False):
                self.leave_here()
            with b.if_then(b.icmp_unsigned("!=", self.get_shared("requests"), number(0)), likely=False):
                self.leave_here()
        for row, word in block.rows:
            self._perform(row, word)
            if b.block.is_terminated:
                return
            self._pc = self._pc + 4 & U64
        self._go_to(self._pc)

    def _perform(self, row: Instruction, word: int) -> None:
        b, shape = self.b, SHAPES[row.format]
        immediate = IMMEDIATES[row.format].of(word) if row.format in IMMEDIATES else 0
        self._base = rs1(word)
        result = row.meaning(self, *[self._operand(kind, word, immediate) for kind in shape.operands])
        after = self._pc + 4 & U64
        if shape.effect is Effect.BRANCH:
            with b.if_then(result):
                self._branch_to(self._pc + immediate & U64)
            self._retired += 1
            self._go_to(after)
        elif shape.effect is Effect.JUMP:
            self._jump(row, word, result, after)
        else:
            if shape.effect is Effect.WRITE:
                self._write(rd(word), result)
            self._retired += 1
            if row.format is Format.AMO:
                self._leave_where_code_changed()

    def _operand(self, kind: Operand, word: int, immediate: int) -> ir.Value:
        match kind:
            case Operand.RS1:
                return self._read(rs1(word))
            case Operand.RS2:
                return self._read(rs2(word))
            case Operand.IMMEDIATE:
                return number(immediate)
            case Operand.PC:
                return number(self._pc)
            case Operand.SUM:
                return self.b.add(self._read(rs1(word)), number(immediate))
        raise AssertionError(f"{kind} is of rows that no region has")

    def _branch_to(self, target: int) -> None:
        if target & 3:
            self.leave_here()
            return
        self._retired += 1
        self._go_to(target)
        self._retired -= 1

    def _jump(self, row: Instruction, word: int, target: ir.Value, after: int) -> None:
        b = self.b
        if row.format is Format.JAL:
            constant = self._pc + IMMEDIATES[row.format].of(word) & U64
            if constant & 3:
                self.leave_here()
                return
            self._write(rd(word), number(after))
            self._retired += 1
            self._go_to(constant)
            return
        with b.if_then(b.icmp_unsigned("!=", b.and_(target, number(3)), number(0)), likely=False):
            self.leave_here()
        self._write(rd(word), number(after))
        self._retired += 1
        for pc in self._region.returns if is_return(word) else ():
            with b.if_then(b.icmp_unsigned("==", target, number(pc))):
                self._go_to(pc)
        self._exit(self._go, target, self._retired)

    def fence(self) -> None:
        """See `Ops`."""
        self.b.fence("seq_cst")

    # Memory.

    def _fill(self, window: _Window, entry: ir.Value) -> None:
        gpa = self.entry(entry, "gpa")
        self.b.store(gpa, window.gpa)
        self.b.store(self.entry(entry, "size"), window.size)
        self.b.store(self.b.sub(self.entry(entry, "host"), gpa), window.distance)

    def _is_aligned(self, gpa: ir.Value, size: int) -> ir.Value:
        return self.b.icmp_unsigned("==", self.b.and_(gpa, number(size - 1)), number(0))

    @contextmanager
    def _missed(self, window: _Window, gpa: ir.Value, size: int, far: ir.Block) -> Iterator[ir.Block]:
        """Branch to `far` where an access is not in its window or misaligned; the body runs on the other way.

        Runs begin and end at pages, so what is aligned and begins in one is whole in it.
        """
        b = self.b
        near = b.append_basic_block("near")
        hit = b.icmp_unsigned("<", b.sub(gpa, self._get(window.gpa)), self._get(window.size))
        if size > 1:
            hit = b.and_(hit, self._is_aligned(gpa, size))
        b.cbranch(hit, near, far).set_weights([999, 1])
        b.position_at_end(near)
        yield near

    def _entry_of(self, gpa: ir.Value, *, writing: bool) -> ir.Value:
        """Return the cache entry that has an address; leave where there is none."""
        entry = self.call_part("reach_write" if writing else "reach_read", [self.context, gpa])
        with self.b.if_then(self.b.icmp_unsigned("==", entry, NULL), likely=False):
            self.leave_here()
        return entry

    def load(self, address: ir.Value, size: int, *, signed: bool) -> ir.Value:
        """See `Ops`."""
        b, kind = self.b, SIZED[size]
        window = self._window(writing=False)
        far, done = b.append_basic_block("far"), b.append_basic_block("done")
        with self._missed(window, address, size, far) as near:
            host = b.inttoptr(b.add(address, self._get(window.distance)), PTR)
            whole = b.load_atomic(host, "monotonic", size, typ=kind)
            b.branch(done)
        b.position_at_end(far)
        entry = self._entry_of(address, writing=False)
        self._fill(window, entry)
        if size > 1:
            with b.if_then(b.not_(self._is_aligned(address, size))):
                offset = b.sub(address, self._get(window.gpa))
                with b.if_then(b.icmp_unsigned(">", offset, b.sub(self._get(window.size), number(size)))):
                    self.leave_here()
                pieces = b.load(b.inttoptr(b.add(address, self._get(window.distance)), PTR), typ=kind, align=1)
                misaligned = b.block
                b.branch(done)
        b.branch(near)
        b.position_at_end(done)
        if size == 1:
            return widened(b, whole, signed=signed)
        value = b.phi(kind)
        value.add_incoming(whole, near)
        value.add_incoming(pieces, misaligned)
        return widened(b, value, signed=signed)

    def store(self, address: ir.Value, value: ir.Value, size: int) -> None:
        """See `Ops`."""
        b = self.b
        window = self._window(writing=True)
        far, done = b.append_basic_block("far"), b.append_basic_block("done")
        with self._missed(window, address, size, far) as near:
            host = b.inttoptr(b.add(address, self._get(window.distance)), SIZED[size].as_pointer())
            b.store_atomic(value if size == 8 else b.trunc(value, SIZED[size]), host, "monotonic", size)
            b.branch(done)
        b.position_at_end(far)
        entry = self._entry_of(address, writing=True)
        plain = b.icmp_unsigned("==", self.entry(entry, "watched"), number(0))
        if size > 1:
            plain = b.and_(plain, self._is_aligned(address, size))
        with b.if_then(plain):
            self._fill(window, entry)
            b.branch(near)
        stored = self.call_part("store_slowly", [self.context, entry, address, value, number(size)])
        with b.if_then(b.icmp_unsigned("==", stored, number(NOT_STORED)), likely=False):
            self.leave_here()
        with b.if_then(b.icmp_unsigned("!=", stored, number(STORED)), likely=False):
            self._exit(self._go, number(self._pc + 4 & U64), self._retired + 1)
        b.branch(done)
        b.position_at_end(done)

    def _leave_where_code_changed(self) -> None:
        """Leave behind an atomic instruction that went to translated code."""
        with self.b.if_then(self.b.icmp_unsigned("!=", self.get("code_changed"), number(0)), likely=False):
            self.put("code_changed", number(0))
            self._exit(self._go, number(self._pc + 4 & U64), self._retired)
