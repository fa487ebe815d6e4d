"""The compiled engine's code: LLVM IR for every row of the instruction table, and for the steps beside guest mode.

Each group of rows becomes one small function; it ends in a tail call to the function of the next instruction, found
in a table by the next word's key. What they hand on, `frame.STATE`, lies in machine registers. Instruction words are
read from guest memory each time, so there is nothing to invalidate when code changes.

What a few machine instructions cannot do is left to the evaluation: the function stores the state and returns
`INSTRUCTION` with pc on the instruction, of which nothing is done. Guest memory is reached through the context's
cached translations alone, and those are made by `translate`, which searches the view.

Requests and the budget are looked at whenever a chunk of instructions is used up, see `crossings`; the budget is exact.
"""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from vmmd.isa.arithmetic import I1, I8, I32, I64, number
from vmmd.isa.context import IN_GUEST_MODE, NO_JUMP, OUTSIDE_GUEST_MODE
from vmmd.isa.crossings import define_crossings
from vmmd.isa.decode import KEY_MASK, KEYS, candidates
from vmmd.isa.emit import Code
from vmmd.isa.frame import CONVENTION, HANDLER, NULL, PTR, Parts
from vmmd.isa.instructions import Instruction
from vmmd.isa.steps import ENTERED, define_steps
from vmmd.isa.stop import Stop
from vmmd.isa.watching import avoid_watched_pages
from vmmd.memory.host import PIECE_RECORD
from vmmd.memory.limits import PAGE_SHIFT, PAGE_SIZE
from vmmd.memory.memslots import CHUNK_RECORD, SLOT_RECORD
from vmmd.memory.ring import ENTRY, HEADER_BYTES, KVM_DIRTY_GFN_F_DIRTY, RingHeader

_TRANSLATION = ("gpa", "size", "host", "log", "log_gpa", "slot", "code", "watched")
"""The fields of a cache entry."""


def build() -> ir.Module:
    """Return the module with every function that `native` calls."""
    module = ir.Module("t64")
    parts = Parts(
        translate=_declare(module, "translate", ir.FunctionType(PTR, (PTR, I64, PTR, PTR, I64))),
        mark=_declare(module, "mark", ir.FunctionType(ir.VoidType(), (PTR, I64, I64, I64))),
        dispatch=_declare(module, "dispatch", HANDLER),
        refill=_declare(module, "refill", HANDLER),
        refetch=_declare(module, "refetch", HANDLER),
        leave=_declare(module, "leave", HANDLER),
        handlers=ir.GlobalVariable(module, ir.ArrayType(PTR, KEYS), "handlers"),
        note_code=_declare(module, "note_code", ir.FunctionType(ir.VoidType(), (PTR, PTR, I64, I64))),
        forget_code=_declare(module, "forget_code", ir.FunctionType(ir.VoidType(), (PTR,))),
    )
    _define_translate(parts, _define_bisect(module))
    _define_mark(parts)
    Code(parts, parts.dispatch).go_on()
    linkage = define_crossings(module, parts)
    _define_refetch(parts)
    Code(parts, parts.leave).stop(Stop.INSTRUCTION)
    _define_handlers(module, parts)
    _define_run(module, parts, define_steps(module), linkage)
    return module


def _declare(module: ir.Module, name: str, kind: ir.FunctionType) -> ir.Function:
    function = ir.Function(module, kind, name)
    function.attributes.add("nounwind")
    if kind is HANDLER:
        function.calling_convention = CONVENTION
    function.linkage = "internal"
    return function


