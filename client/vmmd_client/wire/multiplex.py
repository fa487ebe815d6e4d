"""Whose answer a WebSocket's message is: questions that wait, by the ids of their calls. No socket, no event loop.

Answers come in any order. One whose caller has gone (by a timeout, or a cancellation) is dropped when it comes, since
nobody has its id any more. A message that belongs to no id at all is an error of the whole connection: it may have been
the answer of anybody.
"""

import json
from typing import Any, Generic, TypeVar

from ..errors import ProtocolError
from .protocol import Question

W = TypeVar("W")


class Waiters(Generic[W]):
    """Who waits for which answer; a waiter is whatever the transport wakes its caller by."""

    def __init__(self) -> None:
        self._by_id: dict[int, W] = {}

    def add(self, question: Question, waiter: W) -> None:
        """Have `waiter` wait for the answer of `question`."""
        self._by_id.update(dict.fromkeys(question.ids, waiter))

    def remove(self, question: Question) -> None:
        """Let the answer of `question` be nobody's; idempotent."""
        for call_id in question.ids:
            self._by_id.pop(call_id, None)

    def take_all(self) -> list[W]:
        """Give everybody who waits, once each, and forget them: the connection is gone."""
        waiters = list({id(waiter): waiter for waiter in self._by_id.values()}.values())
        self._by_id.clear()
        return waiters

    def whose(self, message: bytes) -> W | None:
        """Give who waits for a message; None where it is a notification, or its caller has gone.

        Raises:
            ProtocolError: the message is no answer of JSON-RPC, or one without an id while several wait.
        """
        try:
            answer = json.loads(message)
        except ValueError as error:
            raise ProtocolError(f"a message is no JSON ({error}); it begins with {message[:60]!r}") from None
        entry = answer[0] if isinstance(answer, list) and answer else answer
        if not isinstance(entry, dict):
            raise ProtocolError(f"a message is not of JSON-RPC 2.0; it begins with {message[:60]!r}")
        if "method" in entry:
            return None
        call_id = entry.get("id")
        return self._by_id.get(call_id) if type(call_id) is int else self._only(entry)

    def _only(self, entry: dict[str, Any]) -> W:
        """Give the one who waits, for the daemon's word on a body that it could not read far enough to find an id."""
        waiters = {id(waiter): waiter for waiter in self._by_id.values()}
        if len(waiters) != 1:
            raise ProtocolError(f"an answer names no call, and {len(waiters)} wait: {str(entry)[:200]}")
        return next(iter(waiters.values()))
