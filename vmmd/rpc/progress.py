"""How far a call is that takes long: told to the WebSocket that waits for it, a few times a second.

A caller over HTTP, and one who gave no id, is told nothing. A peer that is slow to read misses some of it.
"""

import asyncio
from collections.abc import Callable

from vmmd.rpc.caller import Caller

PROGRESS_S = 0.25
"""How often a call tells how far it is. One that is over sooner tells nothing."""


class Progress:
    """What one call tells, for the length of a block.

    Args:
        caller: Who waits for it.
        total: How much there is to do.
    """

    def __init__(self, caller: Caller, total: int) -> None:
        self._caller = caller
        self._total = total
        self._done: Callable[[], int] = lambda: 0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def begin(self, done: Callable[[], int]) -> None:
        """Begin to tell; `done` says how much is done."""
        self._done = done
        if self._caller.connection is not None and self._caller.running is not None:
            self._timer = asyncio.get_running_loop().call_later(PROGRESS_S, self._tell)

    def _tell(self) -> None:
        connection, call_id = self._caller.connection, self._caller.running
        if connection is not None and call_id is not None:
            # The id goes back to the digit, as in the answer.
            connection.notify("progress", b'{"id":%b,"done":%d,"total":%d}' % (call_id, self._done(), self._total))
        self._timer = asyncio.get_running_loop().call_later(PROGRESS_S, self._tell)