def _define_bisect(module: ir.Module) -> ir.Function:
    """Find the last of `count` records, `stride` bytes each, whose first word is at most `key`: its address or null."""
    function = _declare(module, "bisect", ir.FunctionType(PTR, (PTR, I64, I64, I64)))
    base, count, stride, key = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    entry = b.block
    loop, body, end = (function.append_basic_block(name) for name in ("loop", "body", "end"))
    b.branch(loop)
    b.position_at_end(loop)
    low, high = b.phi(I64, "low"), b.phi(I64, "high")
    low.add_incoming(number(0), entry)
    high.add_incoming(count, entry)
    b.cbranch(b.icmp_unsigned("<", low, high), body, end)
    b.position_at_end(body)
    middle = b.lshr(b.add(low, high), number(1))
    first = b.load(b.gep(base, [b.mul(middle, stride)], source_etype=I8), typ=I64)
    beyond = b.icmp_unsigned(">", first, key)
    low.add_incoming(b.select(beyond, low, b.add(middle, number(1))), body)
    high.add_incoming(b.select(beyond, middle, high), body)
    b.branch(loop)
    b.position_at_end(end)
    found = b.gep(base, [b.mul(b.sub(low, number(1)), stride)], source_etype=I8)
    b.ret(b.select(b.icmp_unsigned("==", low, number(0)), NULL, found))
    return function


def _define_translate(parts: Parts, bisect: ir.Function) -> None:
    """Search the view for an address, and fill the cache entry that stands for it: its address or null."""
    function = parts.translate
    function.attributes.add("noinline")
    _, gpa, near, far, refused_flags = function.args
    code = Code(parts, function)
    b = code.b
    kept = b.icmp_unsigned("<", b.sub(gpa, code.entry(far, "gpa")), code.entry(far, "size"))
    with b.if_then(kept):
        for name in _TRANSLATION:
            b.store(code.entry(far, name), code.entry_field(near, name))
        b.ret(near)
    nothing = function.append_basic_block("nothing")
    host, before, after, slot = _search_view(code, bisect, gpa, refused_flags, nothing)
    watched = b.alloca(I64)
    b.store(number(0), watched)
    with b.if_then(b.icmp_unsigned("!=", refused_flags, number(0))):
        avoid_watched_pages(code, host, before, after, watched)
    back, ahead, page = (b.load(place, typ=I64) for place in (before, after, watched))
    filled = {
        "gpa": b.sub(gpa, back),
        "size": b.add(back, ahead),
        "host": b.sub(host, back),
        "log": slot.log,
        "log_gpa": slot.gpa,
        "slot": slot.id,
        "code": page,
        "watched": b.or_(slot.log, page),
    }
    for name, value in filled.items():
        b.store(value, code.entry_field(near, name))
        b.store(value, code.entry_field(far, name))
    b.ret(near)
    b.position_at_end(nothing)
    b.ret(NULL)


class _Slot(NamedTuple):
    """The words of a slot's record."""

    gpa: ir.Value
    size: ir.Value
    hva: ir.Value
    flags: ir.Value
    log: ir.Value
    id: ir.Value


def _search_view(
    code: Code, bisect: ir.Function, gpa: ir.Value, refused_flags: ir.Value, nothing: ir.Block
) -> tuple[ir.Value, ir.Value, ir.Value, _Slot]:
    """Search slots and mappings for an address; go to `nothing` where it has no host memory, or the slot refuses.

    Returns its host address, the places of two values, how many bytes before and from there are of the same slot and
    mapping and touched, and the slot.
    """
    b = code.b

    def require(truth: ir.Value) -> None:
        found = b.append_basic_block("found")
        b.cbranch(truth, found, nothing)
        b.position_at_end(found)

    def search(base: ir.Value, count: ir.Value, stride: int, key: ir.Value) -> ir.Value:
        found = b.call(bisect, [b.inttoptr(base, PTR), count, number(stride), key])
        require(b.icmp_unsigned("!=", found, NULL))
        return found

    chunk = search(code.get("directory"), code.get("chunks"), CHUNK_RECORD.size, gpa)
    record = search(code.word(chunk, 1), code.word(chunk, 2), SLOT_RECORD.size, gpa)
    slot = _Slot(*(code.word(record, index) for index in range(len(_Slot._fields))))
    offset = b.sub(gpa, slot.gpa)
    require(b.icmp_unsigned("<", offset, slot.size))
    require(b.icmp_unsigned("==", b.and_(slot.flags, refused_flags), number(0)))
    hva = b.add(slot.hva, offset)
    piece = search(code.get("pieces"), code.get("piece_count"), PIECE_RECORD.size, hva)
    piece_hva, piece_size, piece_host, touched, mapping_offset = (code.word(piece, index) for index in range(5))
    piece_offset = b.sub(hva, piece_hva)
    require(b.icmp_unsigned("<", piece_offset, piece_size))
    before, after = b.alloca(I64), b.alloca(I64)
    b.store(code.smaller(offset, piece_offset), before)
    b.store(code.smaller(b.sub(slot.size, offset), b.sub(piece_size, piece_offset)), after)
    with b.if_then(b.icmp_unsigned("!=", touched, number(0))):
        low, high = _touched_run(code, touched, b.add(mapping_offset, piece_offset))
        require(b.icmp_unsigned("!=", high, number(0)))
        b.store(code.smaller(b.load(before, typ=I64), low), before)
        b.store(code.smaller(b.load(after, typ=I64), high), after)
    return b.add(piece_host, piece_offset), before, after, slot


