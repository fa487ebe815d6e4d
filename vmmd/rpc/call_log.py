"""Which calls have a line in the log: what changes something, what went wrong inside, and reads at the level "debug".

A line costs as much as a call that sets a slot, so there are only so many a second; of the others a line says, a second
later, how many there were of each method. What went wrong inside the daemon has its line always.

A refused call's line has the code and the errno, and never the sentence: that may have a hold's name in it, which is
the key to the hold, and more that callers have made up.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

import structlog

from vmmd.api.errors import errno_name
from vmmd.rpc.dispatch import CallDone
from vmmd.rpc.errors import CallError

_SECOND_S = 1.0

_log = structlog.get_logger()


class CallLog:
    """Writes the lines.

    Args:
        calls_per_second: How many calls have a line of their own in a second.
        reads: Whether calls that change nothing have one.
    """

    def __init__(self, *, calls_per_second: int, reads: bool) -> None:
        self._calls_per_second = calls_per_second
        self._reads = reads
        self._left = calls_per_second
        self._unlogged: Counter[str] = Counter()
        self._second: asyncio.TimerHandle | None = None

    def __call__(self, calls: Sequence[CallDone]) -> None:
        """Take note of the calls of a body, which are over."""
        for call in calls:
            if call.cause is not None:
                _log.error("rpc.call", **_about(call), exc_info=call.cause)
            elif call.method is None:
                self._write_refusal(call)
            elif call.method.changes:
                self._write_or_count(call, call.method.name)
            elif self._reads:
                _log.debug("rpc.call", **_about(call))

    def close(self) -> None:
        """Write what is left to say, and want no more of the event loop."""
        if self._second is not None:
            self._second.cancel()
            self._end_second()

    def _write_refusal(self, call: CallDone) -> None:
        if self._reads and call.error is not None:
            _log.debug("rpc.refused", **_about_error(call.error))

    def _write_or_count(self, call: CallDone, name: str) -> None:
        if self._second is None:
            self._left = self._calls_per_second
            self._second = asyncio.get_running_loop().call_later(_SECOND_S, self._end_second)
        if self._left:
            self._left -= 1
            _log.info("rpc.call", **_about(call))
        else:
            self._unlogged[name] += 1

    def _end_second(self) -> None:
        self._second = None
        if self._unlogged:
            # The timer was set by some call, whose names are bound here and are not these calls'.
            structlog.contextvars.clear_contextvars()
            _log.info(
                "rpc.calls_unlogged",
                calls=dict(self._unlogged),
                setting=f"log.calls_per_second={self._calls_per_second}",
            )
            self._unlogged.clear()


def _about(call: CallDone) -> dict[str, object]:
    about: dict[str, object] = {
        "method": call.method.name if call.method is not None else None,
        "vm": call.vm,
        "duration_us": call.duration_ns // 1000,
    }
    if call.error is not None:
        about |= _about_error(call.error)
    return about


def _about_error(error: CallError) -> dict[str, object]:
    name = errno_name(error.code)
    return {"code": error.code} if name is None else {"code": error.code, "errno": name}
