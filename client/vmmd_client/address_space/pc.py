"""The address space of a PC with the i440FX chipset, as QEMU lays it out: an example of a tree that firmware switches.

Below 1 MiB a PC decides for each segment whether the CPU sees RAM or what is on the PCI bus, the BIOS for instance
(PAM), and whether it sees RAM or the VGA window at 0xa0000 (SMRAM). Everything is there at once, as regions over one
another; a register's write enables some and disables others. Devices' BARs are moved by the guest, and DIMMs come and
go above 4 GiB.

Differs from QEMU in one thing: RAM that PAM makes read-only is a READONLY slot here. QEMU gives it to KVM writable,
since it asks the RAM and not the alias.
"""

import enum

from ..errors import OutOfRange
from ..slots.draft import GPA_END
from .regions import MemoryRegion, alias, container, ram, reservation, rom

KIB = 1 << 10
GIB = 1 << 30

VGA_ADDR, VGA_SIZE = 0xA_0000, 0x2_0000
"""The window through which the CPU sees the VGA card's memory, and SMRAM below it."""

OPTION_ROM_ADDR, OPTION_ROM_SIZE = 0xC_0000, 0x2_0000
BIOS_LOW_END = 0x10_0000
BIOS_LOW_SIZE = 128 * KIB
FOUR_GIB = 4 * GIB

_BELOW_RAM, _ABOVE_RAM, _TOPMOST = -1, 1, 1000

PAM_SEGMENTS: dict[int, int] = {
    **dict.fromkeys(range(786432, 983040, 16 * KIB), 16 * KIB),
    0xF_0000: 64 * KIB,
}
"""The segments that PAM registers switch: address and size."""


class Pam(enum.IntEnum):
    """What a segment shows: the two bits of its PAM register."""

    PCI = 0
    READ_ONLY = 1
    WRITE_ONLY = 2
    RAM = 3


class PcMemory:
    """The regions of a PC. Changes go into `async with AddressSpace(vm, pc.root).update():`.

    Attributes:
        root: what the CPU sees.
        pci: what is on the PCI bus.
        ram: all of the RAM.
        vga_window: the VGA card's registers and planes at 0xa0000; disabled, the window is empty.
    """

    def __init__(
        self,
        *,
        ram_addr: int,
        ram_size: int,
        bios_addr: int,
        bios_size: int,
        option_rom_addr: int,
        has_vga: bool = True,
    ) -> None:
        """Build the regions as they are before the first reset: RAM alone, and the BIOS below 4 GiB.

        Args:
            ram_addr: userspace address of the RAM.
            ram_size: its size in bytes, at most 3 GiB.
            bios_addr: userspace address of the BIOS.
            bios_size: its size in bytes.
            option_rom_addr: userspace address of 128 KiB for option ROMs.
            has_vga: whether there is a VGA card.
        """
        if not BIOS_LOW_END < ram_size <= 3 * GIB:
            raise OutOfRange(
                f"a PC has more than 1 MiB and up to 3 GiB of RAM, not {ram_size:#x}", "ram_size", ram_size
            )
        self.root = container("system", GPA_END)
        self.pci = container("pci", GPA_END)
        self.ram = ram("pc.ram", ram_size, ram_addr)
        self.root.add(self.pci, 0, priority=_BELOW_RAM)
        self.root.add(alias("ram-below-4g", self.ram, 0, ram_size), 0)
        bios = self.pci.add(rom("pc.bios", bios_size, bios_addr), FOUR_GIB - bios_size)
        low = min(bios_size, BIOS_LOW_SIZE)
        self.pci.add(alias("isa-bios", bios, bios_size - low, low), BIOS_LOW_END - low, priority=_ABOVE_RAM)
        self.pci.add(rom("pc.rom", OPTION_ROM_SIZE, option_rom_addr), OPTION_ROM_ADDR, priority=_ABOVE_RAM)
        self.vga_window = reservation("vga-lowmem", VGA_SIZE)
        self.vga_window.enabled = has_vga
        self.pci.add(self.vga_window, VGA_ADDR, priority=_ABOVE_RAM)
        self._smram_closed = alias("smram-region", self.pci, VGA_ADDR, VGA_SIZE)
        self.root.add(self._smram_closed, VGA_ADDR, priority=_ABOVE_RAM)
        self._pam: dict[int, dict[Pam, MemoryRegion]] = {}
        for addr, size in PAM_SEGMENTS.items():
            self._pam[addr] = {
                Pam.PCI: alias("pam-pci", self.pci, addr, size),
                Pam.READ_ONLY: alias("pam-rom", self.ram, addr, size),
                Pam.RAM: alias("pam-ram", self.ram, addr, size),
            }
            self._pam[addr][Pam.READ_ONLY].readonly = True
            for region in self._pam[addr].values():
                self.root.add(region, addr, priority=_ABOVE_RAM)
            self.set_pam(addr, Pam.RAM)
        self.set_smram_open(is_open=True)

    def set_pam(self, addr: int, mode: Pam) -> None:
        """Write a segment's PAM register; no slot can have stores and no loads, so write-only shows PCI, as in QEMU.

        Raises:
            OutOfRange: no segment begins at that address.
        """
        if addr not in self._pam:
            raise OutOfRange(f"no PAM segment begins at {addr:#x}", "addr", addr)
        shown = Pam.PCI if mode is Pam.WRITE_ONLY else mode
        for what, region in self._pam[addr].items():
            region.enabled = what is shown

    def set_smram_open(self, *, is_open: bool) -> None:
        """Write the SMRAM register: whether the CPU sees RAM at 0xa0000, or the VGA window."""
        self._smram_closed.enabled = not is_open

    def reset(self) -> None:
        """Put the chipset's registers as a reset does: every segment shows PCI, and SMRAM is closed."""
        for addr in PAM_SEGMENTS:
            self.set_pam(addr, Pam.PCI)
        self.set_smram_open(is_open=False)

    def map_bar(self, bar: MemoryRegion, addr: int) -> None:
        """Put a device's BAR at an address, or elsewhere."""
        if bar.container is not None:
            self.pci.remove(bar)
        self.pci.add(bar, addr, priority=_ABOVE_RAM)

    def unmap_bar(self, bar: MemoryRegion) -> None:
        """Take a device's BAR off the bus."""
        self.pci.remove(bar)

    def overlay(self, name: str, addr: int, size: int) -> MemoryRegion:
        """Show writable RAM over whatever is there, as QEMU does for its VAPIC option ROM."""
        return self.root.add(alias(name, self.ram, addr, size), addr, priority=_TOPMOST)

    def plug_dimm(self, name: str, userspace_addr: int, size: int, addr: int = FOUR_GIB) -> MemoryRegion:
        """Plug memory in above 4 GiB, and give it; `unplug` takes it out."""
        return self.root.add(ram(name, size, userspace_addr), addr)

    def unplug(self, dimm: MemoryRegion) -> None:
        """Take memory out that was plugged in."""
        self.root.remove(dimm)
