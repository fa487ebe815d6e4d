"""Where control crosses between the interpreter's loop and translated regions, in compiled code.

The loop comes to `refill` whenever a chunk is used up. Where there is a table of regions it **seeks** now and then: it
runs single steps, and looks every target of a jump up. A target that has a region is entered; one that has none is
noted as a sample, by which it is found out what is hot. A search that finds nothing makes the next one rarer, so code
that runs once pays next to nothing for it.

A region ends in `go`, which looks the next pc up, or in `interpret`, for what only the interpreter does. Nothing is
entered whose bytes are not those that it was made of: see `watching`.
"""

from __future__ import annotations

from llvmlite import ir

from vmmd.isa.accesses import Accesses
from vmmd.isa.arithmetic import I8, I64, number
from vmmd.isa.context import JUMPS, NO_JUMP, SAMPLE_BACKWARD, SAMPLE_EXIT, SAMPLES, Jump
from vmmd.isa.frame import HANDLER, PTR, Parts
from vmmd.isa.hot.linkage import HASH_FACTOR, LINKAGE, NOT_STORED, RECORD_WORDS, STORED, STORED_CODE
from vmmd.isa.stop import Stop
from vmmd.isa.watching import declare, define_compare, define_forget_code, define_note_code, define_watch

CHUNK = 256
"""Instructions of the loop between two looks at the requests: less than a microsecond.

Each can dirty two pages, and a dirty ring keeps room for that behind its soft limit (`ring.RESERVED_ENTRIES`).
"""

_STEPS = 32
"""Single steps of a search."""

_LONG_STAY = 1024
"""How many instructions in regions make up for the search for the next; behind fewer, the loop goes on for a while."""

_ALL_STEPS = 1 << 62
"""Where a context is forced to run in regions."""

_LONGEST_PAUSE = 64
"""Chunks between two searches where none of them finds anything."""

_NOWHERE = number(NO_JUMP)


def define_crossings(module: ir.Module, parts: Parts) -> ir.GlobalVariable:
    """Define what crosses, and return the table of what regions call."""
    define_forget_code(parts)
    define_note_code(parts)
    find = _define_find(module, parts)
    functions = {
        "go": _define_go(module, parts, find),
        "interpret": _define_interpret(module, parts),
        "reach_read": _define_reach(module, parts, writing=False),
        "reach_write": _define_reach(module, parts, writing=True),
        "store_slowly": _define_store_slowly(module, parts),
        "translate": parts.translate,
        "mark": parts.mark,
        "note_code": parts.note_code,
    }
    _define_refill(parts, find)
    linkage = ir.GlobalVariable(module, ir.ArrayType(PTR, len(LINKAGE)), "linkage")
    linkage.linkage = "internal"
    linkage.global_constant = True
    linkage.initializer = ir.Constant(linkage.value_type, [functions[name].bitcast(PTR) for name in LINKAGE])
    return linkage


class _Crossing(Accesses):
    """A function of these, with what several of them do."""

    def count_up(self, name: str, by: int = 1) -> None:
        """Add to a field."""
        self.put(name, self.b.add(self.get(name), number(by)))

    def jump_of(self, pc: ir.Value) -> ir.Value:
        """Return the one entry of the jump cache that may be a pc's."""
        b = self.b
        return self.element("jumps", Jump, b.and_(b.lshr(pc, number(2)), number(JUMPS - 1)))

    def sample(self, pc: ir.Value, how: ir.Value) -> None:
        """Note a jump target, unless there is no room left."""
        b = self.b
        count = self.get("sample_count")
        with b.if_then(b.icmp_unsigned("<", count, number(SAMPLES))):
            place = b.gep(self.field("samples"), [b.shl(count, number(3))], source_etype=I8)
            b.store(b.or_(pc, how), place)
            self.put("sample_count", b.add(count, number(1)))

    def stop_where_due(self) -> ir.Value:
        """Settle the chunk, stop where budget or requests say so, and return what is left of the budget."""
        b = self.b
        left = self.settle_chunk()
        self.put("pc", self.state["pc"])
        self.put("chunk", number(0))
        self.stop_if(self.is_zero(left), Stop.BUDGET)
        self.stop_if(b.icmp_unsigned("!=", self.get_shared("requests"), number(0)), Stop.REQUEST)
        return left

    def begin(self, chunk: ir.Value, function: ir.Value) -> None:
        """Begin a chunk in a function of the state."""
        self.put("chunk", chunk)
        self.state["fuel"] = chunk
        self.tail(function)

    def seek_from_here(self, last_pc: ir.Value) -> None:
        """Begin a search with the next step."""
        is_forced = self.b.icmp_unsigned("!=", self.get("forced"), number(0))
        self.put("seek", self.b.select(is_forced, number(_ALL_STEPS), number(_STEPS)))
        self.put("last_pc", last_pc)

    def enter(self, code: ir.Value, left: ir.Value) -> None:
        """Enter a region, with all of the budget as its chunk."""
        b = self.b
        self.begin(left, b.inttoptr(code, HANDLER.as_pointer()))


