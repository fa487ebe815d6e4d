"""What a VM's host memory holds: its pages that are not all zeroes, found without touching those that never were.

A page that nobody has written or read costs no look: the kernel tells which pages a process has. Reading an untouched
page would have the system give it a translation, and a sparse mapping can be larger than all memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator

from vmmd.memory.host import HostSpace
from vmmd.memory.limits import PAGE_SIZE

_ZEROES = bytes(PAGE_SIZE)
_PAGEMAP = "/proc/self/pagemap"
_ENTRY_BYTES = 8
_THERE = 62
"""From this bit on an entry of the page map tells that the page is in memory (63) or in swap (62)."""

_ENTRIES_AT_ONCE = 1 << 16


def written_pages(host: HostSpace) -> Iterator[tuple[int, bytes]]:
    """Give (userspace address, content) of every page that is not all zeroes, in the order of addresses.

    Nobody writes or unmaps meanwhile.
    """
    for piece in host.pieces:
        first, npages = piece.offset // PAGE_SIZE, piece.size // PAGE_SIZE
        touched = piece.mapping.touched_pages(first, first + npages)
        offsets = _resident(piece.host_address, npages) if touched is None else (page - first for page in touched)
        for offset in offsets:
            page = ctypes.string_at(piece.host_address + offset * PAGE_SIZE, PAGE_SIZE)
            if page != _ZEROES:
                yield piece.userspace_addr + offset * PAGE_SIZE, page


def _resident(address: int, npages: int) -> Iterable[int]:
    """Give the pages of a range that the system has given memory to; all of them where it does not tell."""
    if mmap.PAGESIZE != PAGE_SIZE:
        return range(npages)
    try:
        pagemap = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return range(npages)
    found: list[int] = []
    try:
        for start in range(0, npages, _ENTRIES_AT_ONCE):
            count = min(npages - start, _ENTRIES_AT_ONCE)
            data = os.pread(pagemap, count * _ENTRY_BYTES, (address // PAGE_SIZE + start) * _ENTRY_BYTES)
            entries = memoryview(data).cast("Q")
            found += [start + index for index, entry in enumerate(entries) if entry >> _THERE]
    finally:
        os.close(pagemap)
    return found
