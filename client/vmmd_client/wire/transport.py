"""How the bytes of a question reach a daemon and those of its answer come back.

A `Transport` carries one body there and one back; it knows nothing of methods and results. `http` has the one that
posts, `websocket` the one that keeps a WebSocket, and here is `MemoryTransport`, which asks a function and needs no
daemon. A `Link` is a WebSocket for one purpose, as a stream of events is. Whatever goes wrong is one of
`TransportError`'s classes, and a call that is cancelled or timed out has an answer that can reach nobody.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from ..errors import ClientClosed, ConnectError
from .protocol import Question


class Link(Protocol):
    """A WebSocket of one's own: JSON texts there and back, in their order."""

    async def send(self, body: bytes) -> None:
        """Send one text.

        Raises:
            Disconnected: the connection has ended.
        """
        ...

    async def receive(self, timeout_s: float | None) -> bytes:
        """Give the next text.

        Args:
            timeout_s: how long to wait for it, in seconds; None: for as long as the connection stands.

        Raises:
            CallTimeout: none came in time.
            Disconnected: the connection has ended.
        """
        ...

    async def aclose(self) -> None:
        """End the connection; idempotent."""
        ...


class Transport(Protocol):
    """Carries one body to the daemon and its answer back, for any number of callers at once."""

    async def exchange(self, question: Question, timeout_s: float) -> bytes:
        """Send a question's body and give the answer's body.

        Args:
            question: a JSON-RPC request or batch, with the ids by which its answer is known.
            timeout_s: how long it may take in all, in seconds.

        Raises:
            TransportError: the answer did not come.
        """
        ...

    async def link(self) -> Link:
        """Open a WebSocket of one's own to the same daemon.

        Raises:
            TransportError: it was not opened.
        """
        ...

    async def aclose(self) -> None:
        """Give up every connection; idempotent."""
        ...


class MemoryTransport:
    """A transport without a network: the answers come from a function. `testing` builds a whole daemon on it."""

    def __init__(
        self, answer: Callable[[bytes], Awaitable[bytes]], link: Callable[[], Awaitable[Link]] | None = None
    ) -> None:
        """Take what answers.

        Args:
            answer: gives the answer's body for a question's body; its time is its own, what it raises comes through.
            link: opens a link; left out, a link is refused with ConnectError.
        """
        self._answer = answer
        self._link = link
        self._closed = False

    async def exchange(self, question: Question, timeout_s: float) -> bytes:
        """Ask the function."""
        if self._closed:
            raise ClientClosed("this client is closed; connect anew")
        return await self._answer(question.body)

    async def link(self) -> Link:
        """Open a link as the function that was given does."""
        if self._closed:
            raise ClientClosed("this client is closed; connect anew")
        if self._link is None:
            raise ConnectError("this transport in memory was given no function that opens a link")
        return await self._link()

    async def aclose(self) -> None:
        """Refuse every further exchange."""
        self._closed = True
