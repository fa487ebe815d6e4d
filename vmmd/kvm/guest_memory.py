"""A VM's memory: what its ioctls on host mappings, memslots and dirty logs do, once the gate has let them in.

A change is checked whole and made as a new value; then it is published by one assignment, with no await between check
and publication. Without a hold the call then waits until no vCPU is in an older view. Inside a hold no vCPU is in
any; what was there at the kick, and what was fetched since, stands in the hold's undo record.
"""

from __future__ import annotations

import asyncio
import errno
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from vmmd.isa.engine import Engine
from vmmd.kvm.errors import KvmError
from vmmd.kvm.hold import Undo
from vmmd.kvm.observer import Note, ignore, slots_changed
from vmmd.kvm.rendezvous import Rendezvous
from vmmd.kvm.uapi import (
    KVM_CAP_DIRTY_LOG_RING,
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
)
from vmmd.memory import access
from vmmd.memory.dirty import DirtyBitmap, DirtyLog
from vmmd.memory.errors import Refused
from vmmd.memory.host import HostSpace, Ledger
from vmmd.memory.limits import PAGE_SIZE, USER_MEM_SLOTS
from vmmd.memory.memslots import Memslot, Memslots
from vmmd.memory.region import Region
from vmmd.memory.ring import ENTRY, MAX_RING_BYTES, RESERVED_ENTRIES, DirtyRing
from vmmd.memory.view import View


@dataclass(frozen=True, slots=True)
class Prepared:
    """Changes that were checked whole.

    `before`, `memslots`: the table that they were made on, and the one after them. `gone`: the logs that go. `regions`:
    the changes. `logging`: how new logs were made.
    """

    before: Memslots
    memslots: Memslots
    gone: tuple[tuple[Memslot, DirtyBitmap], ...]
    regions: Sequence[Region]
    logging: tuple[int, int, bool]


@dataclass(frozen=True, slots=True)
class Published:
    """What a list of changes did.

    `pause_ns`: for how long it held the vCPUs; None where it took no hold of its own. `dirty`: the slots whose logs
    went, and what was in the logs.
    """

    generation: int
    pause_ns: int | None
    dirty: list[tuple[Memslot, bytes]]


