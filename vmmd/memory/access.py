"""Loads and stores through a view, for Python: single accesses as a guest makes them, and copies as an API does.

Every host address used here comes out of a `Run` of the view that the caller holds, and no access goes beyond it.
Aligned accesses of 1, 2, 4 and 8 bytes are single machine accesses, so that vCPUs in compiled code never see half of
one.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from dataclasses import dataclass

from vmmd.memory import host
from vmmd.memory.errors import Refused
from vmmd.memory.limits import U64
from vmmd.memory.view import Run, View

_UNITS = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes for a guest physical address, and how many zeroes follow them there."""

    guest_phys_addr: int
    data: bytes
    zero_bytes: int = 0


def load(run: Run, size: int) -> bytes:
    """Read `size` bytes at a run's start. A page that nobody has touched reads zeroes, and costs nothing."""
    return _read(_bounded(run, size), size)


def touch(run: Run, size: int) -> None:
    """Charge the pages of an access at a run's start, which compiled code may make from now on.

    Raises:
        Refused: ENOMEM where the limit is reached.
    """
    if run.piece is not None:
        host.touch([(run.piece, run.piece_offset, size)])


def store(run: Run, data: bytes) -> None:
    """Write bytes at a run's start; whoever stores marks them in the slot's log, and only after that."""
    _write(_bounded(run, len(data)), data)


def zero(run: Run, size: int) -> None:
    """Have `size` bytes from a run's start read zeroes; what is marked, and when, is as for `store`."""
    if run.piece is not None:
        run.piece.zero(run.piece_offset, size)


def read_guest(view: View, guest_phys_addr: int, length: int) -> bytes:
    """Copy guest memory out, as kvm_read_guest does.

    Raises:
        Refused: EFAULT, before anything is copied, where a page has no memslot or no host mapping.
    """
    return b"".join(load(run, size) for run, size in _runs(view, guest_phys_addr, length, writing=False))


def write_guest(view: View, guest_phys_addr: int, data: bytes) -> list[tuple[int, int]]:
    """Copy into guest memory, as kvm_write_guest does, and mark what is logged; see `write_guest_list`."""
    return write_guest_list(view, [Write(guest_phys_addr, data)])


def write_guest_list(view: View, writes: Sequence[Write]) -> list[tuple[int, int]]:
    """Make several writes to guest memory in their order, all or none of them, and mark what is logged.

    Returns:
        The userspace ranges that were written, as (address, bytes).

    Raises:
        Refused: before anything is written, EFAULT where a page of any write has no memslot, no host mapping, or a
            read-only slot, and ENOMEM where the limit is reached.
    """
    steps: list[tuple[Run, int, bytes | None]] = []
    for write in writes:
        at, zeroes_at = 0, write.guest_phys_addr + len(write.data)
        for run, size in _runs(view, write.guest_phys_addr, len(write.data), writing=True):
            steps.append((run, size, write.data[at : at + size]))
            at += size
        steps += ((run, size, None) for run, size in _runs(view, zeroes_at, write.zero_bytes, writing=True))
    host.touch((run.piece, run.piece_offset, size) for run, size, data in steps if run.piece and data is not None)
    written = []
    for run, size, data in steps:
        if data is None:
            zero(run, size)
        else:
            store(run, data)
        log = run.memslot.dirty
        if log is not None and log.bitmap is not None:
            log.bitmap.mark(run.offset, size)
        written.append((run.memslot.userspace_addr + run.offset, size))
    return written


def read_host(view: View, userspace_addr: int, length: int) -> bytes:
    """Copy out of the host mappings.

    Raises:
        Refused: EFAULT where a page is not mapped.
    """
    return b"".join(_read(address, size) for address, size in view.host.runs(userspace_addr, length, writing=False))


def write_host(view: View, userspace_addr: int, data: bytes) -> None:
    """Copy into the host mappings; no log takes note of it.

    Raises:
        Refused: EFAULT, before anything is written, where a page is not mapped.
    """
    at = 0
    for address, size in view.host.runs(userspace_addr, len(data), writing=True):
        _write(address, data[at : at + size])
        at += size


def _runs(view: View, start: int, length: int, *, writing: bool) -> list[tuple[Run, int]]:
    found: list[tuple[Run, int]] = []
    at, end = start, start + length
    while at < end:
        run = view.find(at) if at <= U64 else None
        if run is None:
            raise Refused(errno.EFAULT, f"no memslot holds guest_phys_addr {at:#x}")
        if run.piece is None:
            raise Refused(errno.EFAULT, f"slot {run.memslot.slot} has no host mapping at guest_phys_addr {at:#x}")
        if writing and run.memslot.readonly:
            raise Refused(errno.EFAULT, f"slot {run.memslot.slot} at guest_phys_addr {at:#x} is KVM_MEM_READONLY")
        size = min(run.size, end - at)
        found.append((run, size))
        at += size
    return found


def _bounded(run: Run, size: int) -> int:
    address = run.host_address
    if address is None or size > run.size:
        raise ValueError(f"{size} bytes are more than the {run.size} that the translation of this access covers")
    return address


def _read(address: int, size: int) -> bytes:
    unit = _UNITS.get(size)
    if unit is not None and address % size == 0:
        return unit.from_address(address).value.to_bytes(size, "little")
    return ctypes.string_at(address, size)


def _write(address: int, data: bytes) -> None:
    unit = _UNITS.get(len(data))
    if unit is not None and address % len(data) == 0:
        unit.from_address(address).value = int.from_bytes(data, "little")
    else:
        ctypes.memmove(address, data, len(data))
