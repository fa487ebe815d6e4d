"""An address space as QEMU's: a tree of regions, flattened into memslots, whose changes are one transaction each.

`regions` is the tree, `flat_view` what a guest sees of it, `space` keeps a VM's slots at that, and `pc` is an example:
the switches of a PC's firmware.
"""

from .regions import Kind, MemoryRegion, alias, container, ram, reservation, rom, rom_device
from .space import AddressSpace, Update

__all__ = [
    "AddressSpace",
    "Kind",
    "MemoryRegion",
    "Update",
    "alias",
    "container",
    "ram",
    "reservation",
    "rom",
    "rom_device",
]
