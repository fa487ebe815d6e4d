"""The run loop of a vCPU in a cooperative VM: `run_loop`'s rules, a step at a time on a worker, without a coroutine.

Where `run_loop` waits, for an interrupt, a reset of its dirty ring or a raw resume, this is not ready; whoever hands
out turns passes it over.
"""

from __future__ import annotations

from collections.abc import Callable

from vmmd.isa.traps import interrupt_waits
from vmmd.kvm.digest import History
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import DirtyRingFullExit, Exit, HltExit
from vmmd.kvm.requests import KVM_REQ_USERSPACE_KICK
from vmmd.kvm.runner import Runner
from vmmd.kvm.scheduler import Turn
from vmmd.kvm.vcpu import Vcpu
from vmmd.machine.exit_samples import ExitSamples
from vmmd.machine.run_loop import StrayPolicy, serve


class TurnLoop:
    """One vCPU's loop. It belongs to the worker that advances the VM, and between advances to the event loop.

    Args:
        vcpu: whose.
        write: takes console output.
        history: takes what KVM_RUN returns.
        samples: tells of some of it.

    Attributes:
        context: the vCPU's.
        policy: what becomes of it at an MMIO exit that no device owns.
        ended: what ended the loop, where it has ended.
    """

    def __init__(self, vcpu: Vcpu, write: Callable[[bytes], object], history: History, samples: ExitSamples) -> None:
        self.context = vcpu.context
        self.policy = StrayPolicy.STOP
        self.ended: Exit | KvmError | None = None
        self._vcpu = vcpu
        self._write = write
        self._history = history
        self._samples = samples
        self._in_flight: Runner | None = None
        self._waits_for: type[HltExit | DirtyRingFullExit] | None = None

    @property
    def is_ready(self) -> bool:
        """See `Contender`."""
        if self._in_flight is not None:
            return self._in_flight.has_work
        if self.ended is not None or self.context.record.requests & KVM_REQ_USERSPACE_KICK:
            return False
        if self._waits_for is HltExit:
            return interrupt_waits(self.context)
        ring = self.context.ring
        return self._waits_for is None or ring is None or not ring.is_soft_full

    def go_on(self, turn: Turn) -> None:
        """See `Contender`."""
        if self._in_flight is None:
            self._waits_for = None
            self._in_flight = self._vcpu.begin(self._serve)
        self._in_flight.run_slice(turn)

    def _serve(self, result: Exit | BaseException) -> None:
        self._in_flight = None
        if isinstance(result, KvmError):
            self._history.note(self._vcpu, result)
            if not result.data.get("kicked"):
                self.ended = result
        elif isinstance(result, BaseException):
            raise result
        else:
            self._history.note(self._vcpu, result)
            self._samples.saw(self._vcpu.id, result)
            if isinstance(result, HltExit | DirtyRingFullExit):
                self._waits_for = type(result)
            goes_on, answer = serve(result, self._vcpu, self._write, self.policy)
            if goes_on:
                # At once, so that it goes with its instruction where that is abandoned between two advances.
                self._vcpu.lines.answer(answer)
            else:
                self.ended = result
