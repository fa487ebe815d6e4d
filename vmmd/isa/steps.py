"""The compiled steps beside guest mode: the handshake with whoever kicks, and atomic words for dirty logs.

The handshake is Dekker's. Who enters writes its mode and then reads the requests and the newest view's number; who
kicks writes requests and number and then reads the modes; a full fence stands between the two on either side, so that
one of them sees the other.
"""

from __future__ import annotations

from llvmlite import ir

from vmmd.isa.arithmetic import I64, number
from vmmd.isa.context import OUTSIDE_GUEST_MODE, ContextRecord
from vmmd.isa.stop import Stop

PTR = ir.PointerType()
_WORD = I64.as_pointer()

ENTERED = 0
"""What `enter` returns where the vCPU may go on."""


def define_steps(module: ir.Module) -> ir.Function:
    """Define every step in the module, and return `enter`, which guest mode begins with."""
    enter = _enter(module)
    _leave(module)
    _post(module)
    _retract(module)
    _wait_outside(module)
    _set_bits(module)
    _compare_exchange(module, 4)
    _compare_exchange(module, 8)
    _exchange(module)
    _clear(module)
    return enter


def _function(module: ir.Module, name: str, result: ir.Type, *arguments: ir.Type) -> tuple[ir.Function, ir.IRBuilder]:
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    function.attributes.add("nounwind")
    return function, ir.IRBuilder(function.append_basic_block("entry"))


def _field(b: ir.IRBuilder, context: ir.Value, name: str) -> ir.Value:
    address = b.add(context, number(getattr(ContextRecord, name).offset))
    return b.inttoptr(address, _WORD)


def _enter(module: ir.Module) -> ir.Function:
    """`u64 enter(context, mode, deferred)`: take the mode, or back out and return the `Stop`.

    Requests of `deferred` do not keep the vCPU out.
    """
    function, b = _function(module, "enter", I64, I64, I64, I64)
    context, mode, deferred = function.args
    word = _field(b, context, "mode")
    b.store_atomic(mode, word, "monotonic", 8)
    b.fence("seq_cst")
    requests = b.and_(b.load_atomic(_field(b, context, "requests"), "monotonic", 8, typ=I64), b.not_(deferred))
    published = b.inttoptr(b.load(_field(b, context, "published"), typ=I64), PTR)
    newest = b.load_atomic(published, "monotonic", 8, typ=I64)
    number_taken = b.load(_field(b, context, "view_number"), typ=I64)
    for refused, stop in (
        (b.icmp_unsigned("!=", requests, number(0)), Stop.REQUEST),
        (b.icmp_unsigned("!=", number_taken, newest), Stop.STALE),
    ):
        with b.if_then(refused, likely=False):
            b.store_atomic(number(OUTSIDE_GUEST_MODE), word, "release", 8)
            b.ret(number(stop))
    b.ret(number(ENTERED))
    return function


def _leave(module: ir.Module) -> None:
    """`void leave_mode(context)`: whatever the vCPU did in its mode happened before this."""
    function, b = _function(module, "leave_mode", ir.VoidType(), I64)
    b.store_atomic(number(OUTSIDE_GUEST_MODE), _field(b, function.args[0], "mode"), "release", 8)
    b.ret_void()


class _Loop:
    """A loop over 0 … count-1 with the builder inside its body; `end` leaves the builder behind it."""

    def __init__(self, b: ir.IRBuilder, count: ir.Value) -> None:
        self.b = b
        before = b.block
        self._head, self._body = (b.append_basic_block(name) for name in ("head", "body"))
        self.after = b.append_basic_block("after")
        b.branch(self._head)
        b.position_at_end(self._head)
        self.index = b.phi(I64)
        self.index.add_incoming(number(0), before)
        b.cbranch(b.icmp_unsigned("<", self.index, count), self._body, self.after)
        b.position_at_end(self._body)

    def end(self) -> None:
        self.index.add_incoming(self.b.add(self.index, number(1)), self.b.block)
        self.b.branch(self._head)
        self.b.position_at_end(self.after)

    def word(self, base: ir.Value) -> ir.Value:
        """Return the address of the word of an array that the loop is at."""
        return self.b.inttoptr(self.b.add(base, self.b.shl(self.index, number(3))), _WORD)


def _post(module: ir.Module) -> None:
    """`void post(contexts, count, bits)`: set request bits of all, then a full fence."""
    function, b = _function(module, "post", ir.VoidType(), I64, I64, I64)
    contexts, count, bits = function.args
    loop = _Loop(b, count)
    context = b.load(loop.word(contexts), typ=I64)
    b.atomic_rmw("or", _field(b, context, "requests"), bits, "monotonic")
    loop.end()
    b.fence("seq_cst")
    b.ret_void()


