"""A KVM_RUN in flight: who waits for it, what it ends with, and who ends it.

A worker ends it, or, once a raw kick finds its vCPU outside guest mode, the event loop: whoever takes it first, never
both. It knows no vCPU.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Protocol

from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import KVM_EXIT_INTR, Exit

KVM_RUN = "KVM_RUN"


def signalled() -> KvmError:
    """Return the error of a run that a signal ended."""
    return KvmError(errno.EINTR, "the run was interrupted", KVM_RUN, exit_reason=KVM_EXIT_INTR)


def kicked(exit_reason: str) -> KvmError:
    """Return the error of a run that a raw kick ended; the reason is the round's, stored but not delivered."""
    sentence = "the VM was kicked; KVM_RUN gives this until vm.resume_all_kicked_vcpus"
    return KvmError(errno.EINTR, sentence, KVM_RUN, exit_reason=exit_reason, kicked=True)


class InFlight(Protocol):
    """A KVM_RUN in flight, as workers see it.

    Attributes:
        ends_with: where it is set, the pending exit is completed, no further instruction runs, and the run ends so.
    """

    ends_with: KvmError | Exit | None

    @property
    def is_over(self) -> bool:
        """Whether it has been ended from outside, and no result is wanted."""

    def keep(self) -> bool:
        """Make the worker the one who ends the run; False where it is over."""

    def finish(self, result: Exit | BaseException) -> None:
        """Take the result; called on a worker."""


class Run:
    """One KVM_RUN in flight that a coroutine waits for. Either a worker ends it or the event loop, never both."""

    __slots__ = ("_kept", "_token", "done", "ends_with", "loop")

    def __init__(self, *, ends_with: KvmError | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Exit] = self.loop.create_future()
        self.ends_with: KvmError | Exit | None = ends_with
        self._token = [None]
        self._kept = False

    @property
    def is_over(self) -> bool:
        """See `InFlight`."""
        return not self._token and not self._kept

    def keep(self) -> bool:
        """See `InFlight`."""
        self._kept = self._kept or self._take()
        return self._kept

    def take_back(self) -> bool:
        """Make the event loop the one who ends the run; False where a worker has a result for it."""
        return self._take()

    def _take(self) -> bool:
        try:
            self._token.pop()
        except IndexError:
            return False
        return True

    def finish(self, result: Exit | BaseException) -> None:
        """Hand the result to the event loop."""
        self.loop.call_soon_threadsafe(self._deliver, result)

    def _deliver(self, result: Exit | BaseException) -> None:
        if isinstance(result, BaseException):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class TurnRun:
    """One KVM_RUN in flight of a cooperative VM; its result is taken on the worker."""

    __slots__ = ("_take", "ends_with")

    is_over = False

    def __init__(self, ends_with: KvmError | None, take: Callable[[Exit | BaseException], None]) -> None:
        self.ends_with: KvmError | Exit | None = ends_with
        self._take = take

    def keep(self) -> bool:
        """See `InFlight`: nobody else ends it."""
        return True

    def finish(self, result: Exit | BaseException) -> None:
        """See `InFlight`."""
        self._take(result)
