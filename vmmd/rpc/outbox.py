"""The bytes of answers that one peer has asked for and not read yet: so many, and what would be more waits.

A peer can ask for a large answer in a small request, and never read: what is made for it must not be without end. Room
is taken before an answer is made, as much as it may have, and what is not needed is given back when it is there.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress


class Room:
    """Room for answers, first come first served.

    Args:
        most_bytes: How much there is. An answer that is larger has its turn alone.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._taken_bytes = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Take room, and wait until it is there; it stays taken until it is given back."""
        if self._line or not self._has_room(size):
            turn = asyncio.get_running_loop().create_future()
            self._line.append((size, turn))
            while not turn.done():
                # A caller who goes meanwhile gives nothing up: what was received whole is carried out whole.
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([turn])
            return
        self._taken_bytes += size

    def give_back(self, size: int) -> None:
        """Give room back; with a negative size, take it without waiting."""
        self._taken_bytes -= size
        while self._line and self._has_room(self._line[0][0]):
            size, turn = self._line.popleft()
            self._taken_bytes += size
            turn.set_result(None)

    def _has_room(self, size: int) -> bool:
        return not self._taken_bytes or self._taken_bytes + size <= self._most_bytes


class Outbox:
    """The room for one peer's answers.

    What is asked inside an open hold has room of its own: others may wait for that hold with theirs taken.
    """

    def __init__(self, most_bytes: int) -> None:
        self.inside = Room(most_bytes)
        self.outside = Room(most_bytes)


async def until_read(transport: asyncio.Transport, sending: Awaitable[None], unread_ms: int) -> None:
    """Wait until what is sent has gone out; a peer that takes nothing of it for too long loses its connection.

    Args:
        transport: The connection. Nobody else may send what is large meanwhile.
        sending: Sends, and waits until most of it has gone out.
        unread_ms: How long the peer may take nothing, in milliseconds; it is looked at as often.
    """
    task = asyncio.ensure_future(sending)
    waiting: int | None = None
    try:
        while not (await asyncio.wait([task], timeout=unread_ms / 1000))[0]:
            left = transport.get_write_buffer_size()
            if waiting is not None and left >= waiting:
                transport.abort()
                break
            waiting = left
        await task
    finally:
        task.cancel()
        # Its error has this frame, and the frame the task: a cycle, which would keep the answer.
        del task