def _retract(module: ir.Module) -> None:
    """`void retract(contexts, count, bits)`: clear request bits of all."""
    function, b = _function(module, "retract", ir.VoidType(), I64, I64, I64)
    contexts, count, bits = function.args
    loop = _Loop(b, count)
    context = b.load(loop.word(contexts), typ=I64)
    b.atomic_rmw("and", _field(b, context, "requests"), b.not_(bits), "release")
    loop.end()
    b.ret_void()


def _wait_outside(module: ir.Module) -> None:
    """`u64 wait_outside(contexts, count, number, yields)`: wait until each was seen outside, or in a new enough view.

    Gives the processor away while it waits, since a vCPU's thread may be waiting for it. Returns how many it was
    still waiting for when it had done so `yields` times.
    """
    function, b = _function(module, "wait_outside", I64, I64, I64, I64, I64)
    contexts, count, newest, yields = function.args
    sched_yield = ir.Function(module, ir.FunctionType(ir.IntType(32), ()), "sched_yield")
    left = b.alloca(I64)
    b.store(yields, left)
    loop = _Loop(b, count)
    context = b.load(loop.word(contexts), typ=I64)
    look = b.append_basic_block("look")
    b.branch(look)
    b.position_at_end(look)
    mode = b.load_atomic(_field(b, context, "mode"), "acquire", 8, typ=I64)
    taken = b.load_atomic(_field(b, context, "view_number"), "monotonic", 8, typ=I64)
    outside = b.icmp_unsigned("==", mode, number(OUTSIDE_GUEST_MODE))
    seen, again, give_up, go_on = (b.append_basic_block(name) for name in ("seen", "again", "give_up", "go_on"))
    b.cbranch(b.or_(outside, b.icmp_unsigned(">=", taken, newest)), seen, again)
    b.position_at_end(again)
    rest = b.load(left, typ=I64)
    b.cbranch(b.icmp_unsigned("==", rest, number(0)), give_up, go_on)
    b.position_at_end(give_up)
    b.ret(b.sub(count, loop.index))
    b.position_at_end(go_on)
    b.store(b.sub(rest, number(1)), left)
    b.call(sched_yield, [])
    b.branch(look)
    b.position_at_end(seen)
    loop.end()
    b.ret(number(0))


def _set_bits(module: ir.Module) -> None:
    """`u64 set_bits(address, bits)`: the word as it was."""
    function, b = _function(module, "set_bits", I64, I64, I64)
    address, bits = function.args
    b.ret(b.atomic_rmw("or", b.inttoptr(address, _WORD), bits, "monotonic"))


def _compare_exchange(module: ir.Module, size: int) -> None:
    """`u64 compare_exchange_SIZE(address, expected, new)`: the number that was there, extended with zeroes."""
    function, b = _function(module, f"compare_exchange_{size}", I64, I64, I64, I64)
    address, expected, new = function.args
    kind = ir.IntType(size * 8)
    place = b.inttoptr(address, kind.as_pointer())
    old, wanted = (word if size == 8 else b.trunc(word, kind) for word in (expected, new))
    found = b.extract_value(b.cmpxchg(place, old, wanted, "seq_cst", "seq_cst"), 0)
    b.ret(found if size == 8 else b.zext(found, I64))


def _exchange(module: ir.Module) -> None:
    """`void exchange(address, count, taken)`: take words and leave zeroes; words that are zero are only read."""
    function, b = _function(module, "exchange", ir.VoidType(), I64, I64, I64)
    address, count, taken = function.args
    loop = _Loop(b, count)
    word = loop.word(address)
    b.store(number(0), loop.word(taken))
    with b.if_then(b.icmp_unsigned("!=", b.load_atomic(word, "monotonic", 8, typ=I64), number(0))):
        b.store(b.atomic_rmw("xchg", word, number(0), "monotonic"), loop.word(taken))
    loop.end()
    b.ret_void()


def _clear(module: ir.Module) -> None:
    """`void clear(address, count, masks)`: clear the masks' bits, and leave in their place those that went."""
    function, b = _function(module, "clear", ir.VoidType(), I64, I64, I64)
    address, count, masks = function.args
    loop = _Loop(b, count)
    mask = b.load(loop.word(masks), typ=I64)
    before = b.atomic_rmw("and", loop.word(address), b.not_(mask), "monotonic")
    b.store(b.and_(before, mask), loop.word(masks))
    loop.end()
    b.ret_void()
