"""Holds: kick and resume with an owner, as a pure state machine.

A hold is known by the name that its caller chose; whoever knows the name is inside. One is current at a time, others
wait in line.

    (nothing) --kick--> OPENING --quiet--> OPEN --resume--> ENDED
                           |                 |  |
                           | gave up         |  | a call inside fails
                           v                 |  v
                         ENDED               |  FAILED --resume--> ENDED, rolled back
                                             |  |
                                             v  v  the lease ran out
                                            EXPIRED --the last call inside ended--> ENDED, rolled back

It keeps what a rollback needs, and does none of it. It has no lock and never waits: `vm` drives it on the event loop.
"""

from __future__ import annotations

import errno
import itertools
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from vmmd.kvm.errors import KvmError
from vmmd.memory.dirty import DirtyBitmap
from vmmd.memory.host import HostSpace, Piece
from vmmd.memory.memslots import Memslots
from vmmd.memory.region import Region

REMEMBERED_NS = 600 * 10**9
"""For how long an ended name is told from one that never was: ten minutes."""

RESUMED = "was resumed"
"""What became of a hold whose changes stand."""

MAX_REMEMBERED = 4096
MAX_NAME = 256


class State(Enum):
    """Where a hold stands."""

    OPENING = "opening"
    OPEN = "open"
    FAILED = "failed"
    EXPIRED = "expired"
    ENDED = "ended"


class Step(Enum):
    """What can befall a hold."""

    CALL = "a gated call inside"
    RENEW = "a kick of the same name"
    QUIET = "every vCPU is out of guest mode"
    FAIL = "a failure inside"
    GIVE_UP = "a kick that could not be finished"
    RESUME = "resume"
    EXPIRE = "the owner has left"
    ROLL_BACK = "nobody is inside any more"


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.OPENING, Step.QUIET): State.OPEN,
    (State.OPENING, Step.GIVE_UP): State.ENDED,
    (State.OPEN, Step.CALL): State.OPEN,
    (State.OPEN, Step.RENEW): State.OPEN,
    (State.OPEN, Step.FAIL): State.FAILED,
    (State.OPEN, Step.RESUME): State.ENDED,
    (State.FAILED, Step.FAIL): State.FAILED,
    (State.FAILED, Step.RESUME): State.ENDED,
    (State.OPEN, Step.EXPIRE): State.EXPIRED,
    (State.FAILED, Step.EXPIRE): State.EXPIRED,
    (State.EXPIRED, Step.FAIL): State.EXPIRED,
    (State.EXPIRED, Step.ROLL_BACK): State.ENDED,
}
"""Every legal step. Any other is refused, and changes nothing."""

_REFUSALS: dict[State, tuple[int, str]] = {
    State.OPENING: (errno.EBUSY, "is still waiting for its vCPUs"),
    State.OPEN: (errno.EINVAL, "is open already"),
    State.FAILED: (errno.ECANCELED, "has failed; its resume rolls back"),
    State.EXPIRED: (errno.ECANCELED, "has lost its lease, and is being rolled back"),
    State.ENDED: (errno.ECANCELED, "has ended"),
}


@dataclass(frozen=True, slots=True)
class Kick:
    """What a kick answers; a raw one has no hold and no lease.

    `kicked`: vCPUs inside KVM_RUN then. `lease_ms`: for how many milliseconds the hold stays open without a renewal.
    `renewed`: it was open already. `number`: what events call the hold.
    """

    hold: str | None
    kicked: int
    kick_ns: int
    generation: int
    lease_ms: int | None
    renewed: bool = False
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """What a resume answers. `pause_ns`: from the kick's first request to the resume; a raw one does not know."""

    pause_ns: int | None
    generation: int


@dataclass(slots=True)
class Undo:
    """What a rollback restores."""

    memslots: Memslots
    host: HostSpace
    taken: list[tuple[DirtyBitmap, int, bytes]] = field(default_factory=list)
    """Bits that were fetched or cleared inside: the log, the first byte, the bits."""
    written: list[tuple[int, int]] = field(default_factory=list)
    """Userspace ranges that guest-memory writes reached: their bytes stay, so their pages stay dirty."""
    unmapped: list[Piece] = field(default_factory=list)
    """Pieces that go at the resume."""
    changed: list[Region] = field(default_factory=list)
    """Changes of slots, for those who are told of them once they stand."""


