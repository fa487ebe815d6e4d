"""Atomic updates under vCPUs that check every value that they read: nothing is ever torn, and no dirty bit is lost.

Eight vCPUs run from pages, read pages and store to pages whose slots grow, shrink, split, merge, move to other host
memory, turn read-only and back, and are logged and not. Each update is one hold. Inside it, with every vCPU out, the
memory is compared with what it was when each log was last empty: a page is in the log of its slot if and only if it
was stored to since. Between updates a slot that nobody uses changes without a hold.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from itertools import pairwise

from vmmd.isa.assembler import assemble
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Region

VCPUS = 8
STORED, READ = 16, 8
"""Pages that guests store to, and behind them pages that they read, the first of which holds their code."""

PAGES = STORED + READ
GUEST = 0x100_0000
CODE = GUEST + STORED * PAGE_SIZE
SPARE, SPARE_GUEST = 300, 0x800_0000
"""A slot that nobody uses."""

SOURCE = f"""
    # Adds one to its own word of every page, and looks that nobody else did; then reads what never changes.
    li s3, {PAGE_SIZE}
pass:
    mv t0, s0
    li t1, {STORED}
store:
    ld t2, 0(t0)
    bne t2, s1, torn
    addi t2, t2, 1
    sd t2, 0(t0)
    add t0, t0, s3
    addi t1, t1, -1
    bnez t1, store
    addi s1, s1, 1
    li t0, {CODE + PAGE_SIZE}
    li t1, {READ - 1}
read:
    ld t2, 0(t0)
    bne t2, t0, torn
    add t0, t0, s3
    addi t1, t1, -1
    bnez t1, read
    j pass
torn:
    ebreak
    j torn
"""


@dataclass(frozen=True, slots=True)
class Segment:
    """A slot over pages [start, end), in one of the two banks of host memory."""

    slot: int
    start: int
    end: int
    bank: int
    flags: int = 0


@dataclass(slots=True)
class Outcome:
    """What a stress came to."""

    updates: int = 0
    bits: int = 0
    plain_changes: int = 0


class Layout:
    """The slots over the guest's pages, and random changes of them."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.segments = [Segment(1, 0, PAGES, 0)]

    def changed(self) -> list[Segment]:
        """Return other segments over the same pages."""
        segments = list(self.segments)
        for _ in range(self._draw.randint(1, 3)):
            change = self._draw.choice([self._split, self._merge, self._resize, self._remap, self._log, self._readonly])
            segments = change(segments)
        return segments

    def _fresh(self, segments: list[Segment]) -> int:
        taken = {segment.slot for segment in [*segments, *self.segments]}
        return self._draw.choice([slot for slot in range(1, 200) if slot not in taken])

    def _split(self, segments: list[Segment]) -> list[Segment]:
        at = self._draw.randrange(len(segments))
        whole = segments[at]
        if whole.end - whole.start < 2:
            return segments
        cut = self._draw.randrange(whole.start + 1, whole.end)
        behind = replace(whole, slot=self._fresh(segments), start=cut)
        return [*segments[:at], replace(whole, end=cut), behind, *segments[at + 1 :]]

    def _pair(self, segments: list[Segment]) -> int | None:
        """Return where two neighbours could be one slot."""
        pairs = [
            at
            for at, (one, other) in enumerate(pairwise(segments))
            if (one.bank, one.flags) == (other.bank, other.flags)
        ]
        return self._draw.choice(pairs) if pairs else None

    def _merge(self, segments: list[Segment]) -> list[Segment]:
        at = self._pair(segments)
        if at is None:
            return segments
        whole = replace(segments[at], end=segments[at + 1].end)
        return [*segments[:at], whole, *segments[at + 2 :]]

    def _resize(self, segments: list[Segment]) -> list[Segment]:
        at = self._pair(segments)
        if at is None or segments[at + 1].end - segments[at].start < 2:
            return segments
        one, other = segments[at : at + 2]
        border = self._draw.randrange(one.start + 1, other.end)
        return [*segments[:at], replace(one, end=border), replace(other, start=border), *segments[at + 2 :]]

    def _remap(self, segments: list[Segment]) -> list[Segment]:
        at = self._draw.randrange(len(segments))
        return [*segments[:at], replace(segments[at], bank=1 - segments[at].bank), *segments[at + 1 :]]

    def _log(self, segments: list[Segment]) -> list[Segment]:
        at = self._draw.randrange(len(segments))
        flags = segments[at].flags ^ KVM_MEM_LOG_DIRTY_PAGES
        return [*segments[:at], replace(segments[at], flags=flags), *segments[at + 1 :]]

    def _readonly(self, segments: list[Segment]) -> list[Segment]:
        # Only what guests do not store to; and it has to be slots of its own.
        whole = [at for at, segment in enumerate(segments) if segment.start >= STORED]
        if not whole:
            return segments
        at = self._draw.choice(whole)
        flags = segments[at].flags ^ KVM_MEM_READONLY
        return [*segments[:at], replace(segments[at], flags=flags), *segments[at + 1 :]]