class GuestMemory:
    """The memory of one VM. `undo` is the record of the hold that a call is inside, None without one.

    Args:
        meet: where vCPUs take their views.
        engine: whose atomic steps the logs use.
        ledger: what host mappings are charged to.
        note: told of changes of slots outside any hold; those inside are the hold's to tell.
    """

    def __init__(self, meet: Rendezvous, engine: Engine, ledger: Ledger, note: Note = ignore) -> None:
        self._note = note
        self._meet = meet
        self._engine = engine
        self._ledger = ledger
        self._log_mode = 0
        self._ring_bytes = 0
        self._rings_have_bitmaps = False

    @property
    def view(self) -> View:
        """The newest view."""
        return self._meet.view

    def map_host(self, size: int, *, sparse: bool) -> int:
        """See `Vm.map_host_memory`. A new mapping changes nothing that a vCPU could have looked up."""
        host, userspace_addr = self.view.host.with_mapping(size, self._ledger, sparse=sparse)
        self._publish(self.view.memslots, host)
        return userspace_addr

    async def unmap_host(self, userspace_addr: int, size: int, undo: Undo | None) -> None:
        """See `Vm.unmap_host_memory`."""
        host, gone = self.view.host.without(userspace_addr, size)
        self._publish(self.view.memslots, host)
        if undo is not None:
            undo.unmapped.extend(gone)
            return
        await self._shoot_down()
        for piece in gone:
            piece.discard()

    def write_guest(self, writes: Sequence[access.Write], undo: Undo | None) -> None:
        """See `Vm.write_guest_memory_list`."""
        written = access.write_guest_list(self.view, writes)
        if undo is not None:
            undo.written.extend(written if self.view.host is undo.host else self._there_before(written, undo))

    def _there_before(self, written: Iterable[tuple[int, int]], undo: Undo) -> Iterator[tuple[int, int]]:
        """Give the pages of written ranges whose host memory was there at the kick: the rest goes with its mapping."""
        for start, size in written:
            for page in range(start - start % PAGE_SIZE, start + size, PAGE_SIZE):
                now, before = self.view.host.find(page), undo.host.find(page)
                if now is not None and before is not None and now.mapping is before.mapping:
                    yield page, PAGE_SIZE

    async def set_region(self, region: Region, undo: Undo | None) -> int:
        """See `Vm.set_user_memory_region`."""
        before = self.view.memslots
        memslots, _ = before.with_change(region, self._new_log)
        if memslots is not before:
            self._publish(memslots, self.view.host)
            if undo is None:
                await self._shoot_down()
                self._note(slots_changed(memslots.generation, [region], None))
            else:
                undo.changed.append(region)
        return memslots.generation

    def set_region_at_once(self, region: Region) -> int:
        """Do the same outside any hold, and while no vCPU is inside KVM_RUN: none has to leave an older view."""
        before = self.view.memslots
        memslots, _ = before.with_change(region, self._new_log)
        if memslots is not before:
            self._publish(memslots, self.view.host)
            self._meet.flush()
            self._note(slots_changed(memslots.generation, [region], None))
        return memslots.generation

    def is_current(self, prepared: Prepared) -> bool:
        """Tell whether changes would come out the same if they were prepared now."""
        return prepared.before is self.view.memslots and prepared.logging == self._logging

    def prepare(self, regions: Sequence[Region], max_log_bytes: int | None) -> Prepared:
        """Make the table after several changes, in their order; nothing is published.

        Any thread may do it: what it reads are values, and `is_current` tells whether they still are the VM's.

        Raises:
            KvmError: EINVAL or EEXIST by the rules of each change, with its index; E2BIG where the logs that go have
                more than `max_log_bytes`. Nothing has changed.
        """
        logging = self._logging
        new_log = partial(self._log_as, logging)
        before = memslots = self.view.memslots
        for index, region in enumerate(regions):
            try:
                memslots, _ = memslots.with_change(region, new_log)
            except Refused as refused:
                raise KvmError(refused.errno, f"regions[{index}]: {refused.message}", index=index) from None
        gone: list[tuple[Memslot, DirtyBitmap]] = []
        for slot_id in dict.fromkeys(region.slot for region in regions):
            old, new = before.get(slot_id), memslots.get(slot_id)
            log = _bitmap_of(old)
            if old is not None and log is not None and log is not _bitmap_of(new):
                gone.append((old, log))
        log_bytes = sum(log.size_bytes for _, log in gone)
        if max_log_bytes is not None and log_bytes > max_log_bytes:
            raise KvmError(
                errno.E2BIG, f"the logs that go have {log_bytes} bytes, and {max_log_bytes} can be given back"
            )
        return Prepared(
            before, memslots.renumbered(before.generation + (memslots is not before)), tuple(gone), regions, logging
        )

    def publish(self, prepared: Prepared, undo: Undo | None) -> list[tuple[Memslot, bytes]]:
        """Make a prepared table the VM's, in one publication; the caller sees to those that are in the old one.

        Returns:
            The slots whose logs went, and what was in the logs.
        """
        if prepared.memslots.generation != prepared.before.generation:
            self._publish(prepared.memslots, self.view.host)
            if undo is not None:
                undo.changed.extend(prepared.regions)
        return [(slot, log.snapshot()) for slot, log in prepared.gone]

    async def get_dirty_log(self, slot: int, first_page: int | None, num_pages: int | None, undo: Undo | None) -> bytes:
        """See `Vm.get_dirty_log`."""
        log = self._log(slot)
        first_byte, length = log_part(log, first_page, num_pages)
        if self._log_mode & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE:
            return log.snapshot(first_byte, length)
        taken = log.take(first_byte, length)
        await self._settle_log(undo, log, first_byte, taken)
        return taken

    async def clear_dirty_log(
        self, slot: int, first_page: int, num_pages: int, bitmap: bytes, undo: Undo | None
    ) -> None:
        """See `Vm.clear_dirty_log`."""
        self._check_log_call(slot)
        if first_page < 0 or first_page % 64:
            raise KvmError(errno.EINVAL, f"first_page {first_page} is no multiple of 64")
        log = self._log(slot)
        left = log.npages - first_page
        if not 0 <= num_pages <= left or (num_pages < left and num_pages % 64):
            rule = "must be a multiple of 64, or reach the slot's end"
            raise KvmError(errno.EINVAL, f"num_pages {num_pages} from {first_page} of {log.npages} {rule}")
        needed = (num_pages + 7) // 8
        if len(bitmap) < needed:
            raise KvmError(errno.EFAULT, f"bitmap has {len(bitmap)} bytes, and {num_pages} pages need {needed}")
        mask = int.from_bytes(bitmap[:needed], "little") & (1 << num_pages) - 1
        gone = log.clear(first_page, mask.to_bytes(needed, "little"))
        await self._settle_log(undo, log, first_page // 8, gone)

    def enable_cap(self, cap: str, args: Sequence[int], vcpus: int) -> None:
        """See `Vm.enable_cap`; `vcpus` is how many vCPUs there are."""
        argument = args[0] if args else 0
        if cap == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
            self._set_log_mode(argument)
        elif cap in {KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL}:
            self._enable_rings(argument, vcpus)
        elif cap == KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP:
            if not self._ring_bytes or len(self.view.memslots):
                raise KvmError(errno.EINVAL, f"{cap} needs dirty rings, and no memslot yet")
            self._rings_have_bitmaps = True
        else:
            raise KvmError(errno.EINVAL, f"{cap} is no capability that a VM can enable")

    def new_ring(self) -> DirtyRing | None:
        """Make the ring of a new vCPU, where the VM has rings."""
        return DirtyRing(self._ring_bytes) if self._ring_bytes else None

    async def reset_rings(self, rings: Sequence[DirtyRing]) -> int:
        """See `Vm.reset_dirty_rings`."""
        if not self._ring_bytes:
            raise KvmError(
                errno.EINVAL, "the VM has no dirty rings; KVM_CAP_DIRTY_LOG_RING comes before the first vCPU"
            )
        count = 0
        for ring in rings:
            for slot_id, page in ring.reset():
                count += 1
                slot = self.view.memslots.get(slot_id)
                if slot is not None and slot.dirty is not None:
                    slot.dirty.marks.unmark(page)
        if count:
            # Stores that found their mark before it went are done when this has returned, as behind a TLB flush.
            await self._meet.all_outside_once()
        return count

    def _enable_rings(self, argument: int, vcpus: int) -> None:
        # The kernel takes the size as a u32.
        size = argument & 0xFFFF_FFFF
        lowest = max(PAGE_SIZE, RESERVED_ENTRIES * ENTRY.size)
        if not size or size & size - 1:
            raise KvmError(errno.EINVAL, f"a ring of {size} bytes: the size must be a power of two")
        if size < lowest:
            raise KvmError(errno.EINVAL, f"a ring of {size} bytes is smaller than the {lowest} that are reserved")
        if size > MAX_RING_BYTES:
            raise KvmError(errno.E2BIG, f"a ring of {size} bytes is larger than the largest, {MAX_RING_BYTES}")
        if self._ring_bytes:
            raise KvmError(errno.EINVAL, f"dirty rings of {self._ring_bytes} bytes are enabled already")
        if vcpus:
            raise KvmError(errno.EINVAL, f"dirty rings come before the first vCPU, and there are {vcpus}")
        # There is no vCPU yet, so nothing is in a ring, and the first store to any page has to get there: what an
        # earlier log has marked is of no account, and KVM_GET_DIRTY_LOG gives it to nobody any more.
        self._publish(self.view.memslots.with_rings_alone(), self.view.host)
        self._ring_bytes = size

    def _set_log_mode(self, mode: int) -> None:
        enable, initially = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_DIRTY_LOG_INITIALLY_SET
        if mode not in {0, enable, enable | initially}:
            raise KvmError(errno.EINVAL, f"args[0] {mode:#x} is none of 0, {enable} and {enable | initially}")
        self._log_mode = mode

    def begin_undo(self) -> Undo:
        """Begin the record of a hold."""
        return Undo(self.view.memslots, self.view.host)

    def keep(self, undo: Undo) -> None:
        """What was done inside a hold stands: unmapped pages go now."""
        for piece in undo.unmapped:
            piece.discard()

    def roll_back(self, undo: Undo) -> None:
        """Publish what was there at the kick, at a new generation, and put fetched bits back."""
        changed = self.view.memslots is not undo.memslots
        memslots = undo.memslots.renumbered(self.view.memslots.generation + 1) if changed else undo.memslots
        if changed or self.view.host is not undo.host:
            self._publish(memslots, undo.host)
        for log, first_byte, bits in undo.taken:
            log.put_back(bits, first_byte)
        self._mark_written(undo.written)

    def drop(self) -> None:
        """Let go of everything; no vCPU runs any more."""
        self._publish(Memslots(), HostSpace())

    def _publish(self, memslots: Memslots, host: HostSpace) -> None:
        self._meet.publish(View(memslots, host))

    async def _shoot_down(self) -> None:
        """Wait until no vCPU is in an older view. A cancellation is too late: what is published is not taken back."""
        with suppress(asyncio.CancelledError):
            await self._meet.shoot_down()

    def _mark_written(self, written: Sequence[tuple[int, int]]) -> None:
        """Mark ranges of userspace addresses in every log over them: their bytes stayed when their slots went."""
        if not written:
            return
        ranges = _merged(written)
        ends = [end for _, end in ranges]
        for slot in self.view.memslots:
            bitmap = slot.dirty.bitmap if slot.dirty is not None else None
            if bitmap is None:
                continue
            slot_end = slot.userspace_addr + slot.memory_size
            for start, end in ranges[bisect_right(ends, slot.userspace_addr) :]:
                if start >= slot_end:
                    break
                low, high = max(start, slot.userspace_addr), min(end, slot_end)
                bitmap.mark(low - slot.userspace_addr, high - low)

    @property
    def _logging(self) -> tuple[int, int, bool]:
        return self._log_mode, self._ring_bytes, self._rings_have_bitmaps

    def _new_log(self, npages: int) -> DirtyLog:
        return self._log_as(self._logging, npages)

    def _log_as(self, logging: tuple[int, int, bool], npages: int) -> DirtyLog:
        mode, ring_bytes, rings_have_bitmaps = logging
        if ring_bytes and not rings_have_bitmaps:
            return DirtyLog(self._bitmap(npages), None)
        bitmap = self._bitmap(npages, initially_set=bool(mode & KVM_DIRTY_LOG_INITIALLY_SET))
        return DirtyLog(self._bitmap(npages) if ring_bytes else bitmap, bitmap)

    def _bitmap(self, npages: int, *, initially_set: bool = False) -> DirtyBitmap:
        return DirtyBitmap(npages, self._engine, self._ledger, initially_set=initially_set)

    @property
    def dirty_log(self) -> str:
        """How logged slots are logged: "bitmap", "ring" or "ring_with_bitmap"."""
        if not self._ring_bytes:
            return "bitmap"
        return "ring_with_bitmap" if self._rings_have_bitmaps else "ring"

    def _check_log_call(self, slot: int) -> None:
        if self.dirty_log == "ring":
            raise KvmError(errno.ENXIO, "the VM logs to dirty rings alone: harvest them")
        if slot >> 16 or slot >= USER_MEM_SLOTS:
            raise KvmError(errno.EINVAL, f"slot {slot:#x} is out of range: ids are below {USER_MEM_SLOTS}")

    def _log(self, slot: int) -> DirtyBitmap:
        self._check_log_call(slot)
        found = self.view.memslots.get(slot)
        if found is None:
            raise KvmError(errno.ENOENT, f"slot {slot} is not set")
        if found.dirty is None or found.dirty.bitmap is None:
            raise KvmError(errno.ENOENT, f"slot {slot} has no dirty log: KVM_MEM_LOG_DIRTY_PAGES is off")
        return found.dirty.bitmap

    async def _settle_log(self, undo: Undo | None, log: DirtyBitmap, first_byte: int, gone: bytes) -> None:
        """After bits went: remember them for a rollback, or wait until every store that found one of them set is done.

        A vCPU stores first and looks at its bit after that. One that found the bit set just before it went has its
        store on the way; once it has left guest mode, the store is done, and whoever is told of the page reads it.
        """
        if undo is not None:
            if any(gone):
                undo.taken.append((log, first_byte, gone))
            return
        try:
            await self._meet.all_outside_once()
        except BaseException:
            log.put_back(gone, first_byte)
            raise


def _bitmap_of(slot: Memslot | None) -> DirtyBitmap | None:
    return slot.dirty.bitmap if slot is not None and slot.dirty is not None else None


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Turn (start, size) in any order into disjoint (start, end) in ascending order."""
    merged: list[tuple[int, int]] = []
    for start, size in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], start + size))
        else:
            merged.append((start, start + size))
    return merged


def log_part(log: DirtyBitmap, first_page: int | None, num_pages: int | None) -> tuple[int, int]:
    """Return the first byte and the length of a part of a log, by default the whole.

    Raises:
        KvmError: EINVAL where it is no part of the log, or not of whole words.
    """
    first = first_page or 0
    if first % 64 or not 0 <= first < max(log.npages, 1):
        raise KvmError(errno.EINVAL, f"first_page {first} is no multiple of 64 below the slot's {log.npages} pages")
    first_byte = first // 8
    if num_pages is None:
        return first_byte, log.size_bytes - first_byte
    if num_pages <= 0 or num_pages % 64 or num_pages // 8 > log.size_bytes - first_byte:
        rule = f"is no positive multiple of 64 within the {log.size_bytes * 8 - first} from first_page on"
        raise KvmError(errno.EINVAL, f"num_pages {num_pages} {rule}")
    return first_byte, num_pages // 8
