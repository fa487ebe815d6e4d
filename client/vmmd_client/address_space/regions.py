"""Regions of an address space as a tree: what a machine has, where it lies, what hides what.

The terms are QEMU's. RAM and ROM have host memory behind them; a reservation has none, and hides what lies below it,
as a device's registers do; a container has children and is transparent where they leave gaps; an alias shows a part of
another region. Among the children of one container the higher priority hides the lower; among equals the one that was
added last. A region that is not enabled is not there, with all that is below it.

Regions are changed by setting their attributes. Nothing is told to anybody: `flat_view` flattens the tree as it is, and
`address_space` makes a change of it one transaction. Pure, without I/O.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import Misaligned, OutOfRange, PlanError
from ..slots.draft import PAGE_SIZE, USERSPACE_END, is_integer


class Kind(enum.Enum):
    """What a region is made of."""

    RAM = "RAM"
    ROM = "ROM"
    ROM_DEVICE = "ROM device"
    RESERVATION = "reservation"
    CONTAINER = "container"
    ALIAS = "alias"


BACKED = frozenset({Kind.RAM, Kind.ROM, Kind.ROM_DEVICE})
"""The kinds that have host memory."""


@dataclass(eq=False, slots=True)
class MemoryRegion:
    """One region; made by `ram`, `rom`, `rom_device`, `reservation`, `container` and `alias`.

    Attributes:
        name: for people.
        kind: what it is made of.
        size: its size in bytes.
        userspace_addr: the userspace address of its first byte; of RAM, ROM and ROM devices.
        target: the region that an alias shows.
        target_offset: where in the target an alias begins, in bytes.
        addr: where it lies in its container.
        priority: the higher hides the lower.
        enabled: whether it is there.
        readonly: whether stores do not reach the memory of it, of its children, or of what it shows.
        log_dirty: whether the memory of it, of its children, or of what it shows has its stores logged.
        reads_memory: of a ROM device: whether loads read its memory (a read-only slot), or exit as stores do (no slot).
        children: in the order in which they hide one another: first the uppermost.
    """

    name: str
    kind: Kind
    size: int
    userspace_addr: int | None = None
    target: "MemoryRegion | None" = None
    target_offset: int = 0
    addr: int = 0
    priority: int = 0
    enabled: bool = True
    readonly: bool = False
    log_dirty: bool = False
    reads_memory: bool = True
    container: "MemoryRegion | None" = field(default=None, repr=False)
    children: tuple["MemoryRegion", ...] = ()

    def __post_init__(self) -> None:
        """Check it: a region that cannot be had is refused where it is made."""
        self.check()

    def check(self) -> None:
        """Check what this region asks for by itself; `flat_view` does so again, since attributes are set freely.

        Raises:
            OutOfRange: a size or an address is none.
            Misaligned: RAM, ROM or a ROM device is not of whole pages.
            PlanError: it is an alias of nothing.
        """
        for name in ("size", "addr", "target_offset", "priority"):
            value = getattr(self, name)
            if not is_integer(value):
                raise OutOfRange(f"region {self.name!r}: {name} is {value!r}; give an integer", name, value)
        if not 0 < self.size <= 1 << 64:
            raise OutOfRange(
                f"region {self.name!r} cannot have {self.size:#x} bytes; give 1 or more", "size", self.size
            )
        if self.kind is Kind.ALIAS and not isinstance(self.target, MemoryRegion):
            raise PlanError(f"alias {self.name!r} shows {self.target!r}; give the region that it is to show")
        if self.target is not None and self.target_offset < 0:
            raise OutOfRange(
                f"alias {self.name!r} begins at {self.target_offset:#x} of {self.target.name!r}; give an offset from 0",
                "target_offset",
                self.target_offset,
            )
        if self.kind in BACKED:
            self._check_memory()

    def _check_memory(self) -> None:
        addr = self.userspace_addr
        if not is_integer(addr) or addr is None or not 0 <= addr <= USERSPACE_END - self.size:
            raise OutOfRange(
                f"region {self.name!r}: userspace_addr is {addr!r}; give what map_host_memory gave, with room for "
                f"{self.size:#x} bytes below {USERSPACE_END:#x}",
                "userspace_addr",
                addr,
            )
        for name, value in (("size", self.size), ("userspace_addr", addr)):
            if value % PAGE_SIZE:
                raise Misaligned(
                    f"region {self.name!r}: {name} {value:#x} is not a multiple of {PAGE_SIZE:#x}, as memory is",
                    name,
                    value,
                )

    def add(self, child: "MemoryRegion", addr: int, *, priority: int = 0) -> "MemoryRegion":
        """Put a region into this one, and give it.

        Args:
            child: a region that lies nowhere yet.
            addr: where its first byte lies in this one; what reaches beyond this one's end is cut off.
            priority: the higher hides the lower, the last one added those of equal priority.

        Raises:
            PlanError: it lies somewhere already; an alias shows it a second time.
            OutOfRange: the address is none.
        """
        if child.container is not None:
            raise PlanError(f"region {child.name!r} lies in {child.container.name!r} already; show it by an alias")
        if not is_integer(addr) or not is_integer(priority):
            raise OutOfRange(
                f"region {child.name!r} cannot lie at {addr!r} with priority {priority!r}; give integers", "addr", addr
            )
        if not 0 <= addr < 1 << 64:
            raise OutOfRange(f"region {child.name!r} cannot lie at {addr:#x}", "addr", addr)
        child.addr, child.priority, child.container = addr, priority, self
        above = sum(other.priority > priority for other in self.children)
        self.children = (*self.children[:above], child, *self.children[above:])
        return child

    def remove(self, child: "MemoryRegion") -> None:
        """Take a region out of this one.

        Raises:
            PlanError: it does not lie in this one.
        """
        if child.container is not self:
            raise PlanError(f"region {child.name!r} does not lie in {self.name!r}")
        child.container = None
        self.children = tuple(other for other in self.children if other is not child)


def ram(name: str, size: int, userspace_addr: int) -> MemoryRegion:
    """Make a region of memory."""
    return MemoryRegion(name, Kind.RAM, size, userspace_addr)


def rom(name: str, size: int, userspace_addr: int) -> MemoryRegion:
    """Make a region of memory that stores do not reach: they are MMIO exits."""
    return MemoryRegion(name, Kind.ROM, size, userspace_addr, readonly=True)


def rom_device(name: str, size: int, userspace_addr: int) -> MemoryRegion:
    """Make a region that can be switched between ROM and registers (`reads_memory`), as flash is."""
    return MemoryRegion(name, Kind.ROM_DEVICE, size, userspace_addr, readonly=True)


def reservation(name: str, size: int) -> MemoryRegion:
    """Make a region without memory: every access is an MMIO exit, whatever lies below it."""
    return MemoryRegion(name, Kind.RESERVATION, size)


def container(name: str, size: int) -> MemoryRegion:
    """Make a region for others to lie in."""
    return MemoryRegion(name, Kind.CONTAINER, size)


def alias(name: str, target: MemoryRegion, target_offset: int, size: int) -> MemoryRegion:
    """Make a region that shows a part of another one; what the other one's end leaves over is transparent."""
    return MemoryRegion(name, Kind.ALIAS, size, target=target, target_offset=target_offset)


def regions_below(root: MemoryRegion) -> Iterator[MemoryRegion]:
    """Give every region that a tree reaches, aliases' targets included, each once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        region = waiting.pop()
        if id(region) in seen:
            continue
        seen.add(id(region))
        yield region
        waiting += region.children
        if region.target is not None:
            waiting.append(region.target)


class Snapshot:
    """A tree as it was: what every region's attributes were, to be put back."""

    def __init__(self, root: MemoryRegion) -> None:
        """Take the tree as it is."""
        self._were = [(region, _values(region)) for region in regions_below(root)]

    def restore(self, root: MemoryRegion) -> None:
        """Put every region back as it was; those that came since lie nowhere then."""
        known = {id(region) for region, _ in self._were}
        for region in list(regions_below(root)):
            if id(region) not in known and id(region.container) in known:
                region.container = None
        for region, values in self._were:
            for name, value in values.items():
                setattr(region, name, value)


def _values(region: MemoryRegion) -> dict[str, Any]:
    return {name: getattr(region, name) for name in MemoryRegion.__slots__}
