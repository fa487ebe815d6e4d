"""What translated code was made of, and whether it is that still: comparing, watching, forgetting, in compiled code.

Before a region is entered for the first time since guest mode was, its bytes are compared with those that it was made
of, and the pages that it lies in are watched: a store of this vCPU's to a watched line empties the jump cache, so
everything is compared anew. Stores of others are seen where they have to be, at a `fence.i` and at the next entry to
guest mode.

Pages are watched by their place in the host, so it does not matter by which address they are stored to.
"""

from __future__ import annotations

from llvmlite import ir

from vmmd.isa.accesses import Accesses
from vmmd.isa.arithmetic import I8, I32, I64, number
from vmmd.isa.context import (
    CACHE_ENTRIES,
    JUMPS,
    NO_JUMP,
    REGION_SHIFT,
    WATCHED_PAGES,
    CacheEntry,
    Jump,
    WatchedPage,
)
from vmmd.isa.frame import NULL, PTR, Parts
from vmmd.isa.hot.linkage import EXTENT_WORDS
from vmmd.memory.limits import PAGE_SHIFT, PAGE_SIZE

_EMPTY = number(NO_JUMP)
_LINE_SHIFT = 6

_MOST_PAGES = 8
"""More pages than the code of a region can touch: it was made of at most 16 KiB in a row."""


def declare(module: ir.Module, name: str, kind: ir.FunctionType, convention: str = "") -> ir.Function:
    """Declare a function that is called, or jumped to, and never inlined."""
    function = ir.Function(module, kind, name)
    function.attributes.add("nounwind")
    function.attributes.add("noinline")
    function.calling_convention = convention
    function.linkage = "internal"
    return function


def define_forget_code(parts: Parts) -> None:
    """Empty the jump cache: every region is compared anew."""
    parts.forget_code.attributes.add("noinline")
    code = Accesses(parts, parts.forget_code)
    b = code.b
    code.put("code_changed", number(0))
    with b.if_then(b.icmp_unsigned("!=", code.get("jump_count"), number(0))):
        code.put("jump_count", number(0))
        code.loop(number(JUMPS), lambda index: code.put_word(code.element("jumps", Jump, index), 0, _EMPTY))
    b.ret_void()


def define_note_code(parts: Parts) -> None:
    """Take note of a store to a page with translated code: `void note_code(context, entry, gpa, size)`.

    The entry is of that page alone.
    """
    parts.note_code.attributes.add("noinline")
    code = Accesses(parts, parts.note_code)
    b = code.b
    _, entry, gpa, size = parts.note_code.args
    page = b.inttoptr(code.entry(entry, "code"), PTR)
    host = b.add(code.entry(entry, "host"), b.sub(gpa, code.entry(entry, "gpa")))
    lines = _lines(code, host, b.add(host, size))
    with b.if_then(b.icmp_unsigned("!=", b.and_(lines, code.word(page, 1)), number(0)), likely=False):
        b.call(parts.forget_code, [code.context])
        code.put("code_changed", number(1))
    b.ret_void()


def _lines(code: Accesses, host: ir.Value, end: ir.Value) -> ir.Value:
    """Return the bits of the lines from a host address to before another in the same page, or at its end."""
    b = code.b
    first = b.and_(b.lshr(host, number(_LINE_SHIFT)), number(63))
    last = b.and_(b.lshr(b.sub(end, number(1)), number(_LINE_SHIFT)), number(63))
    return b.and_(b.shl(number(-1), first), b.lshr(number(-1), b.sub(number(63), last)))


def _host_of(code: Accesses, gpa: ir.Value, size: ir.Value, nowhere: ir.Block) -> ir.Value:
    """Return the host address of code that lies in one run whole; go to a block where it does not."""
    b = code.b
    entry = code.translate(gpa, writing=False)
    is_there = b.append_basic_block("there")
    b.cbranch(b.icmp_unsigned("!=", entry, NULL), is_there, nowhere)
    b.position_at_end(is_there)
    offset = b.sub(gpa, code.entry(entry, "gpa"))
    is_whole = b.append_basic_block("whole")
    rest = b.sub(code.entry(entry, "size"), offset)
    b.cbranch(b.icmp_unsigned(">=", rest, size), is_whole, nowhere)
    b.position_at_end(is_whole)
    return b.add(code.entry(entry, "host"), offset)


def define_compare(module: ir.Module, parts: Parts) -> ir.Function:
    """`u64 compare(context, extents, count)`: whether guest memory has the bytes that a region was made of."""
    function = declare(module, "compare", ir.FunctionType(I64, (PTR, PTR, I64)))
    code = Accesses(parts, function)
    b = code.b
    _, extents, count = function.args
    differs = b.append_basic_block("differs")

    def compare_extent(index: ir.Value) -> None:
        extent = b.gep(extents, [b.mul(index, number(EXTENT_WORDS * 8))], source_etype=I8)
        gpa, size, wanted = (code.word(extent, word) for word in range(EXTENT_WORDS))
        host = _host_of(code, gpa, size, differs)

        def compare_word(word: ir.Value) -> None:
            at = b.shl(word, number(2))
            there = b.load_atomic(b.inttoptr(b.add(host, at), PTR), "monotonic", 4, typ=I32)
            made_of = b.load(b.inttoptr(b.add(wanted, at), PTR), typ=I32)
            same = b.append_basic_block("same")
            b.cbranch(b.icmp_unsigned("==", there, made_of), same, differs)
            b.position_at_end(same)

        code.loop(b.lshr(size, number(2)), compare_word)

    code.loop(count, compare_extent)
    b.ret(number(1))
    b.position_at_end(differs)
    b.ret(number(0))
    return function


