"""The view of guest memory that lookups use: a slot table and the host mappings below it, at one number.

A view is a value and never changes; publishing another is one assignment in the VM. It owns what it points at:
whoever holds a view can read every record, bitmap and mapped page that it leads to, whatever has been published
since. Its number tells whether a cached translation is of this view; numbers are never used twice in a process.

Lookups go in two steps, guest-physical to userspace address by slot, then userspace to host address by mapping, and
what is kept of them is the run of addresses for which both answers hold. So a change of slots packs nothing of the
mappings, and mapping memory packs nothing of the slots.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from vmmd.memory.host import HostSpace, Piece
from vmmd.memory.memslots import CHUNK_RECORD, Memslot, Memslots, address_of

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Run:
    """What lies at an address: its slot, and how many bytes from there on go on in the same way."""

    memslot: Memslot
    offset: int
    """Bytes from the slot's start."""
    size: int
    piece: Piece | None
    """The host mapping; None where it is gone: a guest access is EFAULT then."""
    piece_offset: int = 0

    @property
    def host_address(self) -> int | None:
        """Where it lies in the daemon."""
        return None if self.piece is None else self.piece.host_address + self.piece_offset


class View:
    """A slot table over host mappings, packed for compiled lookups.

    Attributes:
        number: what tells it from every other view.
        directory_address, chunks: host address and count of the slot table's chunk records.
        pieces_address, pieces: host address and count of the host pieces' records.
    """

    __slots__ = (
        "_directory",
        "chunks",
        "directory_address",
        "host",
        "memslots",
        "number",
        "pieces",
        "pieces_address",
    )

    def __init__(self, memslots: Memslots, host: HostSpace) -> None:
        self.memslots = memslots
        self.host = host
        self.number = next(_numbers)
        self._directory = memslots.directory
        self.directory_address = address_of(self._directory)
        self.chunks = len(self._directory) // CHUNK_RECORD.size
        self.pieces_address = address_of(host.records)
        self.pieces = len(host.pieces)

    def find(self, guest_phys_addr: int) -> Run | None:
        """Return what lies at an address, or None where no memslot is."""
        slot = self.memslots.find(guest_phys_addr)
        if slot is None:
            return None
        offset = guest_phys_addr - slot.guest_phys_addr
        userspace_addr, left = slot.userspace_addr + offset, slot.memory_size - offset
        piece = self.host.find(userspace_addr)
        if piece is None:
            return Run(slot, offset, left, None)
        return Run(slot, offset, min(left, piece.end - userspace_addr), piece, userspace_addr - piece.userspace_addr)
