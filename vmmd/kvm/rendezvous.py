"""How the vCPUs of a VM meet those who change its memory: publishing a view, kicking, parking, going on.

The event loop publishes and kicks, workers take views and park. All they share is here: the newest view, the word
with its number, the contexts' request words and modes, and the parked vCPUs under a lock that is held for a few
instructions only.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from typing import Protocol

from vmmd.isa.context import Context
from vmmd.isa.engine import ContextGroup, Engine
from vmmd.kvm.requests import ENDING, KVM_REQ_TLB_FLUSH, PARKING
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


class Rendezvous:
    """The meeting point of one VM.

    Attributes:
        view: the newest view; workers read it, and an assignment publishes it.
        contexts: all of the VM's contexts.
    """

    def __init__(self, engine: Engine, scheduler: Scheduler, view: View) -> None:
        self.engine = engine
        self.scheduler = scheduler
        self.view = view
        self.published = ctypes.c_uint64(view.number)
        self.contexts = ContextGroup(())
        self._lock = threading.Lock()
        self._parked: list[Parkable] = []

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

    async def all_outside_once(self) -> None:
        """Wait until every vCPU has been outside guest mode: what it did before is visible then.

        Those that run are back inside too soon to be seen, so they are given a view of their own to take, which stays
        seen.
        """
        self.publish(View(self.view.memslots, self.view.host, self.view))
        await self.shoot_down()

    async def stop(self, requests: int, group: ContextGroup, deadline: float | None = None) -> None:
        """Set parking requests and wait until none of the group is in guest mode or reads memslots.

        Raises:
            TimeoutError: the loop's clock passed `deadline`; the requests are still set.
        """
        await self._post_and_wait(requests, group, _OUTSIDE, deadline)

    def go(self, requests: int, group: ContextGroup) -> None:
        """Clear parking requests, and queue those that nothing parks any more."""
        with self._lock:
            self.engine.retract(group, requests)
            ready = [task for task in self._parked if not task.context.record.requests & PARKING]
            self._parked = [task for task in self._parked if task.context.record.requests & PARKING]
        for task in ready:
            self.scheduler.submit(task)

    def end_run(self, request: int, group: ContextGroup) -> None:
        """Set a request that ends KVM_RUN, also where it is parked."""
        with self._lock:
            self.engine.post(group, request)
            ready = [task for task in self._parked if task.context.record.requests & ENDING]
            self._parked = [task for task in self._parked if not task.context.record.requests & ENDING]
        for task in ready:
            self.scheduler.submit(task)

    def park(self, task: Parkable) -> bool:
        """Put a vCPU aside until `go`, unless its requests have changed meanwhile. Called on workers."""
        with self._lock:
            requests = task.context.record.requests
            if requests & ENDING or not requests & PARKING:
                return False
            self._parked.append(task)
            return True

    async def _post_and_wait(
        self, requests: int, group: ContextGroup, view_number: int, deadline: float | None = None
    ) -> None:
        if not len(group):
            return
        self.engine.post(group, requests)
        cancelled: asyncio.CancelledError | None = None
        while self.engine.wait_outside(group, view_number, _YIELDS):
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
