"""The address space of the synchronous twin; trees and their views are those of `vmmd_client.address_space`."""

from ...address_space import Kind, MemoryRegion, alias, container, ram, reservation, rom, rom_device
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
