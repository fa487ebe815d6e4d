"""How calls go into bodies that the daemon takes: cut by its limits on calls, bytes asked and bytes answered.

Sizes are counted on the safe side. What goes into no body at all is refused before anything is sent. Pure, without I/O.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PlanTooLarge
from .protocol import Call

# JSON-RPC's envelope around the parameters of a request with its `request_id`, and any result that is no bitmap.
_ENVELOPE_BYTES = 160
_RESULT_BYTES = 384


@dataclass(frozen=True, slots=True)
class BodySize:
    """What a body and its answer come to, or may come to at most; the names are those of `daemon.get_info`.

    Attributes:
        batch_calls: the calls of one batch.
        body_bytes: the bytes of a request body.
        reply_bytes: the bytes of its answer.
    """

    batch_calls: int
    body_bytes: int
    reply_bytes: int

    def __add__(self, other: "BodySize") -> "BodySize":
        return BodySize(
            self.batch_calls + other.batch_calls,
            self.body_bytes + other.body_bytes,
            self.reply_bytes + other.reply_bytes,
        )

    def __str__(self) -> str:
        return f"{self.batch_calls} calls, {self.body_bytes} bytes and an answer of {self.reply_bytes} bytes"

    def is_within(self, limits: "BodySize") -> bool:
        """Tell whether a body of this size is taken."""
        return (
            self.batch_calls <= limits.batch_calls
            and self.body_bytes <= limits.body_bytes
            and self.reply_bytes <= limits.reply_bytes
        )

    @classmethod
    def of(cls, limits: Mapping[str, int]) -> "BodySize":
        """Take them out of the limits that the daemon tells; one that it does not tell is the small one."""
        return cls(
            limits.get("batch_calls", SMALL.batch_calls),
            limits.get("body_bytes", SMALL.body_bytes),
            limits.get("reply_bytes", SMALL.reply_bytes),
        )


SMALL = BodySize(batch_calls=128, body_bytes=64 << 10, reply_bytes=256 << 10)
"""What goes through without asking: far below the defaults. A daemon that takes less says so, and does nothing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A call of a body.

    Attributes:
        call: the call.
        step: the index of the plan's step that it carries out, or None.
        answer_bytes: bytes of a bitmap in its answer.
    """

    call: Call[Any]
    step: int | None = None
    answer_bytes: int = 0


def size_of(entries: Iterable[Entry]) -> BodySize:
    """Give what entries come to in one body, counted on the safe side."""
    calls = asked = answered = 0
    for entry in entries:
        calls += 1
        asked += len(json.dumps(dict(entry.call.params))) + len(entry.call.method) + _ENVELOPE_BYTES
        answered += entry.answer_bytes * 4 // 3 + _RESULT_BYTES
    return BodySize(calls, asked, answered)


def cut(entries: Iterable[Entry], limits: BodySize, head: Entry | None = None) -> list[list[Entry]]:
    """Cut entries into bodies, in their order.

    Args:
        entries: what is to be sent.
        limits: what a body may come to.
        head: what every body but the first begins with; None: nothing.

    Raises:
        PlanTooLarge: an entry goes into no body, alone or behind the head.
    """
    bodies: list[list[Entry]] = []
    used = BodySize(0, 0, 0)
    for entry in entries:
        size = size_of([entry])
        if not bodies or not (used + size).is_within(limits):
            bodies.append([head] if bodies and head is not None else [])
            used = size_of(bodies[-1])
        bodies[-1].append(entry)
        used += size
        if not used.is_within(limits):
            raise PlanTooLarge(
                f"{entry.call.method} needs a body of {used} which is over the daemon's limits of {limits}; raise them"
            )
    return bodies
