"""One update under a magnifying glass: what each vCPU did between any two of its calls, and which ranges were missing.

The update is taken apart on purpose: behind every call every vCPU's counters are read (which no hold keeps from being
read), so each column of the picture is one step, with the time that it took by the client's clock. That makes the whole
longer than the same update in the replay; what happens in it is what happens there.
"""

import contextlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmmd.api.vcpus import StatsResult

from ..audit.updates import Hole
from ..connection import Client
from ..errors import KvmError
from ..slots.memslots import Memslot
from ..vm import Vm
from ..wire import calls
from ..wire.protocol import Call
from .layout import Span
from .replay import Mode


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
        generation: the slot table's generation behind the step's call; None where it made none.
        call_ns: how long the call alone took by the client's clock; None where there was none.
    """

    label: str
    duration_ns: int
    held: bool
    doings: tuple[Doing, ...]
    missing: tuple[bool, ...]
    generation: int | None = None
    call_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One update, step by step.

    Attributes:
        mode: how it was made.
        ranges: the guest-physical ranges that the update takes away and gives back.
        columns: the steps.
        pause_ns: for how long the daemon kept the vCPUs out of guest mode, in nanoseconds; None where it did not.
    """

    mode: Mode
    ranges: tuple[Span, ...]
    columns: tuple[Column, ...]
    pause_ns: int | None = None


async def trace_update(
    client: Client, handle: Vm, vcpus: Sequence[int], regions: Sequence[Memslot], holes: Sequence[Hole], mode: Mode
) -> Picture:
    """Make one update step by step, from the map that stands, and look at every vCPU in each step.

    Args:
        client: the client of the VM's daemon.
        handle: the VM; the calls go past its slot table, which it forgets.
        vcpus: the ids of its vCPUs.
        regions: the update's calls of KVM_SET_USER_MEMORY_REGION, in their order.
        holes: the ranges that are missing between two of them.
        mode: "plain": one call after another. "atomic": the same in a hold.

    Raises:
        KvmError: a call was refused; a hold was given back by then, and undone.
    """
    vm, hold = handle.id, secrets.token_urlsafe(16)
    options: dict[str, Any] = {"hold": hold} if mode == "atomic" else {}
    changes: list[Call[Any]] = [calls.set_user_memory_region(vm, region, **options) for region in regions]
    labels = [_label(region) for region in regions]
    resume = calls.resume_all_kicked_vcpus(vm, hold)
    if mode == "atomic":
        changes = [calls.kick_all_running_vcpus(vm, hold), *changes, resume]
        labels = ["kick", *labels, "resume"]
    steps: list[tuple[str, Call[Any] | None]] = [("before", None), *zip(labels, changes, strict=True), ("after", None)]
    ranges: dict[Span, list[Hole]] = {}
    for hole in holes:
        ranges.setdefault(Span(hole.guest_phys_addr, hole.size), []).append(hole)
    taken = await _look(client, vm, vcpus)
    columns: list[Column] = []
    pause_ns = None
    for number, (label, call) in enumerate(steps):
        begin_ns = time.perf_counter_ns()
        generation = call_ns = None
        if call is not None:
            try:
                answer = await client.send(call)
            except KvmError:
                await _give_back(client, resume, mode)
                raise
            call_ns = time.perf_counter_ns() - begin_ns
            generation = answer if isinstance(answer, int) else answer.generation
            pause_ns = getattr(answer, "pause_ns", pause_ns)
        seen = await _look(client, vm, vcpus)
        duration_ns = time.perf_counter_ns() - begin_ns
        doings = tuple(
            Doing(now.instructions - then.instructions, now.stray_exits - then.stray_exits)
            for now, then in zip(seen, taken, strict=True)
        )
        held = mode == "atomic" and 1 < number < len(steps) - 2
        # The first change is the step behind "before", and in atomic mode behind "kick".
        done = number - (2 if mode == "atomic" else 1)
        missing = tuple(any(hole.opened_by <= done < hole.filled_by for hole in holes) for holes in ranges.values())
        columns.append(Column(label, duration_ns, held, doings, missing, generation, call_ns))
        taken = seen
    # The calls went past the VM's handle.
    handle.forget_slot_table()
    return Picture(mode, tuple(ranges), tuple(columns), pause_ns)


async def _give_back(client: Client, resume: Call[Any], mode: Mode) -> None:
    """End the hold behind a call that was refused; what its resume says is that refusal again."""
    if mode == "atomic":
        with contextlib.suppress(KvmError):
            await client.send(resume)


async def _look(client: Client, vm: str, vcpus: Sequence[int]) -> list[StatsResult]:
    """Read every vCPU's counters in one round trip."""
    async with client.batch() as batch:
        stats = [batch.add(calls.get_vcpu_stats(vm, vcpu)) for vcpu in vcpus]
    return [reply.result() for reply in stats]


def _label(region: Memslot) -> str:
    return f"{'+' if region.memory_size else '-'}{region.slot}"
