"""A tree of regions, flattened: for every guest-physical address, what lies there.

`flatten` walks the tree from what hides to what is hidden, and each region takes what is still free. The result is a
value: ranges in ascending order that do not overlap, each as long as it can be, as QEMU's FlatView. `slots_of` gives
the memslots that it asks of KVM, `lay_out` puts them into a draft and touches only what is not there yet. Pure, without
I/O.
"""

import bisect
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from ..errors import Misaligned, OutOfRange, PlanError, RangeOverlap
from ..slots.draft import GPA_END, MAX_SLOT_PAGES, PAGE_SIZE, Draft
from ..slots.memslots import MemFlag, Memslot, SlotMap, first_shared
from .regions import BACKED, Kind, MemoryRegion


@dataclass(frozen=True, slots=True)
class FlatRange:
    """A guest-physical range that one region has.

    Attributes:
        guest_phys_addr: its first byte.
        size: its size in bytes.
        region: the region; no alias and no container.
        offset: where in the region it begins, in bytes.
        readonly: whether stores do not reach it, by the region itself or by what it is seen through.
        log_dirty: whether its stores are logged.
        reads_memory: whether it has a memslot: RAM, ROM, and ROM devices in that mode.
    """

    guest_phys_addr: int
    size: int
    region: MemoryRegion
    offset: int
    readonly: bool
    log_dirty: bool
    reads_memory: bool

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.guest_phys_addr + self.size

    @property
    def flags(self) -> int:
        """The flags of its memslot."""
        return (MemFlag.LOG_DIRTY_PAGES if self.log_dirty else 0) | (MemFlag.READONLY if self.readonly else 0)

    def goes_on_in(self, above: "FlatRange") -> bool:
        """Tell whether the range above it is the same region going on, in the same manner."""
        return (
            self.end == above.guest_phys_addr
            and self.region is above.region
            and self.offset + self.size == above.offset
            and (self.readonly, self.log_dirty, self.reads_memory)
            == (above.readonly, above.log_dirty, above.reads_memory)
        )


@dataclass(frozen=True, slots=True)
class FlatView:
    """What lies where.

    Attributes:
        ranges: in ascending order, without overlaps; where there is none, there is nothing.
    """

    ranges: tuple[FlatRange, ...]

    def at(self, guest_phys_addr: int) -> FlatRange | None:
        """Give the range that an address lies in, or None."""
        index = bisect.bisect_right(self.ranges, guest_phys_addr, key=lambda flat: flat.guest_phys_addr) - 1
        return self.ranges[index] if index >= 0 and guest_phys_addr < self.ranges[index].end else None


def flatten(root: MemoryRegion) -> FlatView:
    """Flatten the tree below a region that begins at guest-physical address 0.

    Raises:
        PlanError: a region lies in itself, or shows itself, or an alias shows nothing.
        OutOfRange: memory lies where no slot can be, or a region has a size or an address that is none.
        Misaligned: memory is not of whole pages.
    """
    painter = _Painter()
    painter.paint(root, -root.addr, (0, 1 << 64), readonly=False, log_dirty=False)
    merged: list[FlatRange] = []
    for flat in painter.ranges:
        if merged and merged[-1].goes_on_in(flat):
            last = merged[-1]
            merged[-1] = FlatRange(
                last.guest_phys_addr,
                last.size + flat.size,
                last.region,
                last.offset,
                last.readonly,
                last.log_dirty,
                last.reads_memory,
            )
        else:
            merged.append(flat)
    return FlatView(tuple(merged))


class _Painter:
    """Takes regions from the uppermost down; each gets what is still free."""

    def __init__(self) -> None:
        self.ranges: list[FlatRange] = []
        self._path: list[MemoryRegion] = []

    def paint(self, region: MemoryRegion, base: int, clip: tuple[int, int], *, readonly: bool, log_dirty: bool) -> None:
        """Paint a region and what is below it.

        Args:
            region: the region.
            base: where its container's first byte lies; it may be negative, since an alias shows a part.
            clip: start and end of what may be painted.
            readonly: whether what it is seen through is read-only.
            log_dirty: whether what it is seen through is logged.
        """
        region.check()
        start = base + region.addr
        clip = (max(clip[0], start), min(clip[1], start + region.size))
        if not region.enabled or clip[0] >= clip[1]:
            return
        if any(region is above for above in self._path):
            names = " → ".join(above.name for above in (*self._path, region))
            raise PlanError(f"region {region.name!r} lies in itself: {names}")
        readonly, log_dirty = readonly or region.readonly, log_dirty or region.log_dirty
        self._path.append(region)
        if region.target is not None:
            shown_from = start - region.target_offset - region.target.addr
            self.paint(region.target, shown_from, clip, readonly=readonly, log_dirty=log_dirty)
        for child in region.children:
            if child.enabled and child.kind in BACKED and child.addr >= region.size:
                raise OutOfRange(
                    f"region {child.name!r} at {child.addr:#x} lies behind the end of {region.name!r}, which has "
                    f"{region.size:#x} bytes; put it inside, or disable it",
                    "addr",
                    child.addr,
                )
            self.paint(child, start, clip, readonly=readonly, log_dirty=log_dirty)
        self._path.pop()
        if region.kind not in {Kind.CONTAINER, Kind.ALIAS}:
            self._fill(region, start, clip, readonly=readonly, log_dirty=log_dirty)

    def _fill(
        self, region: MemoryRegion, start: int, clip: tuple[int, int], *, readonly: bool, log_dirty: bool
    ) -> None:
        """Give a region what is still free within the clip."""
        reads_memory = region.kind in BACKED and (region.kind is not Kind.ROM_DEVICE or region.reads_memory)
        if reads_memory and clip[1] > GPA_END:
            raise OutOfRange(
                f"region {region.name!r} reaches to {clip[1]:#x}, and guest-physical space ends at {GPA_END:#x}; "
                "put it lower",
                "addr",
                region.addr,
            )
        first = bisect.bisect_right(self.ranges, clip[0], key=lambda flat: flat.end)
        last = bisect.bisect_left(self.ranges, clip[1], key=lambda flat: flat.guest_phys_addr)
        there = self.ranges[first:last]
        edges = [clip[0], *(edge for flat in there for edge in (flat.guest_phys_addr, flat.end)), clip[1]]
        free = [
            FlatRange(low, high - low, region, low - start, readonly, log_dirty, reads_memory)
            for low, high in zip(edges[::2], edges[1::2], strict=True)
            if low < high
        ]
        self.ranges[first:last] = sorted([*there, *free], key=lambda flat: flat.guest_phys_addr)


