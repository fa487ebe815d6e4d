"""What the resource objects talk through: calls in, values out, over one transport.

A `Channel` sends a call, or a batch, gives each its finite time and turns the outcome into a value or an exception.
Where a connection fails and `retry` allows it, the question is sent again. Whoever wants to be told how far a call is
has it sent on a WebSocket of its own, since HTTP has no words before the answer. It holds no state of any VM, so any
number of callers may use one at once.
"""

import math
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Self

from pydantic import ValidationError

from vmmd.api.events import ProgressNotification

from ..errors import CallTimeout, ProtocolError, RpcError, TransportError, UnusableArgument, VmmdError
from . import calls
from .limits import DEFAULT_TIMEOUT_S
from .protocol import Call, Dialogue, Outcome, Question, T, notification
from .retry import DEFAULT_ATTEMPTS, delays_s, may_repeat
from .transport import Link, Transport
from .waiting import sleep

Progress = Callable[[int, int], None]
"""Is told now and then how far a call is: how much is done, and how much there is to do in all."""


class Reply(Generic[T]):
    """What became of one call of a batch."""

    def __init__(self, call: Call[T]) -> None:
        self._call = call
        self._outcome: Outcome | None = None

    @property
    def call(self) -> Call[T]:
        """The call."""
        return self._call

    @property
    def error(self) -> RpcError | None:
        """The error that the call was answered with, or None."""
        outcome = self._given()
        return outcome if isinstance(outcome, RpcError) else None

    def result(self) -> T:
        """Give the call's value.

        Raises:
            RpcError: the call was answered with an error.
            ProtocolError: the result has another shape.
            VmmdError: the batch has not been sent.
        """
        outcome = self._given()
        if isinstance(outcome, RpcError):
            raise outcome
        return self._call.value(outcome.result)

    def settle(self, outcome: Outcome) -> None:
        """Take the outcome; done by whoever sent the batch."""
        self._outcome = outcome

    def _given(self) -> Outcome:
        if self._outcome is None:
            raise VmmdError(f"{self._call.method} has no reply: its batch has not been sent")
        return self._outcome


