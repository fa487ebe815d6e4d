"""What a worker does with a vCPU while a KVM_RUN is in flight: slices of guest mode, requests, interrupts, sleep.

From `submit` on the vCPU belongs to whichever worker has it: it takes views, serves requests and parks there, without
the event loop, until there is an exit or an error to hand back.

    submit() --> ready --> a slice on a worker --+--> exit or error, for the event loop
                   ^             |               |
                   |             v               |
                   +-- rotation or go() <-- parked, or asleep after a wfi

It never touches memory but through the view that it has taken.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter

from vmmd.isa.context import Context
from vmmd.isa.engine import ContextGroup, Ran
from vmmd.isa.evaluate import Pending
from vmmd.isa.outcome import Halt, LostPage, Mmio, Outcome
from vmmd.isa.stop import Stop
from vmmd.isa.traps import interrupt_is_due, interrupt_waits, pending_word, take_interrupt
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import KVM_EXIT_UNKNOWN, DebugExit, DirtyRingFullExit, Exit, exit_of
from vmmd.kvm.in_flight import KVM_RUN, InFlight, Run, kicked, signalled
from vmmd.kvm.irqchip import Irqchip
from vmmd.kvm.rendezvous import Rendezvous
from vmmd.kvm.requests import (
    COMPLETING,
    ENDING,
    KVM_REQ_DIRTY_RING_SOFT_FULL,
    KVM_REQ_EVENT,
    KVM_REQ_HOLD,
    KVM_REQ_RUN_OVER,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_USERSPACE_KICK,
    KVM_REQ_VM_DEAD,
    PARKING,
)
from vmmd.kvm.scheduler import Turn
from vmmd.memory.view import View

SLICE_INSTRUCTIONS, _MOST_SLICE_INSTRUCTIONS = 400_000, 16_000_000
"""What a vCPU runs before others may have its worker: a millisecond of the interpreter's loop at first, and as much as
it takes for about a millisecond where its code is translated."""

_SLICE_NS = 1_000_000

_SERVED = KVM_REQ_TLB_FLUSH | KVM_REQ_EVENT
"""Requests that a vCPU clears as it looks at what they tell of."""


_WITHIN_A_TURN = (Stop.REQUEST, Stop.STALE)
"""Where the vCPU goes on at once; behind all else, others that wait may have the worker."""


def _end(result: KvmError | Exit) -> Exit:
    if isinstance(result, KvmError):
        raise result
    return result


class _RunIsOver(Exception):  # noqa: N818 - nothing went wrong
    """The run that a worker was with has been ended from outside."""


class Runner:
    """A vCPU as workers see it.

    Whoever has the vCPU may change the attributes: a worker while a run is in flight, else, or while it is paused, the
    event loop.

    Attributes:
        context: the record that it shares with compiled code.
        group: a group of this vCPU alone.
        pending: the instruction that waits for userspace, or was answered and not completed yet.
        halted: whether it waits for an interrupt inside KVM_RUN.
        single_step: whether each instruction ends in a KVM_EXIT_DEBUG.
        exits, kicks: counters.
    """

    def __init__(self, rendezvous: Rendezvous, context: Context, irqchip: Irqchip | None) -> None:
        self.context = context
        self.group = ContextGroup((context,))
        self.pending: Pending | None = None
        self.halted = False
        self.single_step = False
        self.exits: Counter[str] = Counter()
        self.kicks = 0
        self._slice_instructions = SLICE_INSTRUCTIONS
        self._rendezvous = rendezvous
        self._irqchip = irqchip
        # Which run the workers are to go on with, and whether one of them, their queue or the parking lot has the vCPU.
        self._lock = threading.Lock()
        self._run: InFlight | None = None
        self._is_out = False

    # On any thread.

    @property
    def may_go(self) -> bool:
        """See `Parkable`."""
        requests = self.context.record.requests
        return bool(requests & ENDING or not (requests & PARKING or self._sleeps))

    @property
    def has_work(self) -> bool:
        """Whether the run in flight has an instruction to run, or to end; parked or not."""
        return bool(self.context.record.requests & ENDING) or not self._sleeps

    @property
    def _sleeps(self) -> bool:
        return self.halted and self.pending is None and not interrupt_waits(self.context)

    @property
    def _ring_is_full(self) -> bool:
        return self.context.ring is not None and self.context.ring.is_soft_full

    def raise_interrupts(self, bits: int) -> None:
        """See `Lines`."""
        self._rendezvous.engine.set_bits(pending_word(self.context), bits)
        self._rendezvous.post(KVM_REQ_EVENT, self.group)

    def lower_interrupts(self, bits: int) -> None:
        """See `Lines`."""
        self._rendezvous.engine.clear(pending_word(self.context), bits.to_bytes(8, "little"))

    # On the event loop.

    def begin(self, run: InFlight) -> None:
        """Begin a run, which goes on whenever the vCPU is given a slice; it has none."""
        self._run = run

    def submit(self, run: InFlight) -> None:
        """Begin a run, and hand the vCPU to the workers for it."""
        with self._lock:
            self._run = run
            # Where the run before was taken back, whoever still has the vCPU goes on with this one.
            out, self._is_out = self._is_out, True
        if not out:
            self._rendezvous.scheduler.submit(self)

    def take_back(self, run: Run) -> bool:
        """End a run at once, without the workers; the caller tells who waits for it.

        The vCPU is outside guest mode. False where it is not kicked any more, where an instruction is still to be
        completed, or where a worker has a result already.
        """
        if not self.context.record.requests & KVM_REQ_USERSPACE_KICK:
            return False
        if self.pending is not None or run.ends_with is not None or not run.take_back():
            return False
        if self._rendezvous.unpark(self):
            self._give_back(run)
        else:
            self._rendezvous.engine.post(self.group, KVM_REQ_RUN_OVER)
        return True

    def _give_back(self, run: InFlight) -> bool:
        """Let the workers have the vCPU no more, unless another run has begun: tell whether that is so."""
        with self._lock:
            if self._run is not run:
                return True
            self._run = None
            self._is_out = False
            return False

    def abandon(self) -> None:
        """Forget a pending instruction: what comes next is another one."""
        self.pending = None

    def answer(self, data: bytes | None) -> None:
        """Take userspace's answer to what is pending; the one of an interrupted run stands until there is another.

        Raises:
            KvmError: EINVAL where `data` does not fit what is pending.
        """
        pending = self.pending
        size = pending.answer_size if pending is not None else 0
        if data is not None and len(data) != size:
            waits = f"{size} bytes are waited for" if size else "no read of the guest waits for data"
            raise KvmError(errno.EINVAL, f"data has {len(data)} bytes, and {waits}", KVM_RUN)
        if pending is not None and (data is not None or pending.piece not in pending.done):
            pending.answer(data if data is not None else bytes(size))

    # On a worker.

    def run_slice(self, turn: Turn) -> bool:
        """Run until there is a result, or it is another vCPU's turn."""
        run = self._run
        assert run is not None, "a vCPU is queued by KVM_RUN alone"  # noqa: S101
        result: Exit | bool | BaseException
        try:
            result = self._slice(run, turn)
        except KvmError as error:
            # Without its frames, which would keep the view alive: an error and the frame that holds it are a cycle.
            result = error.with_traceback(None)
        except BaseException as error:
            result = error
        if isinstance(result, bool):
            return result
        kept = run.keep()
        goes_on = self._give_back(run)
        if kept:
            if not isinstance(result, BaseException):
                self.exits[result.reason] += 1
            run.finish(result)
        return goes_on

    def _slice(self, run: InFlight, turn: Turn) -> Exit | bool:
        """Return an exit, or whether to be queued again."""
        if run.is_over:
            raise _RunIsOver
        while True:
            if self.context.record.requests and self._serve_requests(run):
                return False
            if run.ends_with is not None and self.pending is None:
                return _end(run.ends_with)
            if self._sleeps:
                if self._rendezvous.park(self):
                    return False
                continue
            view = self._rendezvous.view
            self.context.take_view(view)
            if not self._make_ready():
                continue
            stepping = self.single_step
            ran, completing = self._enter(run, turn, view, stepping=stepping)
            if not isinstance(ran, Stop):
                # The vCPU still counts as inside: a kick has no answer before what came of it is kept.
                try:
                    if not self._serve_inside(ran):
                        run.keep()
                        return self._leave(ran, completing=completing)
                finally:
                    self._rendezvous.engine.leave(self.context)
            # Whatever it was stopped by: a step is over once its instruction is.
            if stepping and run.ends_with is None and (not self.context.record.budget or isinstance(ran, Halt)):
                return DebugExit(self.context.record.pc, None)
            # What was served inside ends a turn too: a guest that does nothing else would keep the worker for good.
            if ran not in _WITHIN_A_TURN and turn.others_wait:
                return True

    def _make_ready(self) -> bool:
        """End a sleep, and take an interrupt that is due. False: something has come, so look at everything again."""
        context, engine = self.context, self._rendezvous.engine
        if self.pending is not None or not (self.halted or interrupt_is_due(context)):
            return True
        # Inside, so that whoever has kicked, and uses the registers, sees none of them change.
        if engine.enter(context) is not None:
            return False
        try:
            if self._sleeps:
                return False
            self.halted = False
            take_interrupt(context, engine)
        finally:
            engine.leave(context)
        return True

    def _enter(self, run: InFlight, turn: Turn, view: View, *, stepping: bool) -> tuple[Ran, bool]:
        """Enter guest mode in a view; return what came of it, and whether an exit is still to be completed."""
        record = self.context.record
        # One alone: the debugger's step, or the end of a pending exit of a run or a vCPU that goes no further.
        one = stepping or run.ends_with is not None or self.halted
        allowed = record.budget = turn.allow(1 if one else self._slice_instructions)
        retired = record.retired
        start_ns = time.perf_counter_ns()
        ran = self._rendezvous.engine.run(self.context, view, self.pending, COMPLETING)
        if ran is Stop.BUDGET and allowed == self._slice_instructions:
            self._fit_slice(time.perf_counter_ns() - start_ns)
        if record.retired != retired:
            self.pending = None
        return ran, self.pending is not None

    def _fit_slice(self, took_ns: int) -> None:
        """Make the next slice longer or shorter, where one was used up much too soon or too late."""
        if took_ns < _SLICE_NS // 2:
            self._slice_instructions = min(2 * self._slice_instructions, _MOST_SLICE_INSTRUCTIONS)
        elif took_ns > 2 * _SLICE_NS:
            self._slice_instructions = max(self._slice_instructions // 2, SLICE_INSTRUCTIONS)

    def _serve_requests(self, run: InFlight) -> bool:
        """Serve what is requested; tell whether the vCPU is parked now."""
        requests = self.context.record.requests
        if requests & KVM_REQ_VM_DEAD:
            raise KvmError(errno.ECANCELED, "the VM is destroyed", KVM_RUN)
        if requests & KVM_REQ_RUN_OVER:
            self._rendezvous.engine.retract(self.group, KVM_REQ_RUN_OVER)
            if run.is_over:
                raise _RunIsOver
            requests &= ~KVM_REQ_RUN_OVER
        if requests & ENDING:
            if not isinstance(run.ends_with, KvmError):
                # One that immediate_exit ends does not get as far as to be kicked, and keeps its reason.
                run.ends_with = kicked(KVM_EXIT_UNKNOWN) if requests & KVM_REQ_USERSPACE_KICK else signalled()
            if self.pending is None or requests & PARKING:
                raise run.ends_with
        if requests & PARKING:
            self.kicks += bool(requests & KVM_REQ_HOLD)
            return self._rendezvous.park(self)
        is_full = self._ring_is_full
        self._rendezvous.engine.retract(
            self.group, requests & (_SERVED if is_full else _SERVED | KVM_REQ_DIRTY_RING_SOFT_FULL)
        )
        if is_full:
            # As in KVM, its request stands: the next run ends at once too, until a reset.
            run.ends_with = run.ends_with or DirtyRingFullExit()
        return False

    def _serve_inside(self, ran: Outcome | Pending) -> bool:
        """Do what the in-kernel interrupt controller does; tell whether that was all, and the guest goes on."""
        if self._irqchip is None:
            return False
        if isinstance(ran, Halt):
            self.halted = True
            return True
        if isinstance(ran, Pending) and isinstance(ran.outcome, Mmio) and self._irqchip.owns(ran.outcome):
            ran.answer(self._irqchip.access(ran.outcome))
            self.pending = ran
            return True
        return False

    def _leave(self, ran: Outcome | Pending, *, completing: bool) -> Exit:
        self.pending = ran if isinstance(ran, Pending) else None
        outcome = ran.outcome if isinstance(ran, Pending) else ran
        if self.context.record.requests & KVM_REQ_USERSPACE_KICK and not completing:
            # As it was proposed: an exit of the round in which the kick came is lost to userspace. The next run
            # completes it, whatever its data is.
            raise kicked(KVM_EXIT_UNKNOWN if isinstance(outcome, LostPage) else exit_of(outcome).reason)
        if isinstance(outcome, LostPage):
            sentence = f"no host memory below guest_phys_addr {outcome.phys_addr:#x}: {outcome.why}"
            raise KvmError(errno.EFAULT, sentence, KVM_RUN)
        return exit_of(outcome)
