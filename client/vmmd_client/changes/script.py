"""Calls that depend on answers, as generators: what is sent next is decided here, and sent elsewhere.

A script yields an `Exchange`, and is given the answers, or has the exception thrown in that kept them from coming. It
returns its result. It has no socket, no clock and no event loop, so whoever plays it may be asynchronous (`play`), or
a thread, or a test that loses an answer wherever it likes.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..errors import (
    ConnectError,
    ConnectTimeout,
    ForeignEventLoop,
    HttpRefused,
    ProtocolError,
    RpcError,
    TransportError,
)
from ..wire.protocol import Call

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one call: a value, or the error that the daemon answered with."""

    value: Any = None
    error: RpcError | None = None

    def result(self) -> Any:
        """Give the value.

        Raises:
            RpcError: the call was answered with an error.
        """
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, slots=True)
class Exchange:
    """One round trip.

    Attributes:
        calls: what is asked; one call goes by itself, several as a batch.
        timeout_s: how long it may take beyond the calls' own waits, in seconds; None: as any call.
    """

    calls: tuple[Call[Any], ...]
    timeout_s: float | None = None


Script = Generator[Exchange, list[Answer], T]


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """A script has ended: its result."""

    result: T


def advance(
    script: Script[T], answers: list[Answer] | None = None, error: Exception | None = None
) -> Exchange | Ended[T]:
    """Begin a script, or go on with it, up to what it wants sent next.

    Args:
        script: the script.
        answers: the answers to its last exchange; None where it has not begun, or there are none.
        error: why there are no answers.

    Raises:
        VmmdError: the script ends with it.
    """
    try:
        if error is not None:
            return script.throw(error)
        return script.send(answers) if answers is not None else next(script)
    except StopIteration as end:
        return Ended(end.value)


NOT_SENT = (ConnectError, ConnectTimeout, ForeignEventLoop, HttpRefused)
"""With these nothing was executed."""

LOST = (TransportError, ProtocolError)
"""With these the answer is missing; without `NOT_SENT`'s, whether the calls were executed is not known."""