def define_watch(module: ir.Module, parts: Parts) -> ir.Function:
    """`void watch(context, extents, count)`: have stores to a region's code noticed from now on."""
    function = declare(module, "watch", ir.FunctionType(ir.VoidType(), (PTR, PTR, I64)))
    code = Accesses(parts, function)
    b = code.b
    _, extents, count = function.args
    watch_page = _define_watch_page(module, parts)
    is_full = b.icmp_unsigned(">", code.get("watch_count"), number(WATCHED_PAGES - _MOST_PAGES))
    with b.if_then(is_full, likely=False):
        # Begin anew, with nothing that was compared before.
        b.call(parts.forget_code, [code.context])
        code.put("watch_count", number(0))
    nowhere = b.append_basic_block("nowhere")

    def watch_extent(index: ir.Value) -> None:
        extent = b.gep(extents, [b.mul(index, number(EXTENT_WORDS * 8))], source_etype=I8)
        gpa, size = code.word(extent, 0), code.word(extent, 1)
        host = _host_of(code, gpa, size, nowhere)
        end = b.add(host, size)
        first, last = (b.lshr(at, number(PAGE_SHIFT)) for at in (host, b.sub(end, number(1))))

        def watch_one(page: ir.Value) -> None:
            start = b.shl(b.add(first, page), number(PAGE_SHIFT))
            low = b.select(b.icmp_unsigned(">", host, start), host, start)
            high = code.smaller(end, b.add(start, number(PAGE_SIZE)))
            b.call(watch_page, [code.context, start, _lines(code, low, high)])

        code.loop(b.add(b.sub(last, first), number(1)), watch_one)

    code.loop(count, watch_extent)
    b.branch(nowhere)
    b.position_at_end(nowhere)
    b.ret_void()
    return function


def _define_watch_page(module: ir.Module, parts: Parts) -> ir.Function:
    """`void watch_page(context, host, lines)`: watch lines of a page; a new one makes stores look for it."""
    function = declare(module, "watch_page", ir.FunctionType(ir.VoidType(), (PTR, I64, I64)))
    code = Accesses(parts, function)
    b = code.b
    _, host, lines = function.args

    def look(index: ir.Value) -> None:
        page = code.element("watch", WatchedPage, index)
        with b.if_then(b.icmp_unsigned("==", code.word(page, 0), host)):
            code.put_word(page, 1, b.or_(code.word(page, 1), lines))
            b.ret_void()

    code.loop(code.get("watch_count"), look)
    count = code.get("watch_count")
    page = code.element("watch", WatchedPage, count)
    code.put_word(page, 0, host)
    code.put_word(page, 1, lines)
    code.put("watch_count", b.add(count, number(1)))
    for cache, shift in (("write_cache", REGION_SHIFT), ("write_pages", PAGE_SHIFT)):
        _empty(code, cache, shift)
    b.ret_void()
    return function


def _empty(code: Accesses, cache: str, shift: int) -> None:
    """Empty a cache, in the way of `context`: each entry claims eight bytes that are another's."""
    b = code.b

    def empty_one(index: ir.Value) -> None:
        entry = code.element(cache, CacheEntry, index)
        other = b.and_(b.add(index, number(1)), number(CACHE_ENTRIES - 1))
        b.store(b.shl(other, number(shift)), code.entry_field(entry, "gpa"))
        b.store(number(8), code.entry_field(entry, "size"))

    code.loop(number(CACHE_ENTRIES), empty_one)


def avoid_watched_pages(code: Accesses, host: ir.Value, before: ir.Value, after: ir.Value, watched: ir.Value) -> None:
    """Cut a run at watched pages: `before` and `after` hold its bytes before and from a host address.

    Where the address's own page is watched, the run becomes that page, and `watched` gets its record.
    """
    b = code.b
    page = b.and_(host, number(-PAGE_SIZE))
    into = b.sub(host, page)

    def cut(index: ir.Value) -> None:
        record = code.element("watch", WatchedPage, index)
        other = code.word(record, 0)
        with b.if_else(b.icmp_unsigned("==", other, page)) as (same, differs):
            with same:
                b.store(b.ptrtoint(record, I64), watched)
            with differs, b.if_else(b.icmp_unsigned("<", other, page)) as (below, above):
                with below:
                    gap = b.sub(host, b.add(other, number(PAGE_SIZE)))
                    b.store(code.smaller(b.load(before, typ=I64), gap), before)
                with above:
                    b.store(code.smaller(b.load(after, typ=I64), b.sub(other, host)), after)

    code.loop(code.get("watch_count"), cut)
    with b.if_then(b.icmp_unsigned("!=", b.load(watched, typ=I64), number(0))):
        b.store(code.smaller(b.load(before, typ=I64), into), before)
        b.store(code.smaller(b.load(after, typ=I64), b.sub(number(PAGE_SIZE), into)), after)
