"""A vCPU's ioctls: KVM_RUN as a coroutine, registers, interrupts, debugging. What a worker does with it is `runner`'s.

It refuses a second KVM_RUN while one is under way.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from vmmd.isa.context import Context
from vmmd.isa.csrs import EXTERNAL, INTERRUPTS
from vmmd.isa.traps import interrupt_waits
from vmmd.kvm import registers
from vmmd.kvm.clock import Clock
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import KVM_EXIT_INTR, KVM_EXIT_UNKNOWN, Exit
from vmmd.kvm.in_flight import KVM_RUN, Run, TurnRun, kicked
from vmmd.kvm.irqchip import Irqchip
from vmmd.kvm.rendezvous import Rendezvous
from vmmd.kvm.requests import KVM_REQ_EVENT, KVM_REQ_PAUSE, KVM_REQ_USERSPACE_KICK, SIGNAL_PENDING
from vmmd.kvm.runner import Runner
from vmmd.kvm.uapi import (
    GUESTDBG_FLAGS,
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_SW_BP,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE,
)
from vmmd.memory.ring import DirtyRing


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


class Vcpu:
    """One virtual CPU.

    Attributes:
        id: its number in the VM.
        context: the record that it shares with compiled code.
        stray_exits: how many MMIO exits no device owned; the run loop counts them.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        vcpu_id: int,
        requests: int,
        *,
        clock: Clock,
        irqchip: Irqchip | None = None,
        ring: DirtyRing | None = None,
    ) -> None:
        self.id = vcpu_id
        self.context = Context(rendezvous.published, vcpu_id, clock.now_ns, ring, rendezvous.ring_request)
        self.stray_exits = 0
        self._rendezvous = rendezvous
        self._runner = Runner(rendezvous, self.context, irqchip)
        self._has_irqchip = irqchip is not None
        self._run: Run | None = None
        self._unseen: Exit | None = None
        self._immediate_exit = 0
        self._reason = KVM_EXIT_UNKNOWN
        self._pauses = 0
        self._changed: asyncio.Future[None] | None = None
        self._owner: object = None
        rendezvous.join(self.context, requests)

    @property
    def lines(self) -> Runner:
        """Its interrupt lines."""
        return self._runner

    @property
    def is_running(self) -> bool:
        """Whether a KVM_RUN is under way, parked or not."""
        return self._run is not None

    def stats(self) -> Stats:
        """Return its counters; they are never gated."""
        return Stats(self.context.record.retired, Counter(self._runner.exits), self.stray_exits, self._runner.kicks)

    # On the event loop.

    def own(self, owner: object) -> None:
        """Keep the vCPU for runs that name this owner, as a run loop does while it goes; None gives it back."""
        self._owner = owner

    async def run(self, data: bytes | None = None, timeout_ms: int | None = None, *, owner: object = None) -> Exit:
        """KVM_RUN: run until userspace is needed.

        Where the call is cancelled just as its exit arrives, the exit is kept, and the next run returns it at once.

        Args:
            data: the answer to the pending MMIO read, port read or hypercall; zeroes where it is left out.
            timeout_ms: milliseconds after which the run is interrupted as by a signal.
            owner: who calls, where the vCPU is owned.

        Raises:
            KvmError: EBUSY where a run is under way, or somebody else owns the vCPU; EINVAL where `data` does not fit
                what is pending, and in a cooperative VM, which runs by advances alone; EINTR by a signal, a timeout or
                immediate_exit; EFAULT where a host page is gone; ECANCELED where the VM is destroyed.
        """
        if self._rendezvous.is_cooperative:
            raise KvmError(errno.EINVAL, "a cooperative VM never runs by itself: use vm.advance", KVM_RUN)
        if self._run is not None:
            raise KvmError(errno.EBUSY, f"vCPU {self.id} is in KVM_RUN already", KVM_RUN)
        if self._owner is not None and owner is not self._owner:
            raise KvmError(errno.EBUSY, f"a run loop has vCPU {self.id}; stop it first", KVM_RUN)
        if self._unseen is not None:
            if data is not None:
                raise KvmError(
                    errno.EINVAL, f"an exit that nobody has seen, {self._unseen.reason}, comes before data", KVM_RUN
                )
            unseen, self._unseen = self._unseen, None
            return unseen
        run = self._run = Run(ends_with=self._prepare_run(data))
        run.done.add_done_callback(self._over)
        self._rendezvous.running += 1
        timer = run.loop.call_later(timeout_ms / 1000, self._interrupt, run) if timeout_ms is not None else None
        self._runner.submit(run)
        try:
            return await asyncio.shield(run.done)
        except asyncio.CancelledError:
            # A worker has the vCPU, so the run is over only when the worker says so.
            self._interrupt(run)
            while not run.done.done():
                # A further cancellation changes nothing: this one is raised in the end.
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([run.done])
            if not run.done.exception():
                self._unseen = run.done.result()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def begin(self, over: Callable[[Exit | BaseException], None]) -> Runner:
        """Begin a KVM_RUN that goes on whenever its runner is given a slice; called on a worker, during an advance.

        `over` takes the result there; a read that waits and has no answer yet is answered by zeroes.
        """

        def finish(result: Exit | BaseException) -> None:
            self._note_reason(result)
            over(result)

        self._runner.begin(TurnRun(self._prepare_run(None), finish))
        return self._runner

    def _prepare_run(self, data: bytes | None) -> KvmError | None:
        """Take the answer to what is pending; return what the run ends with at once, if it does."""
        self._runner.answer(data)
        # A reservation does not outlast a return of KVM_RUN.
        self.context.end_reservation()
        at_once = KvmError(errno.EINTR, "immediate_exit is set", KVM_RUN, exit_reason=self._reason)
        return at_once if self._immediate_exit else None

    @property
    def run_in_flight(self) -> Run | None:
        """The KVM_RUN that is under way."""
        return self._run

    def end_kicked(self, run: Run) -> None:
        """End a KVM_RUN as a raw kick does, if it is under way and can be ended at once: see `Runner.take_back`."""
        if run is self._run and self._runner.take_back(run):
            run.done.set_exception(kicked(KVM_EXIT_UNKNOWN))
            self._over(run.done)

    async def run_over(self) -> None:
        """Wait until no KVM_RUN is under way."""
        if self._run is not None:
            await asyncio.wait([self._run.done])

    def signal(self) -> None:
        """End the KVM_RUN that is under way, or a wait of its userspace, with EINTR; without one it does nothing."""
        if self._run is not None:
            self._rendezvous.post(SIGNAL_PENDING, self._runner.group)
        self.notice(KvmError(errno.EINTR, "the wait was interrupted", KVM_RUN, exit_reason=KVM_EXIT_INTR))

    def _interrupt(self, run: Run) -> None:
        if self._run is run:
            self.signal()

    async def ring_reset(self) -> None:
        """Wait until the dirty ring has room again.

        Raises:
            KvmError: EINTR where the vCPU is signalled meanwhile, ECANCELED where the VM is destroyed.
        """
        ring = self.context.ring
        await self._until(lambda: ring is None or not ring.is_soft_full)

    async def interrupt_pending(self) -> None:
        """Wait until there is an interrupt that ends a `wfi`.

        Raises:
            KvmError: EINTR where the vCPU is signalled meanwhile, ECANCELED where the VM is destroyed.
        """
        await self._until(lambda: interrupt_waits(self.context))

    async def resumed(self) -> None:
        """Wait until no raw kick keeps the vCPU out of KVM_RUN.

        Raises:
            KvmError: EINTR where the vCPU is signalled meanwhile, ECANCELED where the VM is destroyed.
        """
        await self._until(lambda: not self.context.record.requests & KVM_REQ_USERSPACE_KICK)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._changed)

    def notice(self, error: KvmError | None = None) -> None:
        """Let whoever waits for something look again, or end the wait with an error."""
        waiting, self._changed = self._changed, None
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
        self._rendezvous.check_no_advance("KVM_RUN")
        self._immediate_exit = value

    async def get_regs(self) -> dict[str, int]:
        """KVM_GET_REGS: pc, x0 to x31, and the control and status registers. A running vCPU goes on behind it."""
        async with self._paused():
            return registers.read(self.context)

    async def set_regs(self, regs: Mapping[str, int]) -> None:
        """KVM_SET_REGS: set those that are named, general ones by their number or by their ABI name.

        Where another pc than the present one is named, an instruction that waits for userspace is abandoned.

        Raises:
            KvmError: EINVAL where a name is unknown or given twice, or a value is not one that the register can have;
                nothing is set.
        """
        wanted = registers.check(regs)
        self._rendezvous.check_no_advance("KVM_SET_REGS")
        async with self._paused(changing=True):
            if wanted.get("pc", self.context.record.pc) != self.context.record.pc:
                self._runner.abandon()
                self._unseen = None
            registers.write(self.context, wanted)
            if "mip" in wanted:
                self._runner.lower_interrupts(INTERRUPTS & ~wanted["mip"])
                self._runner.raise_interrupts(wanted["mip"])
        self.notice()

    async def start_at(self, pc: int) -> None:
        """Let the vCPU begin at an address; an instruction that waits for userspace is abandoned, and a sleep ends."""
        self._rendezvous.check_no_advance("KVM_SET_REGS")
        async with self._paused(changing=True):
            self._runner.abandon()
            self._runner.halted = False
            self._unseen = None
            registers.write(self.context, registers.check({"pc": pc}))
        self.notice()

    async def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE: KVM_MP_STATE_RUNNABLE, or KVM_MP_STATE_HALTED while it sleeps after a `wfi`."""
        async with self._paused():
            return KVM_MP_STATE_HALTED if self._runner.halted else KVM_MP_STATE_RUNNABLE

    async def set_mp_state(self, mp_state: int) -> None:
        """KVM_SET_MP_STATE.

        Raises:
            KvmError: EINVAL for any but those two, and for KVM_MP_STATE_HALTED without the in-kernel controller.
        """
        if mp_state not in {KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_HALTED}:
            raise KvmError(errno.EINVAL, f"mp_state {mp_state} is none that T64 has", "KVM_SET_MP_STATE")
        if mp_state == KVM_MP_STATE_HALTED and not self._has_irqchip:
            raise KvmError(errno.EINVAL, "halted inside KVM_RUN needs vm.create_irqchip", "KVM_SET_MP_STATE")
        self._rendezvous.check_no_advance("KVM_SET_MP_STATE")
        async with self._paused(changing=True):
            self._runner.halted = mp_state == KVM_MP_STATE_HALTED

    async def set_guest_debug(self, control: int) -> None:
        """KVM_SET_GUEST_DEBUG: leave at every `ebreak`, after every instruction, or neither.

        Raises:
            KvmError: EINVAL where `control` has bits that are not known; nothing is set.
        """
        if control & ~GUESTDBG_FLAGS:
            raise KvmError(
                errno.EINVAL, f"control {control:#x} has bits besides {GUESTDBG_FLAGS:#x}", "KVM_SET_GUEST_DEBUG"
            )
        self._rendezvous.check_no_advance("KVM_SET_GUEST_DEBUG")
        async with self._paused(changing=True):
            enabled = bool(control & KVM_GUESTDBG_ENABLE)
            self._runner.single_step = enabled and bool(control & KVM_GUESTDBG_SINGLESTEP)
            self.context.breakpoints_leave = enabled and bool(control & KVM_GUESTDBG_USE_SW_BP)

    def interrupt(self) -> None:
        """KVM_INTERRUPT: make the external interrupt pending, until the guest takes it.

        Raises:
            KvmError: EBUSY while an advance is under way, as for every call here that changes a vCPU.
        """
        self._rendezvous.check_no_advance("KVM_INTERRUPT")
        self._runner.raise_interrupts(1 << EXTERNAL)
        self.notice()

    def _over(self, done: asyncio.Future[Exit]) -> None:
        if self._run is None or self._run.done is not done:
            return
        self._run = None
        self._rendezvous.running -= 1
        self._rendezvous.engine.retract(self._runner.group, SIGNAL_PENDING)
        self._note_reason(done.exception() or done.result())

    def _note_reason(self, result: Exit | BaseException) -> None:
        if isinstance(result, KvmError):
            self._reason = result.data.get("exit_reason", self._reason)
        elif not isinstance(result, BaseException):
            self._reason = result.reason

    @asynccontextmanager
    async def _paused(self, *, changing: bool = False) -> AsyncIterator[None]:
        rendezvous = self._rendezvous
        self._pauses += 1
        try:
            await rendezvous.stop(KVM_REQ_PAUSE, self._runner.group)
            yield
            if changing:
                # A worker that was about to enter may have looked at what has changed here: it has to look again.
                rendezvous.engine.post(self._runner.group, KVM_REQ_EVENT)
        finally:
            self._pauses -= 1
            if not self._pauses:
                rendezvous.go(KVM_REQ_PAUSE, self._runner.group)