class Stress:
    """One VM under updates."""

    def __init__(self, vm: Vm, seed: int) -> None:
        self._vm = vm
        self._draw = random.Random(seed)
        self._layout = Layout(self._draw)
        self._bank = [0, 0]
        self._spare = 0
        self._clean: dict[int, bytes] = {}
        """Of logged pages: what they held when their log was last empty."""
        self.outcome = Outcome()

    async def begin(self) -> None:
        """Put memory and code in place, and make the vCPUs."""
        vm = self._vm
        self._bank = [await vm.map_host_memory(PAGES * PAGE_SIZE) for _ in range(2)]
        self._spare = await vm.map_host_memory(2 * PAGE_SIZE)
        await vm.set_user_memory_region(*self._region(self._layout.segments[0]))
        await vm.write_guest_memory(CODE, assemble(SOURCE, CODE).code)
        for page in range(STORED + 1, PAGES):
            address = GUEST + page * PAGE_SIZE
            await vm.write_guest_memory(address, address.to_bytes(8, "little"))
        for index in range(VCPUS):
            vcpu = await vm.create_vcpu(index)
            await vcpu.set_regs({"pc": CODE, "s0": GUEST + index * 8})

    async def update(self) -> None:
        """Make one atomic update, and look at every log that it ends or takes."""
        vm, before, after = self._vm, self._layout.segments, self._layout.changed()
        hold = f"update {self.outcome.updates}"
        await vm.kick_all_running_vcpus(hold, wait_ms=20_000, lease_ms=60_000)
        pages = await self._pages(before, hold)
        kept = set(before) & set(after)
        for segment in before:
            if segment.flags & KVM_MEM_LOG_DIRTY_PAGES and (segment not in kept or self._draw.random() < 0.3):
                await self._take_log(segment, pages, hold)
        for segment in after:
            if segment not in kept:
                await self._fill(segment, pages, hold)
        gone = [Region(segment.slot, 0, 0, 0, 0) for segment in before if segment not in kept]
        new = [Region(*self._region(segment)) for segment in after if segment not in kept]
        if self._draw.random() < 0.5:
            await vm.set_user_memory_region_list([*gone, *new], hold=hold)
        else:
            for region in (*gone, *new):
                await vm.set_user_memory_region(
                    region.slot,
                    region.flags,
                    region.guest_phys_addr,
                    region.memory_size,
                    region.userspace_addr,
                    hold=hold,
                )
        await vm.resume_all_kicked_vcpus(hold)
        self._layout.segments = after
        self.outcome.updates += 1

    async def plain_change(self) -> None:
        """Change a slot that nobody uses, without a hold."""
        size = self._draw.choice([0, PAGE_SIZE])
        set_already = self._vm.memslots.get(SPARE) is not None
        if size or set_already:
            gpa = SPARE_GUEST + self._draw.randrange(16) * PAGE_SIZE if size else 0
            await self._vm.set_user_memory_region(SPARE, 0, gpa, size, self._spare if size else 0)
            self.outcome.plain_changes += 1

    async def end(self) -> None:
        """Look that every vCPU still counts, and that its words are what it has counted."""
        vm = self._vm
        assert vm.stats().exits == {}, f"a vCPU left the guest: {vm.stats().exits}"
        await vm.kick_all_running_vcpus("end", wait_ms=20_000, lease_ms=60_000)
        pages = await self._pages(self._layout.segments, "end")
        for index, vcpu in vm.vcpus.items():
            count = (await vcpu.get_regs())["x9"]
            words = [int.from_bytes(pages[page][index * 8 : index * 8 + 8], "little") for page in range(STORED)]
            assert all(word in {count, count + 1} for word in words), (count, words)
            assert words == sorted(words, reverse=True), "words of a pass are written in order"
        await vm.resume_all_kicked_vcpus("end")

    def _region(self, segment: Segment) -> tuple[int, int, int, int, int]:
        return (
            segment.slot,
            segment.flags,
            GUEST + segment.start * PAGE_SIZE,
            (segment.end - segment.start) * PAGE_SIZE,
            self._bank[segment.bank] + segment.start * PAGE_SIZE,
        )

    async def _pages(self, segments: list[Segment], hold: str) -> list[bytes]:
        """Return what every guest page holds."""
        pages: list[bytes] = []
        for segment in segments:
            _, _, gpa, size, _ = self._region(segment)
            data = await self._vm.read_guest_memory(gpa, size, hold=hold)
            pages += [data[at : at + PAGE_SIZE] for at in range(0, size, PAGE_SIZE)]
        return pages

    async def _take_log(self, segment: Segment, pages: list[bytes], hold: str) -> None:
        """Fetch a log, and compare it with what has changed since it was empty."""
        bitmap = int.from_bytes(await self._vm.get_dirty_log(segment.slot, hold=hold), "little")
        for index, page in enumerate(range(segment.start, segment.end)):
            stored, marked = pages[page] != self._clean[page], bool(bitmap >> index & 1)
            assert stored == marked, f"page {page} was {'' if stored else 'not '}stored to, and its bit is {marked}"
            self.outcome.bits += marked
            self._clean[page] = pages[page]

    async def _fill(self, segment: Segment, pages: list[bytes], hold: str) -> None:
        """Put the pages' contents where the new slot will have them, and begin its log."""
        *_, userspace_addr = self._region(segment)
        data = b"".join(pages[segment.start : segment.end])
        await self._vm.write_host_memory(userspace_addr, data, hold=hold)
        if segment.flags & KVM_MEM_LOG_DIRTY_PAGES:
            self._clean |= {page: pages[page] for page in range(segment.start, segment.end)}


async def never_torn(system: System, updates: int, seed: int) -> Outcome:
    """Make so many atomic updates in a VM of their own.

    Raises:
        AssertionError: a vCPU left the guest, read a wrong value or lost a store; or a dirty bit was lost or invented.
    """
    vm = system.create_vm()
    stress = Stress(vm, seed)
    await stress.begin()
    runs = [asyncio.create_task(vcpu.run()) for vcpu in vm.vcpus.values()]
    while not all(vcpu.stats().instructions for vcpu in vm.vcpus.values()):
        await asyncio.sleep(0)
    for _ in range(updates):
        await stress.update()
        await stress.plain_change()
        before = vm.stats().instructions
        while vm.stats().instructions == before and not any(run.done() for run in runs):
            # With a moment's sleep, and not none: the workers want the GIL to go on.
            await asyncio.sleep(0.0001)
        left = [run for run in runs if run.done()]
        assert not left, f"a vCPU left the guest: {left[0].result()}"
    await stress.end()
    await system.destroy_vm(vm.id)
    await asyncio.gather(*runs, return_exceptions=True)
    return stress.outcome
