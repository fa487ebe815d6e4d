"""Replays a recording's memory map updates in a VM whose vCPUs walk over the very memory, plain and atomic.

Plain is what the VMM did: one call after another, while vCPUs run. Atomic is one batch an update: kick, the same calls,
resume. Only updates in which a deleted range overlaps an added one count; the others, which no vCPU can notice, are
replayed between them in the same way in both modes. What vCPUs noticed is read before and after each round, and only
when every vCPU has walked over all of its pages since: nothing is noticed late and booked on the wrong side. Then the
map is wound back inside a hold, outside of all figures.

Everything goes through the client library's public face.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vmmd.api.holds import ResumeResult

from ..audit.updates import Hole, Update
from ..connection import Client
from ..slots.memslots import Memslot, with_call
from ..vm import Vm
from ..wire import calls
from .guest import Guest, install
from .layout import Layout, Relocation, Span

Mode = Literal["plain", "atomic"]

PAGES_PER_RANGE = 24
"""Pages of each range that a vCPU walks over: few enough that a walk takes microseconds, many enough to be met."""

SETTLE_TIMEOUT_S = 20.0
"""How long a vCPU may take for one walk over its pages, in seconds."""

LONGEST_PAUSE_US = 1_000_000
"""How long a replay at the recorded pace waits between two updates at most, in microseconds."""

SPARSE_ABOVE_BYTES = 512 << 20
"""Host memory for recorded guests larger than this is mapped sparse: only pages that are touched count."""

# Between two looks at whether a walk has ended: questions without a pause would take the walkers' own time.
_SETTLE_POLL_S = 0.003


class ReplayError(RuntimeError):
    """The replay cannot go on: a vCPU's run loop has ended, or it walks no more."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the vCPUs had noticed and done at one time.

    Attributes:
        stray_exits: MMIO exits that no device answers for, of all vCPUs.
        wrong_values: lost or wrong values, of all vCPUs.
        passes: whole walks, by vCPU.
    """

    stray_exits: int
    wrong_values: int
    passes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """One update as it is replayed.

    Attributes:
        counts: whether a deleted range overlaps an added one.
        regions: its calls, over the memory that is mapped now.
        holes: the ranges that it takes away and gives back, by the indices of its calls.
        pause_us: how long after the update before it the recorded VMM began it, in microseconds.
        begin_us: when each of its calls began, in microseconds since the first one.
        line: the recording's line on which the first of these calls began.
    """

    counts: bool
    regions: tuple[Memslot, ...]
    holes: tuple[Hole, ...]
    pause_us: int
    begin_us: tuple[int, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a replay goes.

    Attributes:
        recorded: whether it waits between updates, and in a plain update between calls, as the recorded VMM did;
            else it goes as fast as it can.
        stretch: what the recorded times between the calls of an update are multiplied by.
    """

    recorded: bool = False
    stretch: float = 1.0


AS_FAST_AS_IT_GOES = Pace()


@dataclass(slots=True)
class Tally:
    """What the counted updates of one mode amount to.

    Attributes:
        updates: counted updates.
        slot_calls: their slot calls.
        stray_exits: what fell through while they went on.
        wrong_values: lost and wrong values that the guests found.
        hole_open_ns: for each hole, from the answer of the call that made it to that of the one that filled it.
        pause_ns: for each atomic update, how long vCPUs were kept out of guest mode.
        instructions: guest instructions retired in the whole of the mode's rounds.
        elapsed_ns: how long these took.
    """

    updates: int = 0
    slot_calls: int = 0
    stray_exits: int = 0
    wrong_values: int = 0
    hole_open_ns: list[int] = field(default_factory=list)
    pause_ns: list[int] = field(default_factory=list)
    instructions: int = 0
    elapsed_ns: int = 0


