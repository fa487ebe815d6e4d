"""Worker threads, and the queue of vCPUs that are ready to run.

As many workers as cores share one queue: a vCPU runs a slice, and goes to its end if others wait. The event loop has
no part in that; a slice ends on its own worker, and only what userspace must see is handed to the loop.
"""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import Protocol

_NICE = 3
"""How much workers give way: so that a call wakes the event loop at once, also while guests use every core.

At equal priority a call waits for the end of a worker's time slice; two calls that change a slot took 8 ms then at the
median, and 2.2 ms with any of 1, 3 and 5.
"""


class Turn(Protocol):
    """What a task asks, while it has a worker, for how long it may go on."""

    @property
    def others_wait(self) -> bool:
        """Whether somebody else wants the worker."""

    def allow(self, instructions: int) -> int:
        """Tell how many of so many instructions the task may run before it asks again."""


class Task(Protocol):
    """Something that runs in slices."""

    def run_slice(self, turn: Turn) -> bool:
        """Run for a while, and tell whether to be queued again. Never raises."""


class Scheduler:
    """Runs tasks on worker threads, each on one worker at a time.

    Attributes:
        workers: how many threads there are.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._ready: SimpleQueue[Task | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"vmmd-worker-{index}", daemon=True) for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def others_wait(self) -> bool:
        """Whether a task is ready and no worker has taken it."""
        return not self._ready.empty()

    def allow(self, instructions: int) -> int:
        """See `Turn`: a task may run a whole slice."""
        return instructions

    def submit(self, task: Task) -> None:
        """Make a task ready; it is neither ready nor running now."""
        self._ready.put(task)

    def close(self) -> None:
        """End the workers once their slices are over, and wait for them. No task may be ready any more."""
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        # On Linux priorities are a thread's, not a process's.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            task = self._ready.get()
            if task is None:
                return
            if task.run_slice(self):
                self._ready.put(task)
            # Not kept while waiting for the next: a task may own the last reference to a VM's memory.
            del task
