"""How the vCPUs of a VM meet those who change its memory: publishing a view, kicking, parking, going on.

The event loop publishes and kicks, workers take views and park. All they share is here: the newest view, the word
with its number, the contexts' request words and modes, and the parked vCPUs under a lock that is held for a few
instructions only.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from typing import Protocol

from vmmd.isa.context import Context
from vmmd.isa.engine import ContextGroup, Engine
from vmmd.kvm.requests import KVM_REQ_DIRTY_RING_SOFT_FULL, KVM_REQ_TLB_FLUSH
from vmmd.kvm.scheduler import Scheduler, Task
from vmmd.memory.limits import U64
from vmmd.memory.view import View

_YIELDS = 200
"""How often a kicker gives the processor away before it lets the event loop run: a few hundred microseconds."""

_POLL_S = 0.001
"""How often it looks after that. A vCPU is that late only when its worker's thread does not get to run."""

_OUTSIDE = U64
"""No view's number: to be waited for outside guest mode, and not in a newer view."""


class Parkable(Task, Protocol):
    """A vCPU, as far as parking goes."""

    context: Context

    @property
    def may_go(self) -> bool:
        """Whether its requests and interrupts let it go on, or end its run."""


class Rendezvous:
    """The meeting point of one VM.

    Attributes:
        view: the newest view; workers read it, and an assignment publishes it.
        contexts: all of the VM's contexts.
        running: how many vCPUs are inside KVM_RUN; the event loop counts them.
        is_cooperative: whether vCPUs run by `vm.advance` alone.
        ring_request: what a store sets in its vCPU's requests where it fills the dirty ring softly.
    """

    is_cooperative = False
    ring_request = KVM_REQ_DIRTY_RING_SOFT_FULL

    def __init__(self, engine: Engine, scheduler: Scheduler, view: View) -> None:
        self.engine = engine
        self.scheduler = scheduler
        self.view = view
        self.published = ctypes.c_uint64(view.number)
        self.contexts = ContextGroup(())
        self.running = 0
        self._lock = threading.Lock()
        self._parked: dict[Context, Parkable] = {}

    def check_no_advance(self, ioctl: str) -> None:
        """Refuse what has to wait for the end of an advance, where one is under way; a parallel VM has none.

        Raises:
            KvmError: EBUSY.
        """

    async def stop_advance(self) -> None:
        """End the advance that is under way, and wait for it; without one it does nothing."""

    def join(self, context: Context, requests: int) -> None:
        """Take a new vCPU in, born with these requests."""
        context.record.requests = requests
        self.contexts = ContextGroup((*self.contexts.contexts, context))

    def publish(self, view: View) -> None:
        """Make a view the newest. The number follows the view: who sees the new number finds the new view."""
        self.view = view
        self.published.value = view.number

    async def shoot_down(self) -> None:
        """Wait until no vCPU is in a view older than the newest, as KVM waits for its readers and flushes its TLBs.

        A cancellation is raised only when that is so: what was published cannot be called back.
        """
        await self._post_and_wait(KVM_REQ_TLB_FLUSH, self.contexts, self.view.number)

    def flush(self) -> None:
        """Do the same while none is inside KVM_RUN: there is nobody to wait for, and who enters flushes first."""
        self.post(KVM_REQ_TLB_FLUSH, self.contexts)

    async def all_outside_once(self) -> None:
        """Wait until every vCPU has been outside guest mode: what it did before is visible then.

        Those that run are back inside too soon to be seen, so they are given a view of their own to take, which stays
        seen.
        """
        self.publish(View(self.view.memslots, self.view.host))
        await self.shoot_down()

    async def stop(
        self,
        requests: int,
        group: ContextGroup,
        deadline: float | None = None,
        overtaken: asyncio.Future[None] | None = None,
    ) -> None:
        """Set parking requests and wait until none of the group is in guest mode or reads memslots.

        Where `overtaken` is done, the requests are gone again, and who has not seen them is not waited for.

        Raises:
            TimeoutError: the loop's clock passed `deadline`; the requests are still set.
        """
        await self._post_and_wait(requests, group, _OUTSIDE, deadline, overtaken)

    def go(self, requests: int, group: ContextGroup) -> None:
        """Clear parking requests, and queue those that nothing parks any more.

        A worker can begin only once it has the GIL; where there are more vCPUs than workers, it gets it in between.
        """
        with self._lock:
            self.engine.retract(group, requests)
            is_crowd = len(self._parked) > self.scheduler.workers
            self._wake(group, self.scheduler.workers if is_crowd else None)
        if is_crowd:
            time.sleep(0)
            self.wake(group)

    def post(self, requests: int, group: ContextGroup) -> None:
        """Set requests, and queue those that are parked and go on for them. Any thread may call it."""
        if not len(group):
            return
        with self._lock:
            self.engine.post(group, requests)
            self._wake(group)

    def park(self, task: Parkable) -> bool:
        """Put a vCPU aside until it may go on, unless it may already. Called on workers."""
        with self._lock:
            if task.may_go:
                return False
            self._parked[task.context] = task
            return True

    def unpark(self, task: Parkable) -> bool:
        """Take a vCPU out of those put aside; False where it was not among them."""
        with self._lock:
            return self._parked.pop(task.context, None) is not None

    def wake(self, group: ContextGroup) -> None:
        """Queue those that are parked and may go on."""
        with self._lock:
            self._wake(group)

    def _wake(self, group: ContextGroup, at_most: int | None = None) -> None:
        for context in group.contexts if self._parked else ():
            task = self._parked.get(context)
            if task is not None and task.may_go:
                del self._parked[context]
                self.scheduler.submit(task)
                if at_most is not None:
                    at_most -= 1
                    if not at_most:
                        return

    async def _post_and_wait(
        self,
        requests: int,
        group: ContextGroup,
        view_number: int,
        deadline: float | None = None,
        overtaken: asyncio.Future[None] | None = None,
    ) -> None:
        if not len(group):
            return
        self.engine.post(group, requests)
        cancelled: asyncio.CancelledError | None = None
        while self.engine.wait_outside(group, view_number, _YIELDS):
            if overtaken is not None and overtaken.done():
                break
            if deadline is not None and asyncio.get_running_loop().time() >= deadline:
                raise TimeoutError
            try:
                await asyncio.sleep(_POLL_S)
            except asyncio.CancelledError as error:
                if view_number == _OUTSIDE:
                    raise
                cancelled = error
        if cancelled is not None:
            raise cancelled