def slots_of(view: FlatView) -> Iterator[Memslot]:
    """Give the memslots that a view asks for, in ascending order; their ids are all 0.

    Only whole pages can be in a slot: where another region hides a part of a page, its rest is left out, as QEMU does.
    A range that is larger
    than the largest slot becomes several.

    Raises:
        Misaligned: a page of the guest would begin in the middle of a page of host memory.
    """
    for flat in view.ranges:
        if not flat.reads_memory or flat.region.userspace_addr is None:
            continue
        start = -(-flat.guest_phys_addr // PAGE_SIZE) * PAGE_SIZE
        end = flat.end // PAGE_SIZE * PAGE_SIZE
        userspace_addr = flat.region.userspace_addr + flat.offset + start - flat.guest_phys_addr
        if userspace_addr % PAGE_SIZE:
            begins = flat.guest_phys_addr - flat.offset
            raise Misaligned(
                f"region {flat.region.name!r} begins at guest-physical {begins:#x} with userspace_addr "
                f"{flat.region.userspace_addr:#x}; both must be multiples of {PAGE_SIZE:#x}: put it, or what shows "
                "it, elsewhere",
                "userspace_addr",
                userspace_addr,
            )
        while start < end:
            size = min(end - start, MAX_SLOT_PAGES * PAGE_SIZE)
            yield Memslot(0, flat.flags, start, size, userspace_addr)
            start, userspace_addr = start + size, userspace_addr + size


def lay_out(view: FlatView, draft: Draft, mine: SlotMap) -> frozenset[Memslot]:
    """Put the memslots of a view into a draft in place of others, and give them.

    A slot that is wanted as it is stays; one whose place, or whose memory, is wanted keeps its id, since KVM can switch
    its logging, or move it, by one call. The others go.

    Args:
        view: what is wanted.
        draft: a draft of the map that stands.
        mine: the slots of that map that belong to the view that stood before; all others are left alone.

    Raises:
        SlotTaken: there are no ids left.
        RangeOverlap: a region would lie over a slot that is not of `mine`.
        OutOfRange, Misaligned: a region lies where no slot can be.
    """
    wanted = list(slots_of(view))
    shared = first_shared(wanted, [slot for number, slot in draft.slots.items() if number not in mine])
    if shared is not None:
        flat = view.at(shared[0].guest_phys_addr)
        name = flat.region.name if flat else ""
        raise RangeOverlap(
            f"region {name!r} [{shared[0].guest_phys_addr:#x}, {shared[0].end:#x}) would lie over {shared[1]}, which "
            "is not of this address space; delete that one, or put the region elsewhere",
            (shared[1].slot,),
        )
    kept: dict[int, Memslot] = {}
    left = dict(mine)
    for likeness in (_place, _memory):
        found: defaultdict[Hashable, list[int]] = defaultdict(list)
        for slot in left.values():
            found[likeness(slot)].append(slot.slot)
        for index, slot in enumerate(wanted):
            if index not in kept and found[likeness(slot)]:
                number = found[likeness(slot)].pop()
                kept[index] = left.pop(number)
    for number in mine:
        draft.delete(number)
    laid: set[Memslot] = set()
    for index, old in kept.items():
        slot = wanted[index]
        laid.add(draft.create(_under(old.slot, slot)))
    laid.update(draft.create(_under(draft.free_id(), slot)) for index, slot in enumerate(wanted) if index not in kept)
    return frozenset(laid)


def _place(slot: Memslot) -> Hashable:
    return (slot.guest_phys_addr, slot.memory_size, slot.userspace_addr)


def _memory(slot: Memslot) -> Hashable:
    return (slot.memory_size, slot.userspace_addr, slot.flags)


def _under(number: int, slot: Memslot) -> Memslot:
    return Memslot(number, slot.flags, slot.guest_phys_addr, slot.memory_size, slot.userspace_addr)