def _touched_run(code: Code, touched: ir.Value, offset: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return how many touched bytes lie before and from an offset of a sparse mapping, within its word of 64 pages.

    The second is 0 where the offset's own page is not touched.
    """
    b = code.b
    page = b.lshr(offset, number(PAGE_SHIFT))
    word = b.load(b.inttoptr(b.add(touched, b.shl(b.lshr(page, number(6)), number(3))), PTR), typ=I64)
    bit = b.and_(page, number(63))
    from_here = b.cttz(b.not_(b.lshr(word, bit)), number(0, I1))
    to_here = b.ctlz(b.not_(b.shl(word, b.sub(number(63), bit))), number(0, I1))
    in_page = b.and_(offset, number(PAGE_SIZE - 1))
    ahead = b.sub(b.shl(from_here, number(PAGE_SHIFT)), in_page)
    back = b.add(b.shl(b.sub(to_here, number(1)), number(PAGE_SHIFT)), in_page)
    none = b.icmp_unsigned("==", from_here, number(0))
    return back, b.select(none, number(0), ahead)


def _define_mark(parts: Parts) -> None:
    """Mark the page of a byte of a slot; whoever sets the mark puts the page in the vCPU's ring, if it has one."""
    function = parts.mark
    function.attributes.add("noinline")
    _, log, offset, slot = function.args
    code = Code(parts, function)
    b = code.b
    page = b.lshr(offset, number(PAGE_SHIFT))
    word, bit = code.mark_of(log, page)
    before = b.atomic_rmw("or", word, bit, "monotonic")
    ring = code.get("ring")
    with b.if_then(b.and_(code.lacks(before, bit), b.icmp_unsigned("!=", ring, number(0)))):
        _push(code, ring, slot, page)
    b.ret_void()


def _push(code: Code, ring: ir.Value, slot: ir.Value, page: ir.Value) -> None:
    """Publish a page in a ring, and set the vCPU's request where the ring is full softly then."""
    b = code.b

    def header(name: str) -> ir.Value:
        return b.inttoptr(b.add(ring, number(getattr(RingHeader, name).offset)), I64.as_pointer())

    dirty = b.load(header("dirty"), typ=I64)
    index = b.and_(dirty, b.load(header("mask"), typ=I64))
    entry = b.add(b.add(ring, number(HEADER_BYTES)), b.mul(index, number(ENTRY.size)))
    b.store(page, b.inttoptr(b.add(entry, number(8)), PTR))
    flags_and_slot = b.or_(b.shl(slot, number(32)), number(KVM_DIRTY_GFN_F_DIRTY))
    b.store_atomic(flags_and_slot, b.inttoptr(entry, I64.as_pointer()), "release", 8)
    published = b.add(dirty, number(1))
    b.store_atomic(published, header("dirty"), "release", 8)
    used = b.sub(published, b.load_atomic(header("reset"), "monotonic", 8, typ=I64))
    with b.if_then(b.icmp_unsigned(">=", used, b.load(header("soft_limit"), typ=I64))):
        b.atomic_rmw("or", code.field("requests"), code.get("ring_full"), "monotonic")


def _define_refetch(parts: Parts) -> None:
    """Find the run of code that pc is in."""
    code = Code(parts, parts.refetch)
    b, state = code.b, code.state
    misaligned = b.icmp_unsigned("!=", b.and_(state["pc"], number(3)), number(0))
    with b.if_then(misaligned, likely=False):
        code.tail(parts.leave)
    entry = code.translate(state["pc"], writing=False)
    with b.if_then(b.icmp_unsigned("==", entry, NULL), likely=False):
        code.tail(parts.leave)
    for name, field in (("code_gpa", "gpa"), ("code_size", "size"), ("code_host", "host")):
        state[name] = code.entry(entry, field)
    code.tail(parts.dispatch)


def _define_handlers(module: ir.Module, parts: Parts) -> None:
    """Fill the table from key to function; rows that a key does not tell apart share one."""
    handlers: dict[tuple[Instruction, ...], ir.Function] = {(): parts.leave}
    cells = []
    for key in range(KEYS):
        rows = candidates(key)
        if rows not in handlers:
            handlers[rows] = _handler(module, parts, rows)
        cells.append(handlers[rows])
    parts.handlers.linkage = "internal"
    parts.handlers.global_constant = True
    parts.handlers.initializer = ir.Constant(ir.ArrayType(PTR, KEYS), cells)


def _handler(module: ir.Module, parts: Parts, rows: tuple[Instruction, ...]) -> ir.Function:
    function = _declare(module, "do_" + "_".join(row.name for row in rows), HANDLER)
    code = Code(parts, function)
    arrival = dict(code.state)
    for row in rows:
        # The rest of the word: bits that the row fixes and the key does not hold.
        rest = row.mask & ~KEY_MASK
        if not rest:
            code.perform(row)
            return function
        present = code.b.and_(code.state["word"], number(rest, I32))
        with code.b.if_then(code.b.icmp_unsigned("==", present, number(row.match & rest, I32))):
            code.perform(row)
        code.state = dict(arrival)
    code.tail(parts.leave)
    return function


def _define_run(module: ir.Module, parts: Parts, enter: ir.Function, linkage: ir.GlobalVariable) -> None:
    """Enter guest mode, run until something stops it, and leave: `u64 run(context)`, a `Stop`."""
    function = ir.Function(module, ir.FunctionType(I64, (PTR,)), "run")
    function.attributes.add("nounwind")
    code = Code(parts, function)
    b = code.b
    refused = b.call(enter, [b.ptrtoint(code.context, I64), number(IN_GUEST_MODE), number(0)])
    with b.if_then(b.icmp_unsigned("!=", refused, number(ENTERED)), likely=False):
        b.ret(refused)
    code.put("chunk", number(0))
    code.put("linkage", b.ptrtoint(linkage, I64))
    # What changes code while the vCPU is outside is seen by comparing, each time anew.
    b.call(parts.forget_code, [code.context])
    # Where it begins is no jump's target, unless an instruction was left to the evaluation in the middle of a region.
    last = code.get("last_pc")
    begins = b.icmp_unsigned("==", last, number(NO_JUMP))
    code.put("last_pc", b.select(begins, last, b.sub(code.get("pc"), number(4))))
    # With no fuel the first step is `refill`, which looks at the budget and begins a chunk.
    nothing = number(0)
    arguments = [code.context, code.get("pc"), nothing, nothing, nothing, nothing, number(0, I32)]
    stop = b.call(parts.dispatch, arguments, cconv=CONVENTION)
    code.put_shared("mode", number(OUTSIDE_GUEST_MODE), "release")
    b.ret(stop)
