"""When a question may be sent again, and after which waits. Pure: no clock, no connection.

Sent again is what cannot have had an effect (no connection was made), and what may have had one but has no more effect
when it is repeated: reads, and changes that bear a `request_id`. A call whose time is up is not sent again.
"""

from ..errors import ClientClosed, ConnectError, Disconnected, TransportError, UnusableArgument
from .protocol import Question

DEFAULT_ATTEMPTS = 3
"""How often a question is sent at most."""

FIRST_DELAY_S = 0.05
"""The wait before the first repetition, in seconds."""

DELAY_FACTOR = 4
"""How many times as long each wait is as the one before it."""


REFUSALS = frozenset({1002, 1003, 1007, 1008, 1009})
"""The WebSocket close codes (RFC 6455, 7.4.1) by which a daemon refuses the message itself."""


def delays_s(attempts: int) -> list[float]:
    """Give the waits between so many attempts, in seconds: one fewer than there are attempts.

    Raises:
        UnusableArgument: fewer than one attempt.
    """
    if not isinstance(attempts, int) or attempts < 1:
        raise UnusableArgument("attempts", f"a call is sent at least once, and not {attempts!r} times")
    return [FIRST_DELAY_S * DELAY_FACTOR**index for index in range(attempts - 1)]


def may_repeat(question: Question, error: TransportError) -> bool:
    """Tell whether a question that ended with `error` may be sent again."""
    if isinstance(error, Disconnected):
        would_fail_again = isinstance(error, ClientClosed) or error.close_code in REFUSALS
        return question.is_repeatable and not would_fail_again
    return isinstance(error, ConnectError)
