"""The two engines behind one door: guest mode, the handshake with it, and atomic words.

`CompiledEngine` runs machine code without the GIL. `EvaluatedEngine` runs everything on the evaluation, an
instruction at a time under one lock; it needs no LLVM and is the judge of the other. An engine knows contexts and
views; it owns no vCPU and decides nothing: what a request means is its caller's business.
"""

from __future__ import annotations

import ctypes
import platform
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

from vmmd.isa.context import IN_GUEST_MODE, OUTSIDE_GUEST_MODE, READING_MEMSLOTS, Context, ContextRecord
from vmmd.isa.evaluate import Pending, evaluate
from vmmd.isa.hot.translator import TranslationStats, Translator
from vmmd.isa.outcome import Outcome
from vmmd.isa.stop import Stop
from vmmd.memory.dirty import Words
from vmmd.memory.view import View


class ContextGroup:
    """Contexts that are kicked together, as an array of addresses that compiled code walks."""

    __slots__ = ("address", "array", "contexts")

    def __init__(self, contexts: Sequence[Context]) -> None:
        self.contexts = tuple(contexts)
        self.array = (ctypes.c_uint64 * max(len(contexts), 1))(*(context.address for context in contexts))
        self.address = ctypes.addressof(self.array)

    def __len__(self) -> int:
        return len(self.contexts)


_YIELDS_IN_GIL = 20
"""How often a kicker gives the processor away and keeps the GIL: a few tens of microseconds."""

_NAPS = 50
_NAP_S = 20e-6
"""How often and for how long it sleeps then; with the system's slack that is some 80 µs each, and 4 ms in all."""

_SAMPLES_AT_ONCE = 16
"""How many samples are worth to be looked at: a loop gives as many within a millisecond."""

TURN_INSTRUCTIONS = 64
"""What is evaluated before others may have the thread: some milliseconds at most."""

Ran = Stop | Outcome | Pending
"""What guest mode came to: where it was stopped, or why the guest left."""


class Engine(Words, Protocol):
    """What the vCPUs run on. `Words` are its atomic steps on dirty logs."""

    @property
    def translations(self) -> TranslationStats:
        """What has been translated; zeroes where the engine does not translate."""

    def run(self, context: Context, view: View, pending: Pending | None = None, deferred: int = 0) -> Ran:
        """Enter guest mode and run until the budget is used up, a request waits, the guest leaves, or a turn is over.

        The context has taken `view`, and the caller keeps it. A pending instruction, which has its answer, comes
        first, and requests of `deferred` do not keep it from being completed; where the vCPU may not enter, it stays
        pending. `Stop.INSTRUCTION` is never returned.

        Where the guest left, with an outcome or a pending instruction, the vCPU is still counted as inside, so that
        nobody who kicks has an answer before its caller has kept that; the caller ends it with `leave`.
        """

    def enter(self, context: Context) -> Stop | None:
        """Count the vCPU as inside while its state is changed; a `Stop` says why it may not be now."""

    def leave(self, context: Context) -> None:
        """Count the vCPU as outside again: whatever was done with its state happened before this."""

    def post(self, group: ContextGroup, requests: int) -> None:
        """Set request bits. Who is not in guest mode sees them before it enters."""

    def retract(self, group: ContextGroup, requests: int) -> None:
        """Clear request bits."""

    def close(self) -> None:
        """End what the engine has running beside the vCPUs, none of which runs any more."""

    def wait_outside(self, group: ContextGroup, view_number: int, yields: int) -> int:
        """Wait until each context was seen outside guest mode or in a view as new as that.

        Gives the processor away, at most about `yields` times. Returns how many were still to be seen.
        """


