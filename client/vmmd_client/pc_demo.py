"""`python -m vmmd_client.pc_demo`: a PC's firmware switches its memory map, and each switch is one transaction.

It starts a daemon of its own, lays a PC's address space out in a VM, and goes through what firmware does: segments from
the BIOS to RAM and back (PAM), SMRAM and the VGA window, a BAR that is moved, memory that is plugged in. After each it
prints what was asked of KVM, why vCPUs were held, and for how long.
"""

import asyncio
from collections.abc import Callable

from rich.console import Console

from .address_space.pc import PAM_SEGMENTS, Pam, PcMemory
from .address_space.regions import ram
from .address_space.space import AddressSpace
from .connection import connect
from .local_daemon import local_daemon
from .vm import Vm

_MIB = 1 << 20
_BIOS_SIZE = 1 << 18
_OPTION_ROM_SIZE = 1 << 17


async def show(vm: Vm, console: Console) -> None:
    """Go through the switches of a PC in a VM without slots.

    Args:
        vm: the VM.
        console: where each switch is printed.
    """
    memory = await vm.map_host_memory(64 * _MIB, "ram", sparse=True)
    roms = await vm.map_host_memory(_BIOS_SIZE + _OPTION_ROM_SIZE, "roms")
    others = await vm.map_host_memory(2 * _MIB, "vram and dimm")
    pc = PcMemory(
        ram_addr=memory, ram_size=64 * _MIB, bios_addr=roms, bios_size=_BIOS_SIZE, option_rom_addr=roms + _BIOS_SIZE
    )
    vram = ram("vga.vram", _MIB, others)
    space = AddressSpace(vm, pc.root)

    def shadow_the_bios() -> None:
        for segment in PAM_SEGMENTS:
            pc.set_pam(segment, Pam.RAM)

    switches: list[tuple[str, Callable[[], object]]] = [
        ("power on: RAM, and the BIOS below 4 GiB", lambda: None),
        ("reset: below 1 MiB the CPU sees ROMs and the VGA window", pc.reset),
        ("the BIOS copies itself to RAM: every PAM segment shows RAM", shadow_the_bios),
        ("and writes it no more: the last segment is read-only", lambda: pc.set_pam(0xF_0000, Pam.READ_ONLY)),
        ("SMRAM is opened: RAM at 0xa0000", lambda: pc.set_smram_open(is_open=True)),
        ("and closed: the VGA window again", lambda: pc.set_smram_open(is_open=False)),
        ("the VGA card's BAR is mapped", lambda: pc.map_bar(vram, 0xFD00_0000)),
        ("and moved", lambda: pc.map_bar(vram, 0xFE00_0000)),
        ("a DIMM is plugged in", lambda: pc.plug_dimm("dimm0", others + _MIB, _MIB)),
        ("logging is switched on everywhere", lambda: setattr(pc.root, "log_dirty", True)),
        ("the last segment is written to again: its log is carried", lambda: pc.set_pam(0xF_0000, Pam.RAM)),
    ]
    for what, switch in switches:
        async with space.update() as update:
            switch()
        pause_ns = update.result.pause_ns
        held = "nobody was held" if pause_ns is None else f"vCPUs were held for {pause_ns / 1000:.0f} µs"
        console.print(f"[bold]{what}[/]; {held}")
        console.print(str(update.plan), markup=False, highlight=False)
        console.print()


async def main() -> None:
    """Show it with a daemon of its own."""
    async with local_daemon() as url, connect(url) as vmmd:
        await show(await vmmd.kvm.create_vm("pc"), Console())


if __name__ == "__main__":
    asyncio.run(main())
