"""A cooperative VM: its vCPUs run while somebody advances it, one at a time, and never else.

An advance is one task of the worker threads, which steps through `turns`; the event loop waits for its end alone. It
is interrupted between two steps, each some milliseconds at most. Calls that change a vCPU are refused meanwhile, and
registers are read as ever: the step in guest mode waits in place, and the order of turns knows nothing of it.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vmmd.isa.engine import ContextGroup, Engine
from vmmd.kvm.clock import InstructionClock
from vmmd.kvm.errors import KvmError
from vmmd.kvm.gate import Gate
from vmmd.kvm.rendezvous import Parkable, Rendezvous
from vmmd.kvm.requests import PARKING
from vmmd.kvm.scheduler import Scheduler, Turn
from vmmd.kvm.turns import Contender, End, Turns
from vmmd.memory.view import View


@dataclass(frozen=True, slots=True)
class Advanced:
    """What an advance comes to.

    `instructions`: how many retired. `ended_by`: why there were no more. `digest`: sha256 in hex over all that has
    happened in the VM, see `digest`.
    """

    instructions: int
    ended_by: End
    digest: str


Begun = Callable[[Callable[[], int]], object]
"""Is told that an advance has begun, and given what tells how many of its instructions have retired."""


class Advance:
    """One advance under way.

    Attributes:
        done: why it ended, once it has; made on the event loop.
    """

    def __init__(self, turns: Turns, contenders: Sequence[Contender]) -> None:
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[End] = self._loop.create_future()
        self._turns = turns
        self._contenders = contenders
        self._interrupted = False

    def interrupt(self) -> None:
        """End it behind the step that is under way."""
        self._interrupted = True

    def run_slice(self, turn: Turn) -> bool:
        """See `Task`."""
        try:
            while not self._interrupted:
                end = self._turns.step(self._contenders)
                if end is not None:
                    self._loop.call_soon_threadsafe(self.done.set_result, end)
                    return False
                if turn.others_wait:
                    return True
        except BaseException as error:
            self._loop.call_soon_threadsafe(self.done.set_exception, error)
            return False
        self._loop.call_soon_threadsafe(self.done.set_result, End.STOP)
        return False


class Cooperative(Rendezvous):
    """The meeting point of a VM whose vCPUs run by advances alone.

    Attributes:
        clock: the VM's, made of retired instructions.
    """

    is_cooperative = True
    ring_request = 0
    """Rings are looked at between turns: how soon a store's request is seen depends on the engine."""

    def __init__(self, engine: Engine, scheduler: Scheduler, view: View, gate: Gate, seed: int) -> None:
        super().__init__(engine, scheduler, view)
        self._gate = gate
        self.clock = InstructionClock()
        self._turns = Turns(seed, self.clock, engine)
        self._advance: Advance | None = None
        self._may_go = threading.Condition(self._lock)

    def check_no_advance(self, ioctl: str) -> None:
        """See `Rendezvous`."""
        if self._advance is not None:
            sentence = "an advance is under way, and calls that change vCPUs act between two of them"
            raise KvmError(errno.EBUSY, sentence, ioctl)

    async def advance(
        self,
        instructions: int,
        contenders: Callable[[], Sequence[Contender]],
        digest: Callable[[], str],
        *,
        wait_ms: int = 0,
        if_generation: int | None = None,
        begun: Begun | None = None,
    ) -> Advanced:
        """Let the vCPUs run until so many instructions have retired in all; calls that use memslots stay out.

        A cancellation is raised when no vCPU runs any more.

        Args:
            instructions: how many, of all vCPUs.
            contenders: gives the run loops in the order of their vCPUs' ids, once nothing else goes on in the VM.
            digest: tells what the VM has come to, on a thread.
            wait_ms: for how many milliseconds to wait for the end of a hold, or of another advance.
            if_generation: the generation that the slot table is to have.
            begun: told, when it begins, what tells how many instructions have retired.

        Raises:
            KvmError: EBUSY while the VM is held or advanced; ESTALE where the slot table has moved on; ECANCELED where
                the VM is destroyed.
        """
        async with self._gate.alone(wait_ms, if_generation, "an advance is under way; wait with wait_ms, or vm.stop"):
            self._turns.begin(instructions)
            advance = self._advance = Advance(self._turns, contenders())
            self.scheduler.submit(advance)
            if begun is not None:
                begun(lambda: instructions - self._turns.left)
            try:
                end = await asyncio.shield(advance.done)
                self._gate.check_open()
                return Advanced(instructions - self._turns.left, end, await _on_a_thread(digest))
            finally:
                try:
                    await self._over(advance)
                finally:
                    self._advance = None

    async def stop_advance(self) -> None:
        """See `Rendezvous`."""
        if self._advance is not None:
            await self._over(self._advance)

    async def _over(self, advance: Advance) -> None:
        cancelled: asyncio.CancelledError | None = None
        while not advance.done.done():
            advance.interrupt()
            try:
                await asyncio.wait([advance.done])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def park(self, task: Parkable) -> bool:
        """See `Rendezvous`. Who is paused waits here, since it is its turn; who sleeps is for `Turns` to pass over."""
        with self._may_go:
            while task.context.record.requests & PARKING and not task.may_go:
                self._may_go.wait()
            return not task.may_go

    def _wake(self, group: ContextGroup, at_most: int | None = None) -> None:
        self._may_go.notify_all()


async def _on_a_thread(digest: Callable[[], str]) -> str:
    """Make the digest; a cancellation is raised when nothing reads the VM's memory any more."""
    making = asyncio.ensure_future(asyncio.to_thread(digest))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        while not making.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([making])
        raise