class Channel:
    """Sends calls over a transport."""

    def __init__(
        self, transport: Transport, *, timeout_s: float = DEFAULT_TIMEOUT_S, attempts: int = DEFAULT_ATTEMPTS
    ) -> None:
        """Take the transport, and the time for each call.

        Args:
            transport: what carries the bytes.
            timeout_s: how long a call may take, in seconds, beyond its own `deadline_ms`, `wait_ms` or `timeout_ms`.
            attempts: how often a call is sent at most, where a connection fails and `retry` allows it.

        Raises:
            UnusableArgument: fewer than one attempt, or a time that is not positive and finite.
        """
        if not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
            problem = f"a call has a time, in seconds, that is more than 0 and finite, and not {timeout_s!r}"
            raise UnusableArgument("timeout_s", problem)
        self._transport = transport
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._delays_s = delays_s(attempts)
        self.dialogue = Dialogue()

    async def send(self, call: Call[T], progress: Progress | None = None) -> T:
        """Send one call and give its value.

        Args:
            call: the call.
            progress: told how far it is, a few times a second, where the daemon says so. The call then has its time
                from one word to the next, and what this function raises ends it.

        Raises:
            UnusableArgument: `progress` cannot be called; nothing was sent.
            TransportError: no answer came.
            ProtocolError: the answer is none.
            RpcError: the daemon answered with an error.
        """
        if progress is not None and not callable(progress):
            raise UnusableArgument("progress", f"a function of (done, total) is wanted, and not {progress!r}")
        question = self.dialogue.ask(call)
        try:
            answer = await self._exchange(question, self._timeout_s + call.allowed_wait_s, progress)
        except _RaisedByListener as raised:
            raise raised.error from raised.error.__cause__
        reply = Reply(call)
        reply.settle(question.outcomes(answer)[0])
        return reply.result()

    async def send_batch(self, batch: Sequence[Reply[Any]]) -> None:
        """Send the replies' calls as one batch, in one round trip, and settle each reply.

        Raises:
            TransportError: no answer came.
            ProtocolError: the answer is none.
            RpcError: the daemon refused the batch as a whole; nothing of it was executed.
        """
        if not batch:
            return
        question = self.dialogue.ask_batch([reply.call for reply in batch])
        timeout_s = self._timeout_s + sum(reply.call.allowed_wait_s for reply in batch)
        answer = await self._exchange(question, timeout_s)
        for reply, outcome in zip(batch, question.outcomes(answer), strict=True):
            reply.settle(outcome)

    async def _exchange(self, question: Question, timeout_s: float, progress: Progress | None = None) -> bytes:
        """Send a question, again where that is safe, and all within the time of one."""
        deadline = time.monotonic() + timeout_s
        for delay_s in self._delays_s:
            try:
                return await self._attempt(question, _left_s(deadline), progress)
            except TransportError as error:
                if not may_repeat(question, error) or time.monotonic() + delay_s >= deadline:
                    raise
            await sleep(delay_s)
        return await self._attempt(question, _left_s(deadline), progress)

    async def _attempt(self, question: Question, timeout_s: float, progress: Progress | None) -> bytes:
        """Send a question once; one whose progress is wanted on a link of its own, which ends with it."""
        if progress is None:
            return await self._transport.exchange(question, timeout_s)
        link = await self._transport.link()
        try:
            await link.send(question.body)
            while (told := notification(message := await link.receive(timeout_s))) is not None:
                _tell(told, progress)
            return message
        except CallTimeout:
            silence = f"the call told nothing for {timeout_s:g} s, and was ended with its connection"
            raise CallTimeout(f"{silence}; what it had done until then stands") from None
        finally:
            await link.aclose()

    async def link(self) -> Link:
        """Open a WebSocket of one's own to the same daemon; see `Transport.link`."""
        return await self._transport.link()

    @property
    def transport(self) -> Transport:
        """What carries the bytes."""
        return self._transport

    @property
    def timeout_s(self) -> float:
        """How long a call may take, in seconds, beyond its own `deadline_ms`, `wait_ms` or `timeout_ms`."""
        return self._timeout_s

    def with_timeout(self, timeout_s: float) -> "Channel":
        """Give a channel over the same transport with another time for each call, in seconds."""
        channel = Channel(self._transport, timeout_s=timeout_s, attempts=self._attempts)
        # One numbering for all: over a WebSocket an id is all that tells whose an answer is.
        channel.dialogue = self.dialogue
        return channel

    async def aclose(self) -> None:
        """Close the transport; idempotent."""
        await self._transport.aclose()


class _RaisedByListener(Exception):  # noqa: N818 -- it reaches nobody
    """Carries a listener's error past those who would take it for one of this call's own connection."""

    def __init__(self, error: TransportError) -> None:
        super().__init__(str(error))
        self.error = error


def _tell(told: dict[str, Any], progress: Progress) -> None:
    """Hand on a notification of how far a call is; others are a later daemon's."""
    if told["method"] != "progress":
        return
    try:
        now = ProgressNotification.model_validate(told.get("params"))
    except ValidationError as error:
        problems = error.errors(include_url=False)[:3]
        raise ProtocolError(
            f"a word of progress has another shape (a daemon of another version?): {problems}"
        ) from None
    try:
        progress(now.done, now.total)
    except TransportError as error:
        raise _RaisedByListener(error) from error


def _left_s(deadline: float) -> float:
    """Give the seconds until a deadline; never none at all, which a transport could take for no limit."""
    return max(deadline - time.monotonic(), 0.001)


class Batch:
    """Calls that go in one round trip, executed in their order: `async with vmmd.batch() as batch`.

    The batch is sent when the block ends; an exception in the block sends nothing. Each call's `Reply` then has its
    result or its error: a call that fails does not keep the later ones from being executed. A batch has one block.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._replies: list[Reply[Any]] = []
        self._was_entered = False
        self._is_over = False

    def add(self, call: Call[T]) -> Reply[T]:
        """Put a call in the batch.

        Raises:
            VmmdError: the batch's block has ended.
        """
        if self._is_over:
            raise VmmdError("this batch is over; begin another one")
        reply = Reply(call)
        self._replies.append(reply)
        return reply

    def call(self, method: str, /, **params: Any) -> Reply[Any]:
        """Put a call of any method in the batch, with parameters in JSON's types; its result is JSON as it came."""
        return self.add(calls.raw(method, params))

    async def __aenter__(self) -> Self:
        if self._was_entered:
            raise VmmdError("this batch has been entered before; begin another one")
        self._was_entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        if error is None:
            await self._channel.send_batch(self._replies)
