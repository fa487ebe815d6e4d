"""A vCPU: KVM_RUN as a coroutine, and its slices on worker threads.

`run` hands the vCPU to the scheduler and awaits the exit. From then on the vCPU belongs to whichever worker has it:
it takes views, serves requests and parks there, without the event loop, until there is an exit or an error to hand
back.

    run() --> ready --> a slice on a worker --+--> exit or error, back to run()
                ^             |               |
                |             v               |
                +-- rotation or go() <-- parked

It refuses a second KVM_RUN while one is under way, and never touches memory but through the view that it has taken.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from vmmd.isa.context import Context
from vmmd.isa.encoding import REGISTERS
from vmmd.isa.engine import ContextGroup
from vmmd.isa.evaluate import Pending
from vmmd.isa.outcome import Halt, Hypercall, LostPage, Mmio, NoAtomic, NoCode, Outcome, Port, Trap
from vmmd.isa.stop import Stop
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import (
    KVM_EXIT_INTR,
    KVM_EXIT_UNKNOWN,
    DirtyRingFullExit,
    Exit,
    HltExit,
    HypercallExit,
    InternalErrorExit,
    IoExit,
    MmioExit,
    ShutdownExit,
)
from vmmd.kvm.rendezvous import Rendezvous
from vmmd.kvm.requests import (
    KVM_REQ_DIRTY_RING_SOFT_FULL,
    KVM_REQ_HOLD,
    KVM_REQ_PAUSE,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_VM_DEAD,
    PARKING,
    SIGNAL_PENDING,
)
from vmmd.kvm.scheduler import Scheduler
from vmmd.kvm.uapi import KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_INTERNAL_ERROR_EMULATION
from vmmd.memory.limits import U64
from vmmd.memory.ring import DirtyRing

SLICE_INSTRUCTIONS = 400_000
"""What a vCPU runs before others may have its worker: about a millisecond."""

_KVM_RUN = "KVM_RUN"


@dataclass(slots=True)
class Stats:
    """Counters of a vCPU, or their sums over a VM."""

    instructions: int = 0
    exits: Counter[str] = field(default_factory=Counter)
    stray_exits: int = 0
    kicks: int = 0

    def __add__(self, other: Stats) -> Stats:
        """Sum two."""
        return Stats(
            self.instructions + other.instructions,
            self.exits + other.exits,
            self.stray_exits + other.stray_exits,
            self.kicks + other.kicks,
        )


class _Run:
    """One KVM_RUN in flight."""

    __slots__ = ("done", "ends_with", "interrupted", "loop")

    def __init__(self, *, ends_with: KvmError | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Exit] = self.loop.create_future()
        # Where it is set, the pending exit is completed, no further instruction runs, and the run ends with this.
        self.ends_with: KvmError | Exit | None = ends_with
        self.interrupted = False

    def finish(self, result: Exit | BaseException) -> None:
        """Hand the result to the event loop; called on a worker."""
        self.loop.call_soon_threadsafe(self._deliver, result)

    def _deliver(self, result: Exit | BaseException) -> None:
        if isinstance(result, BaseException):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class Vcpu:
    """One virtual CPU.

    Attributes:
        id: its number in the VM.
        context: the record that it shares with compiled code.
        stray_exits: how many MMIO exits no device owned; the run loop counts them.
    """

    def __init__(self, rendezvous: Rendezvous, vcpu_id: int, requests: int, ring: DirtyRing | None = None) -> None:
        self.id = vcpu_id
        self.context = Context(rendezvous.published, ring, KVM_REQ_DIRTY_RING_SOFT_FULL)
        self.stray_exits = 0
        self._rendezvous = rendezvous
        self._group = ContextGroup((self.context,))
        self._run: _Run | None = None
        self._pending: Pending | None = None
        self._immediate_exit = 0
        self._reason = KVM_EXIT_UNKNOWN
        self._pauses = 0
        self._exits: Counter[str] = Counter()
        self._kicks = 0
        self._reset: asyncio.Future[None] | None = None
        self._owner: object = None
        rendezvous.join(self.context, requests)

    @property
    def is_running(self) -> bool:
        """Whether a KVM_RUN is under way, parked or not."""
        return self._run is not None

    def stats(self) -> Stats:
        """Return its counters; they are never gated."""
        return Stats(self.context.record.retired, Counter(self._exits), self.stray_exits, self._kicks)

    # On the event loop.

    def own(self, owner: object) -> None:
        """Keep the vCPU for runs that name this owner, as a run loop does while it goes; None gives it back."""
        self._owner = owner

    async def run(self, data: bytes | None = None, timeout_ms: int | None = None, *, owner: object = None) -> Exit:
        """KVM_RUN: run until userspace is needed.

        Args:
            data: the answer to the pending MMIO read, port read or hypercall; zeroes where it is left out.
            timeout_ms: milliseconds after which the run is interrupted as by a signal.
            owner: who calls, where the vCPU is owned.

        Raises:
            KvmError: EBUSY where a run is under way, or somebody else owns the vCPU; EINVAL where `data` does not fit
                what is pending; EINTR by a signal, a timeout or immediate_exit; EFAULT where a host page is gone;
                ECANCELED where the VM is destroyed.
        """
        if self._run is not None:
            raise KvmError(errno.EBUSY, f"vCPU {self.id} is in KVM_RUN already", _KVM_RUN)
        if self._owner is not None and owner is not self._owner:
            raise KvmError(errno.EBUSY, f"a run loop has vCPU {self.id}; stop it first", _KVM_RUN)
        self._answer(data)
        # A reservation does not outlast a return of KVM_RUN.
        self.context.end_reservation()
        at_once = KvmError(errno.EINTR, "immediate_exit is set", _KVM_RUN, exit_reason=self._reason)
        run = self._run = _Run(ends_with=at_once if self._immediate_exit else None)
        run.done.add_done_callback(self._over)
        timer = run.loop.call_later(timeout_ms / 1000, self.signal) if timeout_ms is not None else None
        self._rendezvous.scheduler.submit(self)
        try:
            return await asyncio.shield(run.done)
        except asyncio.CancelledError:
            # A worker has the vCPU, so the run is over only when the worker says so.
            self.signal()
            await asyncio.wait([run.done])
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def run_over(self) -> None:
        """Wait until no KVM_RUN is under way."""
        if self._run is not None:
            await asyncio.wait([self._run.done])

    def signal(self) -> None:
        """End the KVM_RUN that is under way, or the wait for a reset, with EINTR; without one it does nothing."""
        if self._run is not None:
            self._rendezvous.end_run(SIGNAL_PENDING, self._group)
        self.end_wait(KvmError(errno.EINTR, "the wait was interrupted", _KVM_RUN, exit_reason=KVM_EXIT_INTR))

    async def ring_reset(self) -> None:
        """Wait until the dirty ring has room again.

        Raises:
            KvmError: EINTR where the vCPU is signalled meanwhile, ECANCELED where the VM is destroyed.
        """
        ring = self.context.ring
        while ring is not None and ring.is_soft_full:
            if self._reset is None:
                self._reset = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._reset)

    def end_wait(self, error: KvmError | None = None) -> None:
        """End the wait for a reset: the rings were reset, or with an error."""
        waiting, self._reset = self._reset, None
        if waiting is None:
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)
            waiting.exception()

    def harvest_dirty_ring(self, count: int) -> list[tuple[int, int]]:
        """Read at most `count` entries of the dirty ring, as (slot, page), and mark them for the next reset.

        Raises:
            KvmError: EINVAL where the VM has no dirty rings.
        """
        ring = self.context.ring
        if ring is None:
            raise KvmError(
                errno.EINVAL, "the VM has no dirty rings; KVM_CAP_DIRTY_LOG_RING comes before the first vCPU"
            )
        return ring.harvest(count)

    def set_immediate_exit(self, value: int) -> None:
        """Set kvm_run.immediate_exit: while it is not 0, KVM_RUN completes a pending exit, and ends with EINTR."""
        self._immediate_exit = value

    async def get_regs(self) -> dict[str, int]:
        """KVM_GET_REGS: pc and x0 to x31. A running vCPU leaves guest mode for it, and goes on."""
        async with self._paused():
            record = self.context.record
            return {"pc": record.pc} | {f"x{index}": record.x[index] for index in range(len(REGISTERS))}

    async def set_regs(self, regs: Mapping[str, int]) -> None:
        """KVM_SET_REGS: set those that are named, by their number or by their ABI name.

        Raises:
            KvmError: EINVAL where a name is unknown or given twice, or a value is no 64-bit number, or x0 is not 0;
            nothing is set.
        """
        wanted = _checked_registers(regs)
        async with self._paused():
            record = self.context.record
            for index, value in wanted.items():
                if index == _PC:
                    record.pc = value
                else:
                    record.x[index] = value

    def _over(self, done: asyncio.Future[Exit]) -> None:
        self._run = None
        self._rendezvous.engine.retract(self._group, SIGNAL_PENDING)
        error = done.exception()
        self._reason = error.data.get("exit_reason", self._reason) if isinstance(error, KvmError) else self._reason
        if error is None:
            self._reason = done.result().reason

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        rendezvous = self._rendezvous
        self._pauses += 1
        try:
            await rendezvous.stop(KVM_REQ_PAUSE, self._group)
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                rendezvous.go(KVM_REQ_PAUSE, self._group)

    def _answer(self, data: bytes | None) -> None:
        """Take the answer to what is pending; one that an interrupted run was given stands until there is another."""
        pending = self._pending
        size = pending.answer_size if pending is not None else 0
        if data is not None and len(data) != size:
            waits = f"{size} bytes are waited for" if size else "no read of the guest waits for data"
            raise KvmError(errno.EINVAL, f"data has {len(data)} bytes, and {waits}", _KVM_RUN)
        if pending is not None and (data is not None or pending.piece not in pending.done):
            pending.answer(data if data is not None else bytes(size))

    # On a worker.

    def run_slice(self, scheduler: Scheduler) -> bool:
        """Run until there is a result, or it is another vCPU's turn."""
        run = self._run
        assert run is not None, "a vCPU is queued by KVM_RUN alone"  # noqa: S101
        result: Exit | bool | BaseException
        try:
            result = self._slice(run, scheduler)
        except KvmError as error:
            # Without its frames, which would keep the view alive: an error and the frame that holds it are a cycle.
            result = error.with_traceback(None)
        except BaseException as error:
            result = error
        if isinstance(result, bool):
            return result
        if not isinstance(result, BaseException):
            self._exits[result.reason] += 1
        run.finish(result)
        return False

    def _slice(self, run: _Run, scheduler: Scheduler) -> Exit | bool:
        """Return an exit, or whether to be queued again."""
        rendezvous, record = self._rendezvous, self.context.record
        while True:
            if record.requests and self._serve_requests(run):
                return False
            if run.ends_with is not None and self._pending is None:
                return self._end(run.ends_with)
            view = rendezvous.view
            self.context.take_view(view)
            record.budget = SLICE_INSTRUCTIONS if run.ends_with is None else 1
            retired = record.retired
            ran = rendezvous.engine.run(self.context, view, self._pending)
            if record.retired != retired:
                self._pending = None
            if ran is Stop.BUDGET:
                if run.ends_with is None and scheduler.others_wait:
                    return True
            elif not isinstance(ran, Stop):
                return self._leave(ran)

    def _serve_requests(self, run: _Run) -> bool:
        """Serve what is requested; tell whether the vCPU is parked now."""
        requests = self.context.record.requests
        if requests & KVM_REQ_VM_DEAD:
            raise KvmError(errno.ECANCELED, "the VM is destroyed", _KVM_RUN)
        if requests & SIGNAL_PENDING:
            run.interrupted = True
            run.ends_with = KvmError(errno.EINTR, "the run was interrupted", _KVM_RUN, exit_reason=KVM_EXIT_INTR)
            if self._pending is None or requests & PARKING:
                raise run.ends_with
            # As in KVM, a pending exit is completed before the signal is looked at.
            self._rendezvous.engine.retract(self._group, SIGNAL_PENDING)
        if requests & PARKING:
            if run.interrupted and isinstance(run.ends_with, KvmError):
                raise run.ends_with
            self._kicks += bool(requests & KVM_REQ_HOLD)
            return self._rendezvous.park(self)
        self._rendezvous.engine.retract(self._group, requests & (KVM_REQ_TLB_FLUSH | KVM_REQ_DIRTY_RING_SOFT_FULL))
        ring = self.context.ring
        if requests & KVM_REQ_DIRTY_RING_SOFT_FULL and ring is not None and ring.is_soft_full:
            run.ends_with = run.ends_with or DirtyRingFullExit()
        return False

    def _end(self, result: KvmError | Exit) -> Exit:
        if isinstance(result, KvmError):
            raise result
        # Only a full ring ends a run so. Its request stands, as in KVM: the next run ends at once too, until a reset.
        self._rendezvous.engine.post(self._group, KVM_REQ_DIRTY_RING_SOFT_FULL)
        return result

    def _leave(self, ran: Outcome | Pending) -> Exit:
        self._pending = ran if isinstance(ran, Pending) else None
        outcome = ran.outcome if isinstance(ran, Pending) else ran
        if isinstance(outcome, LostPage):
            sentence = f"no host memory below guest_phys_addr {outcome.phys_addr:#x}: {outcome.why}"
            raise KvmError(errno.EFAULT, sentence, _KVM_RUN)
        return _EXITS[type(outcome)](outcome)