class Replay:
    """A recording laid out in a VM, with walking vCPUs; made by `Replay.set_up`."""

    def __init__(self, client: Client, guest: Guest, layout: Layout, relocation: Relocation) -> None:
        self._client = client
        self._guest = guest
        self._vm = guest.vm
        self._own_slots = (layout.free_slot, layout.free_slot + 1)
        self._base = [relocation.relocate(slot) for slot in layout.base.values()]
        self.scores = [
            Score(
                counts=update.needs_hold,
                regions=tuple(relocation.calls(update)),
                holes=update.holes,
                pause_us=0 if before is None else max(0, update.begin_us - before.end_us),
                begin_us=tuple(step.call.begin_us - update.begin_us for step in update.changes),
                line=update.line,
            )
            for before, update in zip((None, *layout.updates), layout.updates, strict=False)
        ]

    @classmethod
    async def set_up(cls, client: Client, vm: Vm, updates: Sequence[Update], *, vcpus: int) -> "Replay":
        """Lay out the map that stands after the first update, put the guest beside it and start the vCPUs.

        Args:
            client: the client of the VM's daemon.
            vm: an empty VM.
            updates: the recording's updates.
            vcpus: how many vCPUs walk.

        Raises:
            LayoutError: the recording cannot be replayed, or has too little memory for so many vCPUs.
        """
        layout = Layout.of(updates)
        pages = [layout.pages(vcpu, vcpus, PAGES_PER_RANGE) for vcpu in range(vcpus)]
        mapped: dict[Span, int] = {}
        sparse = sum(backing.size for backing in layout.backings) > SPARSE_ABOVE_BYTES or None
        for backing in layout.backings:
            name = f"recorded at {backing.start:#x}"
            mapped[backing] = await vm.map_host_memory(backing.size, name, sparse=sparse)
        guest = await install(client, vm, gpa=layout.free_gpa, slot=layout.free_slot, pages=pages)
        replay = cls(client, guest, layout, Relocation(mapped))
        await replay.wind_back()
        await vm.start(mmio="ones")
        await replay.settle()
        return replay

    @property
    def counted_per_round(self) -> int:
        """How many updates of a round count."""
        return sum(score.counts for score in self.scores)

    @property
    def vm(self) -> Vm:
        """The VM."""
        return self._vm

    @property
    def vcpus(self) -> int:
        """How many vCPUs walk."""
        return self._guest.vcpus

    async def run(
        self, mode: Mode, updates: int, progress: Callable[[int], None], pace: Pace = AS_FAST_AS_IT_GOES
    ) -> Tally:
        """Replay rounds in one mode until at least so many updates have counted.

        Args:
            mode: "plain" or "atomic".
            updates: how many updates have to count.
            progress: called with the number of updates that have counted so far.
            pace: how fast.

        Raises:
            ReplayError: a vCPU walks no more.
        """
        tally = Tally()
        before = await self._vm.get_stats()
        begin_ns = time.perf_counter_ns()
        while tally.updates < updates:
            await self._round(mode, tally, pace)
            progress(tally.updates)
            await self.wind_back()
        tally.elapsed_ns = time.perf_counter_ns() - begin_ns
        tally.instructions = (await self._vm.get_stats()).instructions - before.instructions
        return tally

    async def go_on_to(self, score: Score) -> None:
        """Bring the map from where every round starts from to just before an update, in steps that no vCPU notices."""
        for earlier in self.scores[: self.scores.index(score)]:
            await self._play("atomic", earlier, AS_FAST_AS_IT_GOES)

    async def wind_back(self) -> None:
        """Put the map back to where every round starts from, in one step for the vCPUs."""
        async with self._vm.transaction(hold=True) as change:
            for slot in (await self._vm.slot_table()).slots:
                if slot not in self._own_slots:
                    change.delete(slot)
            for region in self._base:
                change.create(
                    region.slot,
                    flags=region.flags,
                    guest_phys_addr=region.guest_phys_addr,
                    memory_size=region.memory_size,
                    userspace_addr=region.userspace_addr,
                )

    async def sample(self) -> Sample:
        """Read what the vCPUs have noticed so far, in one round trip."""
        async with self._client.batch() as batch:
            stats = batch.add(calls.get_vm_stats(self._vm.id))
            memory = batch.add(
                calls.read_host_memory(self._vm.id, self._guest.counters_addr, self._guest.counters_size)
            )
        counters = self._guest.counters(memory.result())
        return Sample(
            stats.result().stray_exits,
            sum(counter.wrong_values for counter in counters),
            tuple(counter.passes for counter in counters),
        )

    async def settle(self) -> Sample:
        """Sample when every vCPU has come to the end of a walk since the call.

        A vCPU that met a hole finds out at the word that it was at, so by then all is counted.

        Raises:
            ReplayError: a vCPU does not get there.
        """
        first = await self.sample()
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            sample = await self.sample()
            if all(now > then for now, then in zip(sample.passes, first.passes, strict=True)):
                return sample
            if time.monotonic() > deadline:
                raise ReplayError(await self._what_stopped())
            await asyncio.sleep(_SETTLE_POLL_S)

    async def _round(self, mode: Mode, tally: Tally, pace: Pace) -> None:
        before = await self.sample()
        for counts, run in itertools.groupby(self.scores, key=lambda score: score.counts):
            if not counts:
                await self._pass_over(run)
                continue
            for score in run:
                if pace.recorded:
                    await asyncio.sleep(min(score.pause_us, LONGEST_PAUSE_US) / 1e6)
                hole_open_ns, pause_ns = await self._play(mode, score, pace)
                tally.hole_open_ns += hole_open_ns
                tally.pause_ns += pause_ns
                tally.updates += 1
                tally.slot_calls += len(score.regions)
        after = await self.settle()
        tally.stray_exits += after.stray_exits - before.stray_exits
        tally.wrong_values += after.wrong_values - before.wrong_values

    async def _pass_over(self, run: Iterable[Score]) -> None:
        """Make updates that do not count: nothing of theirs overlaps, so no vCPU can notice them."""
        regions = [region for score in run for region in score.regions]
        async with self._client.batch() as batch:
            replies = [batch.add(calls.set_user_memory_region(self._vm.id, region)) for region in regions]
        await self._know(regions, [reply.result() for reply in replies][-1])

    async def _play(self, mode: Mode, score: Score, pace: Pace) -> tuple[list[int], list[int]]:
        """Replay one update; gives how long each of its holes stood open (plain), or its pause (atomic)."""
        if mode == "atomic":
            resume = await self._atomic(score.regions)
            await self._know(score.regions, resume.generation)
            return [], [] if resume.pause_ns is None else [resume.pause_ns]
        answered_ns = await self._plain(score, pace)
        return [answered_ns[hole.filled_by] - answered_ns[hole.opened_by] for hole in score.holes], []

    async def _plain(self, score: Score, pace: Pace) -> list[int]:
        """One call after another; gives when each was answered."""
        answered_ns, generation = [], 0
        first_ns = time.perf_counter_ns()
        for region, begin_us in zip(score.regions, score.begin_us, strict=True):
            if pace.recorded:
                ahead_s = begin_us * pace.stretch / 1e6 - (time.perf_counter_ns() - first_ns) / 1e9
                if ahead_s > 0:
                    await asyncio.sleep(ahead_s)
            generation = await self._client.send(calls.set_user_memory_region(self._vm.id, region))
            answered_ns.append(time.perf_counter_ns())
        await self._know(score.regions, generation)
        return answered_ns

    async def _atomic(self, regions: Sequence[Memslot]) -> ResumeResult:
        """All calls as one batch inside a hold; gives what the resume answered."""
        hold = secrets.token_urlsafe(16)
        async with self._client.batch() as batch:
            batch.add(calls.kick_all_running_vcpus(self._vm.id, hold))
            for region in regions:
                batch.add(calls.set_user_memory_region(self._vm.id, region, hold=hold))
            resume = batch.add(calls.resume_all_kicked_vcpus(self._vm.id, hold))
        return resume.result()

    async def _know(self, regions: Sequence[Memslot], generation: int) -> None:
        """Tell the VM's handle which table the calls have left, so that winding back need not ask for it."""
        slots = (await self._vm.slot_table()).slots
        for region in regions:
            slots = with_call(slots, region)
        self._vm.know_slot_table(generation, slots)

    async def _what_stopped(self) -> str:
        for info in await self._client.kvm.list_vms():
            if info.vm == self._vm.id and info.ended:
                ended = info.ended[0]
                why = ended.error.message if ended.error else ended.exit and ended.exit.exit_reason
                return f"the run loop of vCPU {ended.vcpu} has ended: {why}"
        return f"a vCPU has not walked over its pages within {SETTLE_TIMEOUT_S:g} s"