def _define_refill(parts: Parts, find: ir.Function) -> None:
    """Settle a chunk that is used up, look at budget and requests, and begin another, in a region if possible."""
    code = _Crossing(parts, parts.refill)
    b, state = code.b, code.state
    left = code.stop_where_due()
    chunk = code.smaller(left, number(CHUNK))
    with b.if_then(code.is_zero(code.get("regions")), likely=True):
        code.begin(chunk, parts.dispatch)
    seek = code.get("seek")
    with b.if_then(code.is_zero(seek), likely=True):
        skip = code.get("skip")
        with b.if_then(code.is_zero(skip), likely=False):
            code.seek_from_here(state["pc"])
            code.begin(number(1), parts.dispatch)
        code.put("skip", b.sub(skip, number(1)))
        code.begin(chunk, parts.dispatch)
    last = code.get("last_pc")
    with b.if_then(b.icmp_unsigned("!=", state["pc"], b.add(last, number(4)))):
        found = b.call(find, [code.context, state["pc"]])
        with b.if_then(b.icmp_unsigned("!=", found, number(0)), likely=True):
            code.seek_from_here(_NOWHERE)
            code.enter(found, left)
        code.stop_if(b.icmp_unsigned("!=", code.get("forced"), number(0)), Stop.UNTRANSLATED)
        # Whatever runs often comes back to somewhere.
        with b.if_then(b.icmp_unsigned("<=", state["pc"], last)):
            code.sample(state["pc"], number(SAMPLE_BACKWARD))
        with b.if_then(b.icmp_unsigned("==", last, _NOWHERE)):
            code.sample(state["pc"], number(SAMPLE_EXIT))
    code.put("last_pc", state["pc"])
    seek = b.sub(seek, number(1))
    code.put("seek", seek)
    with b.if_then(code.is_zero(seek)):
        pause = code.get("pause")
        code.put("skip", pause)
        code.put("pause", code.smaller(b.shl(pause, number(1)), number(_LONGEST_PAUSE)))
    code.begin(number(1), parts.dispatch)


def _define_go(module: ir.Module, parts: Parts, find: ir.Function) -> ir.Function:
    """Go on from a region at a pc that it does not have: in the next, or in the loop, which looks for one."""
    function = declare(module, "go", HANDLER, "preserve_nonecc")
    code = _Crossing(parts, function)
    b, state = code.b, code.state
    jump = code.jump_of(state["pc"])
    with b.if_then(b.icmp_unsigned("==", code.word(jump, 0), state["pc"]), likely=True):
        code.tail(b.inttoptr(code.word(jump, 1), HANDLER.as_pointer()))
    found = b.call(find, [code.context, state["pc"]])
    with b.if_then(b.icmp_unsigned("!=", found, number(0)), likely=True):
        code.tail(b.inttoptr(found, HANDLER.as_pointer()))
    is_worth_it = b.icmp_unsigned(">=", b.sub(code.get("chunk"), state["fuel"]), number(_LONG_STAY))
    left = code.stop_where_due()
    code.stop_if(b.icmp_unsigned("!=", code.get("forced"), number(0)), Stop.UNTRANSLATED)
    code.sample(state["pc"], number(SAMPLE_EXIT))
    with b.if_then(is_worth_it, likely=True):
        code.put("pause", number(1))
        code.seek_from_here(state["pc"])
        code.begin(number(1), parts.dispatch)
    pause = code.get("pause")
    code.put("seek", number(0))
    code.put("skip", pause)
    code.put("pause", code.smaller(b.shl(pause, number(1)), number(_LONGEST_PAUSE)))
    code.begin(code.smaller(left, number(CHUNK)), parts.dispatch)
    return function