_EXITS: dict[type, Callable[[Any], Exit]] = {
    Mmio: lambda mmio: MmioExit(mmio.phys_addr, mmio.size, mmio.data is not None, mmio.data),
    Port: lambda io: IoExit(KVM_EXIT_IO_IN if io.data is None else KVM_EXIT_IO_OUT, io.size, io.port, 1, io.data),
    Hypercall: lambda call: HypercallExit(call.number, call.arguments),
    Halt: lambda _: HltExit(),
    Trap: lambda trap: ShutdownExit(trap.cause, trap.value),
    NoCode: lambda missing: InternalErrorExit(KVM_INTERNAL_ERROR_EMULATION, missing.phys_addr),
    NoAtomic: lambda missing: InternalErrorExit(KVM_INTERNAL_ERROR_EMULATION, missing.phys_addr),
}

_PC = -1
_REGISTER_NUMBERS = (
    {"pc": _PC, "fp": 8}
    | {f"x{index}": index for index in range(len(REGISTERS))}
    | {name: index for index, name in enumerate(REGISTERS)}
)


def _checked_registers(regs: Mapping[str, int]) -> dict[int, int]:
    wanted: dict[int, int] = {}
    for name, value in regs.items():
        index = _REGISTER_NUMBERS.get(name)
        if index is None:
            raise KvmError(errno.EINVAL, f"there is no register {name!r}", "KVM_SET_REGS")
        if index in wanted:
            raise KvmError(errno.EINVAL, f"register {name!r} is given twice", "KVM_SET_REGS")
        if not 0 <= value <= U64:
            raise KvmError(errno.EINVAL, f"{name} = {value} is no unsigned 64-bit number", "KVM_SET_REGS")
        if index == 0 and value:
            raise KvmError(errno.EINVAL, f"x0 is always 0 and cannot become {value:#x}", "KVM_SET_REGS")
        wanted[index] = value
    return wanted
