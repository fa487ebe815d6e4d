"""One update under a magnifying glass: what each vCPU did between any two of its calls, and which ranges were missing.

The update is taken apart on purpose: behind every call every vCPU's counters are read (which no hold keeps from being
read), so each column of the picture is one step, with the time that it took by the client's clock. That makes the whole
longer than the same update in the replay; what happens in it is what happens there.
"""

import secrets
import time
from dataclasses import dataclass
from typing import Any

from vmmd.api.vcpus import StatsResult

from . import calls
from .connection import Client
from .layout import Span
from .memslots import Memslot
from .protocol import Call
from .replay import Mode, Replay, Score
from .traces import Hole


@dataclass(frozen=True, slots=True)
class Doing:
    """What one vCPU did in one step.

    Attributes:
        instructions: guest instructions retired.
        stray_exits: how often it fell through.
    """

    instructions: int
    stray_exits: int


@dataclass(frozen=True, slots=True)
class Column:
    """One step.

    Attributes:
        label: the step's name: "before", "kick", "-4" (slot 4 deleted), "+5" (slot 5 created), "resume", "after".
        duration_ns: how long it took by the client's clock.
        held: whether a hold was open in the whole step.
        doings: what each vCPU did in it.
        missing: for each range of the picture, whether it was missing at the step's end.
    """

    label: str
    duration_ns: int
    held: bool
    doings: tuple[Doing, ...]
    missing: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """One update, step by step.

    Attributes:
        mode: how it was made.
        ranges: the guest-physical ranges that the update takes away and gives back.
        columns: the steps.
    """

    mode: Mode
    ranges: tuple[Span, ...]
    columns: tuple[Column, ...]


async def trace_update(client: Client, replay: Replay, score: Score, mode: Mode) -> Picture:
    """Make one update step by step, from the map that stands, and look at every vCPU in each step."""
    vm, hold = replay.vm.id, secrets.token_urlsafe(16)
    options: dict[str, Any] = {"hold": hold} if mode == "atomic" else {}
    changes: list[Call[Any]] = [calls.set_user_memory_region(vm, region, **options) for region in score.regions]
    labels = [_label(region) for region in score.regions]
    if mode == "atomic":
        changes = [calls.kick_all_running_vcpus(vm, hold), *changes, calls.resume_all_kicked_vcpus(vm, hold)]
        labels = ["kick", *labels, "resume"]
    steps: list[tuple[str, Call[Any] | None]] = [("before", None), *zip(labels, changes, strict=True), ("after", None)]
    ranges: dict[Span, list[Hole]] = {}
    for hole in score.holes:
        ranges.setdefault(Span(hole.guest_phys_addr, hole.size), []).append(hole)
    taken = await _look(client, replay)
    columns = []
    for number, (label, call) in enumerate(steps):
        begin_ns = time.perf_counter_ns()
        if call is not None:
            await client.send(call)
        seen = await _look(client, replay)
        duration_ns = time.perf_counter_ns() - begin_ns
        doings = tuple(
            Doing(now.instructions - then.instructions, now.stray_exits - then.stray_exits)
            for now, then in zip(seen, taken, strict=True)
        )
        held = mode == "atomic" and 1 < number < len(steps) - 2
        # The first change is the step behind "before", and in atomic mode behind "kick".
        done = number - (2 if mode == "atomic" else 1)
        missing = tuple(any(hole.opened_by <= done < hole.filled_by for hole in holes) for holes in ranges.values())
        columns.append(Column(label, duration_ns, held, doings, missing))
        taken = seen
    # The calls went past the VM's handle.
    replay.vm.forget_slot_table()
    return Picture(mode, tuple(ranges), tuple(columns))


async def _look(client: Client, replay: Replay) -> list[StatsResult]:
    """Read every vCPU's counters in one round trip."""
    async with client.batch() as batch:
        stats = [batch.add(calls.get_vcpu_stats(replay.vm.id, vcpu)) for vcpu in range(replay.vcpus)]
    return [reply.result() for reply in stats]


def _label(region: Memslot) -> str:
    return f"{'+' if region.memory_size else '-'}{region.slot}"
