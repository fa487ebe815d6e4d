"""A context over a small map, for tests that drive an engine without a VM."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from vmmd.isa.context import Context
from vmmd.isa.engine import Engine
from vmmd.memory.access import write_guest
from vmmd.memory.dirty import DirtyBitmap, DirtyLog
from vmmd.memory.host import HostSpace, Ledger
from vmmd.memory.memslots import Memslots
from vmmd.memory.region import Region
from vmmd.memory.view import View

HOST_BYTES = 64 << 10


@dataclass
class BareMachine:
    """A vCPU's context and the view that it has taken."""

    context: Context
    view: View
    base: int
    """The userspace address of its host memory."""


def bare_machine(engine: Engine, code: bytes, at: int = 0, regions: tuple[Region, ...] = ()) -> BareMachine:
    """Make a machine with code at an address; the regions' userspace addresses count from the start of host memory."""
    host, base = HostSpace().with_mapping(HOST_BYTES, Ledger(1 << 40))
    memslots = Memslots()
    for region in regions or (Region(0, 0, 0, HOST_BYTES, 0),):
        placed = Region(
            region.slot, region.flags, region.guest_phys_addr, region.memory_size, base + region.userspace_addr
        )
        memslots, _ = memslots.with_change(placed, lambda npages: _log(npages, engine))
    view = View(memslots, host)
    context = Context(ctypes.c_uint64(view.number), 0, lambda: 0)
    context.take_view(view)
    write_guest(view, at, code)
    context.record.pc = at
    return BareMachine(context, view, base)


def _log(npages: int, engine: Engine) -> DirtyLog:
    bitmap = DirtyBitmap(npages, engine)
    return DirtyLog(bitmap, bitmap)
