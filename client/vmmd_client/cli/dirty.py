"""`vmmctl dirty`: which pages were written since they were last asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ..errors import NoSuchSlot, PlanError
from .numbers import RANGE, SLOT, SlotName, vm_argument
from .screen import Screen, cell, size, table
from .session import asks

if TYPE_CHECKING:
    from ..connection import Client
    from ..slots.memslots import Memslot
    from ..vm import Vm

PAGE_SIZE = 4096

_PAGES_A_CALL = 8 << 20
"""A bitmap of a mebibyte: a part of a large slot's log that fits in any reply."""

_WORD_PAGES = 64


@click.command()
@vm_argument
@click.option("--slot", "slots", type=SLOT, multiple=True, metavar="SLOT", help="A slot; may be given several times.")
@click.option("--range", "ranges", type=RANGE, multiple=True, metavar="START:SIZE", help="A guest-physical range.")
@asks
async def dirty(
    vmmd: Client, screen: Screen, vm: str, slots: tuple[SlotName, ...], ranges: tuple[tuple[int, int], ...]
) -> None:
    """Fetch dirty pages, of slots, of guest-physical ranges, or of every slot that keeps a log.

    As KVM_GET_DIRTY_LOG does, it clears what it fetches (unless the VM has KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2). A log is
    fetched by 64 pages, so a range is widened to whole 64s of its slot's pages; "pages" says how many were looked at.
    Where a fetch fails, what was fetched before it is still told. A log of more than 8,388,608 pages comes in parts.

    JSON: {"vm", "logs": [{"slot", "guest_phys_addr", "pages", "dirty", "ranges":
    [{"guest_phys_addr", "memory_size"}]}]}
    """
    handle = vmmd.vm(vm)
    known = (await handle.slot_table()).slots
    parts: list[tuple[Memslot, int, int]] = [(slot, 0, _pages(slot)) for slot in (name.find(known) for name in slots)]
    for start, length in ranges:
        parts += _parts(known.values(), start, length)
    if not slots and not ranges:
        parts = [(slot, 0, _pages(slot)) for slot in known.values() if slot.is_logged]
    logs: list[dict[str, Any]] = []
    try:
        with screen.progress("fetching dirty logs", sum(count for _, _, count in parts)) as advance:
            for slot, first, count in parts:
                for at in range(first, first + count, _PAGES_A_CALL):
                    taken = min(_PAGES_A_CALL, first + count - at)
                    logs.append(_log(slot, at, taken, set_bits(await _fetch(handle, slot, at, taken))))
                    advance(taken)
    except BaseException:
        # What was fetched is cleared in the daemon, and stands nowhere else.
        if logs:
            _give(screen, vm, logs)
        raise
    _give(screen, vm, logs)


def _give(screen: Screen, vm: str, logs: list[dict[str, Any]]) -> None:
    rows = [
        (log["slot"], each["guest_phys_addr"], size(int(each["memory_size"], 16)))
        for log in logs
        for each in log["ranges"]
    ]
    total = sum(log["dirty"] for log in logs)
    looked_at = sum(log["pages"] for log in logs)
    shown: list[Any] = [cell(f"{vm}: {total:,} of {looked_at:,} logged pages are dirty")]
    screen.give({"vm": vm, "logs": logs}, *shown, *([table((">slot", ">from", ">size"), rows)] if rows else []))


def set_bits(bitmap: bytes) -> Iterator[int]:
    """Give the numbers of the bits that are set, in ascending order: bit j of byte k is 8k+j."""
    for index, byte in enumerate(bitmap):
        if byte:
            yield from (index * 8 + bit for bit in range(8) if byte >> bit & 1)


def _pages(slot: Memslot) -> int:
    return slot.memory_size // PAGE_SIZE


def _parts(slots: Any, start: int, length: int) -> list[tuple[Memslot, int, int]]:
    """Give the logged slots that a range touches, each with its first page and how many, in whole 64s."""
    parts = []
    for slot in slots:
        low, high = max(start, slot.guest_phys_addr), min(start + length, slot.end)
        if low < high and slot.is_logged:
            first = (low - slot.guest_phys_addr) // PAGE_SIZE // _WORD_PAGES * _WORD_PAGES
            last = -(-(high - slot.guest_phys_addr) // PAGE_SIZE // _WORD_PAGES) * _WORD_PAGES
            parts.append((slot, first, min(last, _pages(slot)) - first))
    if not parts:
        raise PlanError(f"no slot with a dirty log lies in [{start:#x}, {start + length:#x}); vmmctl slots shows them")
    return parts


async def _fetch(vm: Vm, slot: Memslot, first: int, count: int) -> bytes:
    whole = first == 0 and count == _pages(slot)
    try:
        if whole:
            return await vm.get_dirty_log(slot.slot)
        up_to_the_end = first + count == _pages(slot)
        return await vm.get_dirty_log(slot.slot, first_page=first, num_pages=None if up_to_the_end else count)
    except NoSuchSlot as error:
        if slot.is_logged:
            raise
        raise PlanError(f"{slot} keeps no dirty log: it is not flagged KVM_MEM_LOG_DIRTY_PAGES ({error})") from None


def page_ranges(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Give pages as ranges of guest-physical space.

    Args:
        pages: the gpa of each page, in ascending order.

    Returns:
        The first byte's gpa and the size in bytes of each run of pages.
    """
    ranges = []
    for _, run in itertools.groupby(enumerate(pages), lambda pair: pair[1] - pair[0] * PAGE_SIZE):
        together = [gpa for _, gpa in run]
        ranges.append((together[0], len(together) * PAGE_SIZE))
    return ranges


def range_fields(ranges: Iterable[tuple[int, int]]) -> list[dict[str, str]]:
    """Give ranges in JSON's types."""
    return [{"guest_phys_addr": hex(gpa), "memory_size": hex(size_bytes)} for gpa, size_bytes in ranges]


def _log(slot: Memslot, first: int, count: int, found: Iterable[int]) -> dict[str, Any]:
    """Give what was found in a part of a slot's log, in JSON's types."""
    gpa = slot.guest_phys_addr + first * PAGE_SIZE
    ranges = page_ranges(gpa + page * PAGE_SIZE for page in found)
    return {
        "slot": slot.slot,
        "guest_phys_addr": hex(gpa),
        "pages": count,
        "dirty": sum(size_bytes for _, size_bytes in ranges) // PAGE_SIZE,
        "ranges": range_fields(ranges),
    }
