"""Who waits for the answer to one body, and what becomes of a call that nobody waits for any more.

A call is ended before its time where its caller has gone, where it is cancelled by its id, or where its deadline has
passed. What is under way is interrupted then; what is not begun yet:

    cancelled, or past its deadline    is not begun
    its caller has gone                is carried out, but waits for nothing

The last is what keeps the map whole: a batch that was received [kick, delete, create, resume] leaves the old map where
the kick would have had to wait, and else the new one. What the body of a caller who has gone leaves open is rolled
back.

It refuses to interrupt what would be left half done: such calls are carried through, and end by themselves.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from vmmd.api.methods import Method
from vmmd.rpc.errors import CallError
from vmmd.rpc.outbox import Outbox

T = TypeVar("T")

CALLER_WENT = "was rolled back when its caller went"
"""What became of a hold whose caller left."""


class Holder(Protocol):
    """A VM, as far as holds go."""

    def expire_hold(self, hold: str, became: str) -> None:
        """End an open hold whose owner has gone."""

    def has_hold(self, hold: str) -> bool:
        """Tell whether that hold is current."""


class Reader(Protocol):
    """What a WebSocket is sent of the daemon's events."""

    async def run(self, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Send events for good; `send` takes the parameters of one, and waits while the peer is slow."""

    async def finish(self, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Send what there is, and no more."""


class Connection(Protocol):
    """What the bodies of one WebSocket share."""

    def adopt(self, vm: Holder, hold: str) -> None:
        """Take a hold that a body has left open: it ends with the connection."""

    def hold_of(self, vm: Holder) -> str | None:
        """Give the open hold of a VM that an earlier body has left open; None where there is none."""

    def check_may_begin(self, method: str) -> None:
        """Check that a call may begin now.

        Raises:
            CallError: EAGAIN; so many are under way already.
        """

    def begin(self) -> None:
        """Take note that a call begins; it is under way until `end`."""

    def end(self) -> None:
        """Take note that a call is over."""

    def cancel(self, call_id: bytes) -> bool:
        """Cancel the call of that id, JSON text; tell whether there is one."""

    def notify(self, method: str, params: bytes) -> None:
        """Send a notification, its parameters as JSON text, unless the peer is so slow that an earlier one waits."""

    def subscribe(self, reader: Reader) -> None:
        """Send events from now on, in place of any earlier reader's."""


class Caller:
    """Who waits for the answer to one body.

    Args:
        has_gone: Tells whether the connection is closed, where nobody calls `leave`.
        connection: What the bodies of one WebSocket share; None over HTTP.
        outbox: The room for the answers of the same peer; None: it is not counted.

    Attributes:
        running: The id of the call that is under way, as JSON text; None where it has none.
    """

    # How all of it begins stands here once: a body that is answered at once changes none of it.
    running: bytes | None = None
    _room_bytes = 0
    _left = False
    _task: asyncio.Task[Any] | None = None
    _interruption: CallError | None = None
    _expected: frozenset[bytes] = frozenset()
    _cancelled: frozenset[bytes] = frozenset()
    _holds: tuple[tuple[Holder, str], ...] = ()

    def __init__(
        self,
        *,
        has_gone: Callable[[], bool] | None = None,
        connection: Connection | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self.connection = connection
        self._has_gone = has_gone
        self._outbox = outbox
        self._room = None if outbox is None else outbox.outside

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._left or (self._has_gone is not None and self._has_gone())

    def leave(self) -> None:
        """Take note that nobody waits any more: what is under way is interrupted, and nothing waits from now on."""
        self._left = True
        self._interrupt(gone())

    def expect(self, call_ids: Iterable[bytes | None]) -> None:
        """Take note of the ids of the body's calls, as JSON text: those can be cancelled."""
        self._expected |= {call_id for call_id in call_ids if call_id is not None}

    async def take_room(self, size: int, *, inside: bool) -> None:
        """Wait until there is room for an answer of so many bytes; it is the body's until `sent`.

        Args:
            size: How large the answer may be, in bytes.
            inside: Whether the body is inside a hold that is open already.
        """
        if self._outbox is not None:
            self._room = self._outbox.inside if inside else self._outbox.outside
            await self._room.take(size)
            self._room_bytes = size

    def check_may_begin(self, method: Method) -> None:
        """Check that a call may begin now.

        Raises:
            CallError: EAGAIN; so many of the connection are under way already.
        """
        if self.connection is not None:
            self.connection.check_may_begin(method.name)

    def answered(self, size: int) -> None:
        """Take note of what the answer has come to, in bytes."""
        if self._room is not None:
            self._room.give_back(self._room_bytes - size)
            self._room_bytes = size

    def sent(self) -> None:
        """Take note that the answer has gone out, or never will."""
        if self._room is not None and self._room_bytes:
            self._room.give_back(self._room_bytes)
            self._room_bytes = 0

    def cancel(self, call_id: bytes) -> bool:
        """Cancel the call of that id, JSON text: it is interrupted, or not begun; tell whether there is one."""
        if call_id not in self._expected:
            return False
        self._cancelled |= {call_id}
        if self.running == call_id:
            self._interrupt(_cancelled())
        return True

    async def wait_for(
        self, call_id: bytes | None, method: Method, work: Coroutine[Any, Any, bytes], deadline_s: float | None
    ) -> bytes:
        """Carry one call out, for as long as somebody waits for it.

        Args:
            call_id: Its id as JSON text; None for a notification.
            method: What it is.
            work: What carries it out.
            deadline_s: When it is to be over, on the event loop's clock; None: whenever it is.

        Raises:
            CallError: ECANCELED or ETIMEDOUT, where it was ended before its time; EAGAIN where too many are under way.
        """
        if self.connection is not None or deadline_s is not None:
            self._check_wanted(call_id, method, work, deadline_s)
        try:
            if method.carried_through:
                return await carry_through(work)
            self._task = asyncio.current_task()
            if self._left or self._was_cancelled():
                self._interrupt(gone())
            return await (work if deadline_s is None else self._until(deadline_s, work))
        except asyncio.CancelledError:
            raise self._ending() from None
        finally:
            self._task = None
            if self._interruption is not None:
                await self._forget_interruption()
            if self.connection is not None:
                self._end(call_id, self.connection)

    def opened(self, vm: Holder, hold: str) -> None:
        """Take note of a hold that the body has opened."""
        self._holds += ((vm, hold),)

    def ended(self, vm: Holder, hold: str) -> None:
        """Take note that it has ended, so far as it is the body's."""
        self._holds = tuple(own for own in self._holds if own != (vm, hold))

    def over(self) -> None:
        """Settle, once the body is carried out, what it has left open: the connection's, or nobody's."""
        holds, self._holds = self._holds, ()
        for vm, hold in holds:
            if self.is_gone:
                vm.expire_hold(hold, CALLER_WENT)
            elif self.connection is not None:
                self.connection.adopt(vm, hold)

    def _check_wanted(
        self, call_id: bytes | None, method: Method, work: Coroutine[Any, Any, bytes], deadline_s: float | None
    ) -> None:
        try:
            if call_id in self._cancelled:
                raise _cancelled()
            if deadline_s is not None and asyncio.get_running_loop().time() >= deadline_s:
                raise _late()
            self.check_may_begin(method)
            if self.connection is not None:
                self.connection.begin()
                self.running = call_id
        except CallError:
            work.close()
            raise

    def _end(self, call_id: bytes | None, connection: Connection) -> None:
        self.running = None
        if call_id is not None:
            self._expected -= {call_id}
        connection.end()

    async def _until(self, deadline_s: float, work: Coroutine[Any, Any, bytes]) -> bytes:
        timer = asyncio.get_running_loop().call_at(deadline_s, self._interrupt, _late())
        try:
            return await work
        finally:
            timer.cancel()

    def _was_cancelled(self) -> bool:
        """Tell whether the server has cancelled the task of a caller who has gone, and the call before went on."""
        return self._task is not None and self._task.cancelling() > 0 and self.is_gone

    def _ending(self) -> BaseException:
        """Say what a cancellation of the task was: an interruption, or somebody else's, who ends the task itself."""
        if self._interruption is None and self.is_gone:
            # The server cancels the task of a connection that is lost.
            self._left = True
            self._interruption = gone()
        return self._interruption or asyncio.CancelledError()

    async def _forget_interruption(self) -> None:
        """Let the task go on as if it had not been cancelled: also where the call ended before it noticed."""
        self._interruption = None
        task = asyncio.current_task()
        while task is not None and task.cancelling():
            task.uncancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    def _interrupt(self, error: CallError) -> None:
        if self._task is not None and self._interruption is None:
            self._interruption = error
            self._task.cancel()


async def carry_through(work: Coroutine[Any, Any, T]) -> T:
    """Wait for the end of what must not be left half done, whatever cancels the task meanwhile.

    It has done what it was to do then, so the cancellation is forgotten: who has gone will not miss it.
    """
    # A task of its own, which a cancellation of this one does not reach.
    inner = asyncio.ensure_future(work)
    while not inner.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([inner])
    return inner.result()


def gone() -> CallError:
    """Give what a call has come to whose caller did not wait."""
    return CallError(errno.ECANCELED, "the caller has gone, so the call was ended", {"errno": "ECANCELED"})


def _cancelled() -> CallError:
    return CallError(errno.ECANCELED, "the call was cancelled with rpc.cancel", {"errno": "ECANCELED"})


def _late() -> CallError:
    message = "the call was not over at its deadline_ms, and was ended; give it more time"
    return CallError(errno.ETIMEDOUT, message, {"errno": "ETIMEDOUT"})