@dataclass(slots=True)
class Hold:
    """One hold. Times are of a monotonic clock in nanoseconds. `calls`: how many are inside now.

    `refusal`: what a call is told that has to stay out. `number`: what others may know it by, who are not to know its
    name. `is_remembered`: whether its name is kept when it has ended; a hold whose name nobody was told needs none.
    """

    name: str
    number: int = 0
    state: State = State.OPENING
    kicked_at_ns: int = 0
    calls: int = 0
    became: str | None = None
    undo: Undo | None = None
    error: KvmError | None = None
    is_remembered: bool = True
    refusal: str = "the VM is held; name the hold to be inside it, or wait with wait_ms"

    def take(self, step: Step) -> None:
        """Make a legal step.

        Raises:
            KvmError: ECANCELED, EBUSY or EINVAL by the state, where the table has no such step.
        """
        after = TRANSITIONS.get((self.state, step))
        if after is None:
            number, what = _REFUSALS[self.state]
            reason = f" because of {self.error.message!r}" if self.state is State.FAILED and self.error else ""
            raise KvmError(number, f"hold {self.name!r} {what}{reason}")
        self.state = after


class Holds:
    """The current hold of a VM, those who wait for theirs, and the names that ended."""

    def __init__(self) -> None:
        self.current: Hold | None = None
        self._line: deque[tuple[Hashable, str]] = deque()
        self._ended: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._numbers = itertools.count(1)

    def admit(self, name: str | None, now_ns: int) -> Hold | None:
        """Let a gated call in: give the hold that it is inside, or None where there is no hold at all.

        Raises:
            KvmError: EBUSY where another hold is current; ECANCELED where the hold failed or ended; EINVAL where the
                name was never opened.
        """
        hold = self.current
        if hold is not None and name == hold.name:
            hold.take(Step.CALL)
            return hold
        self._refuse_ended(name, now_ns)
        if hold is not None:
            raise KvmError(errno.EBUSY, hold.refusal)
        if name is not None:
            raise KvmError(errno.EINVAL, f"no hold {name!r} is open; kick first")
        return None

    def renew(self, name: str, now_ns: int) -> Hold | None:
        """Give the current hold if it has that name already, or None where a kick has to open it.

        Raises:
            KvmError: ECANCELED where the name has failed or ended; EBUSY where its first kick is under way.
        """
        if self.current is not None and self.current.name == name:
            self.current.take(Step.RENEW)
            return self.current
        self._refuse_ended(name, now_ns)
        if any(name == waiting for _, waiting in self._line):
            raise KvmError(errno.EBUSY, f"hold {name!r} stands in line already")
        return None

    def open(self, name: str) -> Hold:
        """Make a hold the current one; there is none."""
        self.current = Hold(name, next(self._numbers))
        return self.current

    def get(self, name: str, now_ns: int) -> Hold:
        """Give the current hold by its name.

        Raises:
            KvmError: ECANCELED where it has ended, and how; EINVAL where it was never opened.
        """
        if self.current is not None and self.current.name == name:
            return self.current
        self._refuse_ended(name, now_ns)
        raise KvmError(errno.EINVAL, f"no hold {name!r} is open")

    def became(self, name: str) -> str | None:
        """Tell what became of a hold that has ended; None where it is not remembered."""
        return self._ended[name][1] if name in self._ended else None

    def is_current(self, name: str) -> bool:
        """Tell whether the current hold has that name."""
        return self.current is not None and self.current.name == name

    def end(self, now_ns: int, became: str | None) -> None:
        """Forget the current hold, but for its name and what became of it; None where it was never open."""
        if self.current is None:
            return
        # The error's frames hold the hold: let go of it, and of the memory that a rollback would have needed.
        self.current.undo = self.current.error = None
        if became is not None and self.current.is_remembered:
            self._ended[self.current.name] = (now_ns + REMEMBERED_NS, became)
            self._ended.move_to_end(self.current.name)
        while len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)
        self.current = None

    def stand_in_line(self, ticket: Hashable, name: str) -> bool:
        """Open the hold where nobody is before it, else put it in line under `ticket`; tell whether it is open."""
        if self.current is None and not self._line:
            self.open(name)
            return True
        self._line.append((ticket, name))
        return False

    def step_out(self, ticket: Hashable) -> None:
        """Leave the line."""
        self._line = deque(entry for entry in self._line if entry[0] is not ticket)

    def admit_next(self) -> Hashable | None:
        """Open the hold of whoever is first in line, if there is no current one, and give the ticket."""
        if self.current is not None or not self._line:
            return None
        ticket, name = self._line.popleft()
        self.open(name)
        return ticket

    def _refuse_ended(self, name: str | None, now_ns: int) -> None:
        if name is None or name not in self._ended:
            return
        until, became = self._ended[name]
        if now_ns > until:
            del self._ended[name]
            return
        raise KvmError(errno.ECANCELED, f"hold {name!r} has ended: it {became}", became=became)


def check_name(name: str) -> None:
    """Check a hold's name.

    Raises:
        KvmError: EINVAL where it is empty or too long.
    """
    if not 0 < len(name) <= MAX_NAME:
        raise KvmError(errno.EINVAL, f"a hold's name has 1 to {MAX_NAME} characters, not {len(name)}")
