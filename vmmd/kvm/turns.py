"""Whose turn it is in a cooperative VM: one vCPU at a time, in an order that a seed decides, by the instruction.

A turn is a vCPU and a number of instructions, both drawn from the seed. It may be cut anywhere, at a timer or at the
end of an advance, and is gone on with behind the cut; so two advances in a row are the same as one over both. Nothing
here depends on the engine, on the host's time, or on how long a worker goes on.

It knows no thread and no event loop: `cooperative` has it step on a worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from vmmd.isa.context import Context, ContextRecord
from vmmd.kvm.clock import InstructionClock
from vmmd.kvm.requests import KVM_REQ_DIRTY_RING_SOFT_FULL
from vmmd.kvm.scheduler import Turn
from vmmd.memory.dirty import Words
from vmmd.memory.limits import U64

RING_TURN_INSTRUCTIONS = 256
"""The longest turn of a vCPU with a dirty ring, which is looked at between turns: two pages an instruction fit in what
a ring keeps behind its soft limit (`ring.RESERVED_ENTRIES`)."""

TURN_LENGTHS = 13
"""Turns of 1 instruction, of 2 or 3, of 4 to 7, and so on up to 8,191, as many of each: races want short ones,
speed wants long ones."""

WASTED_INSTRUCTIONS = 10_000
"""How much may be spent on traps, in turns in which nothing retires, before an advance ends: handlers that trap again
would keep it going for ever."""


class End(Enum):
    """Why an advance ended."""

    INSTRUCTIONS = "instructions"
    IDLE = "idle"
    TRAPS = "traps"
    STOP = "stop"


class Contender(Protocol):
    """A vCPU with its run loop, as far as turns go."""

    context: Context

    @property
    def is_ready(self) -> bool:
        """Whether it neither sleeps, nor waits in userspace, nor has ended."""

    def go_on(self, turn: Turn) -> None:
        """Run for a while, at most for what the turn allows, and serve an exit. It is ready."""


class SplitMix64:
    """The generator of that name: 64 bits at a time, the same on every machine and in every version of Python.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """

    def __init__(self, seed: int) -> None:
        self._state = seed & U64

    def draw(self) -> int:
        """Return the next number from 0 to 2^64 - 1."""
        self._state = self._state + 0x9E37_79B9_7F4A_7C15 & U64
        mixed = (self._state ^ self._state >> 30) * 0xBF58_476D_1CE4_E5B9 & U64
        mixed = (mixed ^ mixed >> 27) * 0x94D0_49BB_1331_11EB & U64
        return mixed ^ mixed >> 31


class Turns:
    """The turns of one VM, and the `Turn` that its vCPUs ask.

    Args:
        seed: what the order is drawn from, 64 bits.
        clock: the VM's.
        words: the engine's atomic steps.
    """

    others_wait = True
    """A vCPU is asked again whenever it could give way: so it never matters how long a worker goes on."""

    def __init__(self, seed: int, clock: InstructionClock, words: Words) -> None:
        self._words = words
        self._random = SplitMix64(seed)
        self._clock = clock
        self._left = 0
        self._current: Contender | None = None
        self._turn_left = 0
        self._turn_retired = 0
        self._turn_spent = 0
        self._wasted = 0
        self._record: ContextRecord | None = None
        self._granted = 0
        self._retired_before = 0

    @property
    def left(self) -> int:
        """How many instructions the advance has still to retire."""
        return self._left

    def begin(self, instructions: int) -> None:
        """Begin an advance of so many retired instructions."""
        self._left = instructions

    def step(self, contenders: Sequence[Contender]) -> End | None:
        """Go on with whose turn it is, for a while; tell why the advance has ended, where it has.

        `contenders` are always in the same order.
        """
        if not self._left:
            return End.INSTRUCTIONS
        current = self._choose(contenders)
        if self._wasted >= WASTED_INSTRUCTIONS:
            self._wasted = 0
            return End.TRAPS
        if current is None:
            return None if self._clock.skip_to_alarm() else End.IDLE
        record = self._record = current.context.record
        self._retired_before = record.retired
        self._clock.follow(record)
        current.go_on(self)
        self._settle()
        return None

    def allow(self, instructions: int) -> int:
        """See `Turn`: what is left of the turn and of the advance, and no further than to the next alarm."""
        self._settle()
        until_alarm = self._clock.next_alarm_ns()
        self._granted = min(instructions, self._left, self._turn_left)
        if until_alarm is not None:
            self._granted = min(self._granted, until_alarm)
        return self._granted

    def _settle(self) -> None:
        """Book what was run since the last look. A trap that the guest took is spent, and has not retired."""
        record = self._record
        if record is None or not self._granted:
            return
        spent, retired = self._granted - record.budget, record.retired - self._retired_before
        self._granted, self._retired_before = 0, record.retired
        self._turn_left -= spent
        self._turn_spent += spent
        self._turn_retired += retired
        self._left -= retired
        self._clock.go_off()

    def _choose(self, contenders: Sequence[Contender]) -> Contender | None:
        current = self._current
        if current in contenders and self._turn_left and current is not None and current.is_ready:
            return current
        if self._turn_retired:
            self._wasted = 0
        else:
            self._wasted += self._turn_spent
        self._turn_retired = self._turn_spent = self._turn_left = 0
        ready = [contender for contender in contenders if contender.is_ready]
        self._current = self._draw(ready) if ready else None
        return self._current

    def _draw(self, ready: Sequence[Contender]) -> Contender:
        chosen = ready[(self._random.draw() >> 32) * len(ready) >> 32]
        drawn = self._random.draw()
        shift = (drawn >> 32) * TURN_LENGTHS >> 32
        self._turn_left = 1 << shift | drawn & (1 << shift) - 1
        ring = chosen.context.ring
        if ring is not None:
            self._turn_left = min(self._turn_left, RING_TURN_INSTRUCTIONS)
            if ring.is_soft_full:
                requests = chosen.context.address + ContextRecord.requests.offset
                self._words.set_bits(requests, KVM_REQ_DIRTY_RING_SOFT_FULL)
        return chosen