def _define_interpret(module: ir.Module, parts: Parts) -> ir.Function:
    """Go on in the loop from inside a region: with one instruction, or where the budget ends, with the rest of it."""
    function = declare(module, "interpret", HANDLER, "preserve_nonecc")
    code = _Crossing(parts, function)
    b = code.b
    left = code.stop_where_due()
    is_end = b.icmp_unsigned("<", left, number(CHUNK))
    code.seek_from_here(b.select(is_end, code.state["pc"], _NOWHERE))
    code.begin(b.select(is_end, left, number(1)), parts.dispatch)
    return function


def _define_find(module: ir.Module, parts: Parts) -> ir.Function:
    """Look a pc up, compare and watch what is found: `u64 find(context, pc)`, its machine code's address or 0."""
    function = declare(module, "find", ir.FunctionType(I64, (PTR, I64)))
    code = _Crossing(parts, function)
    b = code.b
    pc = function.args[1]
    compare = define_compare(module, parts)
    watch = define_watch(module, parts)
    table = b.inttoptr(code.get("regions"), PTR)
    shift = code.get("region_shift")
    start = b.lshr(b.mul(b.lshr(pc, number(2)), number(HASH_FACTOR)), shift)
    mask = b.lshr(number(-1), shift)
    entry = b.block
    head, look, same, next_, none = (b.append_basic_block(name) for name in ("head", "look", "same", "next", "none"))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    index.add_incoming(start, entry)
    record = b.gep(table, [b.mul(index, number(RECORD_WORDS * 8))], source_etype=I8)
    machine_code = code.word(record, 1)
    b.cbranch(b.icmp_unsigned("==", machine_code, number(0)), none, look)
    b.position_at_end(look)
    b.cbranch(b.icmp_unsigned("==", code.word(record, 0), pc), same, next_)
    b.position_at_end(same)
    extents, count = b.inttoptr(code.word(record, 2), PTR), code.word(record, 3)
    is_same = b.call(compare, [code.context, extents, count])
    with b.if_then(b.icmp_unsigned("!=", is_same, number(0))):
        b.call(watch, [code.context, extents, count])
        jump = code.jump_of(pc)
        code.put_word(jump, 0, pc)
        code.put_word(jump, 1, machine_code)
        code.count_up("jump_count")
        b.ret(machine_code)
    b.branch(next_)
    b.position_at_end(next_)
    index.add_incoming(b.and_(b.add(index, number(1)), mask), b.block)
    b.branch(head)
    b.position_at_end(none)
    b.ret(number(0))
    return function


def _define_reach(module: ir.Module, parts: Parts, *, writing: bool) -> ir.Function:
    """`entry reach_…(context, gpa)`: the cache entry that has an address, or null."""
    name = "reach_write" if writing else "reach_read"
    function = declare(module, name, ir.FunctionType(PTR, (PTR, I64)), "preserve_mostcc")
    code = _Crossing(parts, function)
    b = code.b
    gpa = function.args[1]
    entry = code.cache_entry("write_cache" if writing else "read_cache", gpa)
    offset = b.sub(gpa, code.entry(entry, "gpa"))
    with b.if_then(b.icmp_unsigned("<", offset, code.entry(entry, "size")), likely=True):
        b.ret(entry)
    b.ret(code.translate(gpa, writing=writing))
    return function


def _define_store_slowly(module: ir.Module, parts: Parts) -> ir.Function:
    """`u64 store_slowly(context, entry, gpa, value, size)`: a store that is misaligned, or has more to do.

    Returns `STORED`, `STORED_CODE` where translated code was changed, or `NOT_STORED` where the entry does not have it
    whole.
    """
    function = declare(module, "store_slowly", ir.FunctionType(I64, (PTR, PTR, I64, I64, I64)), "preserve_mostcc")
    code = _Crossing(parts, function)
    b = code.b
    _, entry, gpa, value, size = function.args
    offset = b.sub(gpa, code.entry(entry, "gpa"))
    beyond = b.icmp_unsigned(">", offset, b.sub(code.entry(entry, "size"), size))
    with b.if_then(beyond, likely=False):
        b.ret(number(NOT_STORED))
    host = b.add(code.entry(entry, "host"), offset)
    code.put("code_changed", number(0))
    for width in (1, 2, 4, 8):
        with b.if_then(b.icmp_unsigned("==", size, number(width))):
            code.put_bytes(host, gpa, value, width)
            code.note_store(entry, gpa, width)
    changed = code.get("code_changed")
    b.ret(b.select(code.is_zero(changed), number(STORED), number(STORED_CODE)))
    return function