class CompiledEngine:
    """Guest mode in machine code: an interpreter's loop, and regions of translated code where there is a translator.

    Attributes:
        name: "translated" with a translator, else "compiled".
        translator: what makes regions; None: there are none.
    """

    def __init__(self, cache_dir: Path | None, translator: Translator | None = None) -> None:
        self.name = "compiled" if translator is None else "translated"
        # Only this engine needs LLVM; a daemon on the evaluation alone never loads it.
        from vmmd.isa.native import Native  # noqa: PLC0415

        self._native = Native(cache_dir)
        self.translator = translator

    def run(self, context: Context, view: View, pending: Pending | None = None, deferred: int = 0) -> Ran:
        """See `Engine`."""
        for _ in range(TURN_INSTRUCTIONS):
            if pending is None:
                stop = self._run_compiled(context, view)
                if stop is not Stop.INSTRUCTION:
                    return stop
            # One instruction in Python, which reads the view outside guest mode, and so enters a mode of its own.
            refused = self._native.enter(context.address, READING_MEMSLOTS, deferred if pending else 0)
            if refused:
                return Stop(refused)
            if not context.record.budget:
                self.leave(context)
                return Stop.BUDGET
            try:
                outcome = evaluate(context, view, self, pending)
                _note_full_ring(self, context)
            except BaseException:
                self.leave(context)
                raise
            if outcome is not None:
                return outcome
            self.leave(context)
            pending = None
        return Stop.TURN

    @property
    def translations(self) -> TranslationStats:
        """See `Engine`."""
        return self.translator.stats() if self.translator is not None else TranslationStats()

    def _run_compiled(self, context: Context, view: View) -> Stop:
        """Run compiled code until it stops."""
        translator = self.translator
        if translator is None:
            context.take_regions(None)
            return Stop(self._native.run(context.address))
        while True:
            table = translator.table
            context.take_regions(table)
            stop = Stop(self._native.run(context.address))
            context.give_regions_back()
            if context.record.sample_count >= _SAMPLES_AT_ONCE:
                translator.note(context, view)
            if stop is not Stop.UNTRANSLATED:
                return stop
            # Where another vCPU has had it translated meanwhile, that table is taken first.
            if table is translator.table and not translator.translate_now(context.record.pc, view):
                return Stop.INSTRUCTION

    def enter(self, context: Context) -> Stop | None:
        """See `Engine`."""
        refused = self._native.enter(context.address, READING_MEMSLOTS, 0)
        return Stop(refused) if refused else None

    def leave(self, context: Context) -> None:
        """See `Engine`."""
        self._native.leave_mode(context.address)

    def post(self, group: ContextGroup, requests: int) -> None:
        """See `Engine`."""
        self._native.post(group.address, len(group), requests)

    def retract(self, group: ContextGroup, requests: int) -> None:
        """See `Engine`."""
        self._native.retract(group.address, len(group), requests)

    def close(self) -> None:
        """See `Engine`."""
        if self.translator is not None:
            self.translator.close()

    def wait_outside(self, group: ContextGroup, view_number: int, yields: int) -> int:
        """See `Engine`.

        Who leaves guest mode does so without the GIL, within a microsecond, and wants the GIL next. So this keeps the
        GIL at first: else it would get it back only behind all that parks. Later it lets go of it, since Python may be
        completing an instruction; and at last it sleeps, since the scheduler gives a thread that yields the processor
        back as long as it holds that nobody else deserves it.
        """
        native, size = self._native, len(group)
        if not native.wait_outside_in_gil(group.address, size, view_number, min(yields, _YIELDS_IN_GIL)):
            return 0
        left = native.wait_outside(group.address, size, view_number, min(yields, _YIELDS_IN_GIL))
        for _ in range(min(yields, _NAPS) if left else 0):
            time.sleep(_NAP_S)
            left = native.wait_outside(group.address, size, view_number, 0)
            if not left:
                break
        return left

    def set_bits(self, address: int, bits: int) -> int:
        """See `Words`."""
        return self._native.set_bits(address, bits)

    def compare_exchange(self, address: int, size: int, expected: int, new: int) -> int:
        """See `Words`."""
        return self._native.compare_exchange[size](address, expected, new)

    def exchange(self, address: int, count: int) -> bytes:
        """See `Words`."""
        taken = ctypes.create_string_buffer(count * 8)
        self._native.exchange(address, count, ctypes.addressof(taken))
        return taken.raw

    def clear(self, address: int, masks: bytes) -> bytes:
        """See `Words`."""
        words = ctypes.create_string_buffer(masks, len(masks))
        self._native.clear(address, len(masks) // 8, ctypes.addressof(words))
        return words.raw


class EvaluatedEngine:
    """Guest mode on the evaluation. One lock orders every instruction and every atomic step."""

    name = "evaluated"

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @property
    def translations(self) -> TranslationStats:
        """See `Engine`."""
        return TranslationStats()

    def run(self, context: Context, view: View, pending: Pending | None = None, deferred: int = 0) -> Ran:
        """See `Engine`."""
        deferred = deferred if pending else 0
        refused = self._take_mode(context, IN_GUEST_MODE, deferred)
        if refused is not None:
            return refused
        ran: Ran = Stop.TURN
        try:
            ran = self._evaluate(context, view, pending, deferred)
        finally:
            if isinstance(ran, Stop):
                self.leave(context)
        return ran

    def _evaluate(self, context: Context, view: View, pending: Pending | None, deferred: int) -> Ran:
        record = context.record
        for _ in range(TURN_INSTRUCTIONS):
            if record.requests & ~deferred:
                return Stop.REQUEST
            if not record.budget:
                return Stop.BUDGET
            with self._lock:
                outcome = evaluate(context, view, self, pending)
                _note_full_ring(self, context)
            if outcome is not None:
                return outcome
            pending, deferred = None, 0
        return Stop.TURN

    def enter(self, context: Context) -> Stop | None:
        """See `Engine`."""
        return self._take_mode(context, READING_MEMSLOTS, 0)

    def leave(self, context: Context) -> None:
        """See `Engine`."""
        context.record.mode = OUTSIDE_GUEST_MODE

    def _take_mode(self, context: Context, mode: int, deferred: int) -> Stop | None:
        record = context.record
        # The GIL orders these accesses as the compiled engine's fences do.
        record.mode = mode
        stale = record.view_number != ctypes.c_uint64.from_address(record.published).value
        if not stale and not record.requests & ~deferred:
            return None
        self.leave(context)
        return Stop.REQUEST if record.requests & ~deferred else Stop.STALE

    def post(self, group: ContextGroup, requests: int) -> None:
        """See `Engine`."""
        with self._lock:
            for context in group.contexts:
                context.record.requests |= requests

    def retract(self, group: ContextGroup, requests: int) -> None:
        """See `Engine`."""
        with self._lock:
            for context in group.contexts:
                context.record.requests &= ~requests

    def wait_outside(self, group: ContextGroup, view_number: int, yields: int) -> int:
        """See `Engine`."""
        for index, context in enumerate(group.contexts):
            record = context.record
            while record.mode != OUTSIDE_GUEST_MODE and record.view_number < view_number:
                if not yields:
                    return len(group) - index
                yields -= 1
                time.sleep(0)
        return 0

    def close(self) -> None:
        """See `Engine`; there is nothing."""

    def set_bits(self, address: int, bits: int) -> int:
        """See `Words`."""
        with self._lock:
            word = ctypes.c_uint64.from_address(address)
            before = word.value
            word.value = before | bits
        return before

    def compare_exchange(self, address: int, size: int, expected: int, new: int) -> int:
        """See `Words`."""
        with self._lock:
            number = (ctypes.c_uint32 if size == 4 else ctypes.c_uint64).from_address(address)
            before = number.value
            if before == expected:
                number.value = new
        return before

    def exchange(self, address: int, count: int) -> bytes:
        """See `Words`."""
        with self._lock:
            taken = ctypes.string_at(address, count * 8)
            ctypes.memset(address, 0, count * 8)
        return taken

    def clear(self, address: int, masks: bytes) -> bytes:
        """See `Words`."""
        gone = bytearray()
        with self._lock:
            for at in range(0, len(masks), 8):
                word = ctypes.c_uint64.from_address(address + at)
                mask = int.from_bytes(masks[at : at + 8], "little")
                gone += (word.value & mask).to_bytes(8, "little")
                word.value &= ~mask
        return bytes(gone)


def _note_full_ring(words: Words, context: Context) -> None:
    """Have a vCPU whose ring is full softly stop before its next instruction, as compiled stores do."""
    if context.ring is not None and context.ring.is_soft_full:
        words.set_bits(context.address + ContextRecord.requests.offset, context.record.ring_full)


TRANSLATED_MACHINES = ("x86_64",)
"""Where machine code runs as soon as it is written; elsewhere the processor's caches would have to be told."""

EngineName = Literal["translated", "compiled", "evaluated"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


def make_engine(name: EngineName, cache_dir: Path | None, on_failure: Callable[[str], None] = lambda _: None) -> Engine:
    """Make the engine of that name.

    Args:
        name: one of `ENGINES`.
        cache_dir: keeps the compiled code from start to start.
        on_failure: told what went wrong with translations, on a thread of its own; guests go on without.
    """
    match name:
        case "translated" if platform.machine() in TRANSLATED_MACHINES:
            return CompiledEngine(cache_dir, Translator(on_failure))
        case "translated":
            on_failure(f"guest code is not translated for {platform.machine()}; the interpreter's loop runs it")
            return CompiledEngine(cache_dir)
        case "compiled":
            return CompiledEngine(cache_dir)
        case "evaluated":
            return EvaluatedEngine()
