"""What kicks, pauses and holds came to: noted by handlers inside a pause, and read by metrics behind it.

A note is an append or an addition, some tens of nanoseconds, since the guest waits meanwhile. Nothing is worked out
here, and nothing is kept for long: whoever reads takes what is there.
"""

from collections import Counter, deque
from typing import Literal

Ending = Literal["kept", "rolled_back"]
"""How a resume ends a hold."""


class Timings:
    """Notes of kicks and of the pauses that they began.

    Attributes:
        kicks: Of each kick whether it was "hold" or "raw", and its nanoseconds.
        pauses: Of each hold that a resume ended, the nanoseconds from its kick to the resume.
        opened: How many holds were opened.
        ended: How many of them a resume ended, by how.
    """

    def __init__(self) -> None:
        self.kicks: deque[tuple[Literal["hold", "raw"], int]] = deque()
        self.pauses: deque[int] = deque()
        self.opened = 0
        self.ended: Counter[Ending] = Counter()

    def note_opened(self, kick_ns: int) -> None:
        """Take note of a kick that opened a hold."""
        self.opened += 1
        self.kicks.append(("hold", kick_ns))

    def note_raw(self, kick_ns: int) -> None:
        """Take note of a kick without a hold."""
        self.kicks.append(("raw", kick_ns))

    def note_ended(self, ending: Ending, pause_ns: int) -> None:
        """Take note of a resume that ended a hold."""
        self.ended[ending] += 1
        self.pauses.append(pause_ns)

    def note_published(self, pause_ns: int) -> None:
        """Take note of a list of changes that had a hold of its own, which nobody else could see."""
        self.opened += 1
        self.note_ended("kept", pause_ns)
