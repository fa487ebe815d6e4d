"""QEMU's own updates of a PC's memory map, as recorded, and the maps that our tree of the same PC flattens to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import vmmd_client
from vmmd_client.address_space import Kind, MemoryRegion, ram, rom
from vmmd_client.address_space.flat_view import FlatView, flatten, lay_out
from vmmd_client.address_space.pc import PAM_SEGMENTS, Pam, PcMemory
from vmmd_client.audit.recording import audit_file
from vmmd_client.audit.updates import change as make_change
from vmmd_client.errors import OutOfRange
from vmmd_client.slots.draft import Draft
from vmmd_client.slots.memslots import MemFlag, Memslot, SlotMap
from vmmd_client.slots.plan import Create, Delete, Plan

Change = Callable[[PcMemory], None]
Place = tuple[int, int, int, int]

DATA = Path(__file__).parent / "data"
SHIPPED = Path(vmmd_client.__file__).parent / "data" / "qemu-7.2-pc-boot.strace.gz"
OPTION_ROMS = range(0xC_0000, 0xE_0000, 0x4000)


@dataclass(frozen=True)
class Recorded:
    """An update of a recording: what was asked, the map behind it, and whether it needs a hold."""

    regions: list[Memslot]
    after: SlotMap
    needs_hold: bool


def recorded_updates(path: Path) -> list[Recorded]:
    (found,) = audit_file(str(path)).findings.vms
    slots: dict[int, Memslot] = {}
    recorded = []
    for update in found.updates:
        regions = []
        for step in update.changes:
            make_change(slots, step.call)
            assert step.call.region is not None
            regions.append(step.call.region)
        recorded.append(Recorded(regions, dict(slots), update.needs_hold))
    return recorded


def pam(mode: Pam, *segments: int) -> Change:
    def change(pc: PcMemory) -> None:
        for segment in segments:
            pc.set_pam(segment, mode)

    return change


def nothing(pc: PcMemory) -> None:
    pass


def bar(make: Callable[[], MemoryRegion], addr: int, *, log_dirty: bool = False) -> tuple[Change, Change]:
    """A BAR that is mapped by the first change, and unmapped by the second."""
    made: list[MemoryRegion] = []

    def map_it(pc: PcMemory) -> None:
        region = make()
        region.log_dirty = log_dirty
        made.append(region)
        pc.map_bar(region, addr)

    def unmap_it(pc: PcMemory) -> None:
        pc.unmap_bar(made.pop())

    return map_it, unmap_it


def boot_of_seabios(vram: int, *option_roms: int) -> list[Change]:
    """What SeaBIOS does in a PC with a VGA card and a network card, up to where both recordings agree."""
    show_vram, _ = bar(lambda: ram("vga.vram", 0x100_0000, vram), 0xFD00_0000, log_dirty=True)
    show_vga_rom, hide_vga_rom = bar(lambda: rom("vga.rom", 0x1_0000, option_roms[0]), 0xFEBE_0000)
    show_nic_rom, hide_nic_rom = bar(lambda: rom("e1000.rom", 0x4_0000, option_roms[1]), 0xFEB8_0000)
    return [
        pam(Pam.RAM, *range(0xC_0000, 0xD_0000, 0x4000), 0xF_0000),
        pam(Pam.RAM, *PAM_SEGMENTS),
        show_vram,
        show_vga_rom,
        hide_vga_rom,
        show_nic_rom,
        hide_nic_rom,
    ]


def lock_roms_and_patch_vapic(pc: PcMemory) -> None:
    pam(Pam.READ_ONLY, *range(0xC_0000, 0xD_0000, 0x4000), 0xF_0000)(pc)
    pc.overlay("vapic-rom", 0xC_B000, 0x3000)


def log_everything(pc: PcMemory) -> None:
    pc.root.log_dirty = True


def firmware_that_shows_ram_segment_by_segment() -> list[Change]:
    two_by_two = [pam(Pam.RAM, *OPTION_ROMS[index : index + 2]) for index in range(0, len(OPTION_ROMS), 2)]
    return [pam(Pam.RAM, *range(0xE_0000, 0xF_0000, 0x4000), 0xF_0000), *two_by_two]


def switches_of_the_first_segments(count: int) -> list[Change]:
    first_two = OPTION_ROMS[:2]
    return [pam(Pam.PCI if number % 2 == 0 else Pam.RAM, *first_two) for number in range(count)]


def a_pc(first: SlotMap, bios: Memslot, option_roms: int, *, has_vga: bool) -> PcMemory:
    return PcMemory(
        ram_addr=first[0].userspace_addr,
        ram_size=first[0].memory_size,
        bios_addr=bios.userspace_addr,
        bios_size=bios.memory_size,
        option_rom_addr=option_roms,
        has_vga=has_vga,
    )


def places(slots: Sequence[Memslot]) -> list[Place]:
    return sorted((slot.guest_phys_addr, slot.memory_size, slot.userspace_addr, slot.flags) for slot in slots)


def as_qemu_asks_kvm(view: FlatView, slots: Sequence[Memslot]) -> list[Memslot]:
    """The slots with QEMU's flags: it looks at the RAM for READONLY, and not at the alias that shows it."""
    told = []
    for slot in slots:
        flat = view.at(slot.guest_phys_addr)
        assert flat is not None
        flags = slot.flags & ~MemFlag.READONLY if flat.region.kind is Kind.RAM else slot.flags
        told.append(Memslot(slot.slot, int(flags), slot.guest_phys_addr, slot.memory_size, slot.userspace_addr))
    return told


def removed_and_added(calls: Sequence[Memslot]) -> tuple[list[tuple[int, int]], list[Place]]:
    """What a run of slot calls removes (id and place are QEMU's own, so only where), and what it adds."""
    removed = sorted((call.guest_phys_addr, call.userspace_addr) for call in calls if not call.memory_size)
    return removed, places([call for call in calls if call.memory_size])


def calls_of(plan: Plan, told: Sequence[Memslot]) -> list[Memslot]:
    """A plan's slot calls, with the flags that QEMU gives."""
    flags = {(slot.guest_phys_addr, slot.memory_size): slot.flags for slot in told}
    calls = []
    for change in plan.changes:
        region = change.region
        if region.memory_size:
            asked = flags[region.guest_phys_addr, region.memory_size]
            region = Memslot(region.slot, asked, region.guest_phys_addr, region.memory_size, region.userspace_addr)
        calls.append(region)
    return calls


def replay(pc: PcMemory, recorded: Sequence[Recorded], changes: Sequence[Change], *, single_commits_from: int) -> None:
    """Make each change in the tree, and compare what it flattens to with the map that QEMU left.

    QEMU made one commit of each update from `single_commits_from` on; there the slot calls are compared too.
    """
    assert len(recorded) == len(changes)
    slots: SlotMap = {}
    for number, (update, change) in enumerate(zip(recorded, changes, strict=True)):
        change(pc)
        view, draft = flatten(pc.root), Draft(slots)
        lay_out(view, draft, slots)
        plan = draft.plan()
        slots = plan.after
        told = as_qemu_asks_kvm(view, list(slots.values()))
        assert places(told) == places(list(update.after.values())), f"update {number}"
        if number >= single_commits_from:
            ours, theirs = calls_of(plan, told), update.regions
            assert removed_and_added(ours) == removed_and_added(theirs), f"update {number}"
            needs_hold = any(isinstance(step, Delete) for step in plan.steps) and any(
                isinstance(step, Create) for step in plan.steps
            )
            assert (plan.needs_hold and not plan.fetches) == update.needs_hold == needs_hold, f"update {number}"


def test_a_boot_of_seabios_in_a_pc_gives_the_maps_and_the_calls_that_were_recorded():
    recorded = recorded_updates(SHIPPED)
    first, reset = recorded[0].after, recorded[1].after
    pc = a_pc(first, first[1], reset[2].userspace_addr, has_vga=True)
    changes = [
        nothing,
        PcMemory.reset,
        *boot_of_seabios(*(recorded[number].regions[0].userspace_addr for number in (4, 5, 7))),
        lock_roms_and_patch_vapic,
        pam(Pam.READ_ONLY, *range(0xD_0000, 0xE_8000, 0x4000)),
    ]
    replay(pc, recorded, changes, single_commits_from=2)


def test_a_migration_switches_logging_on_in_the_slots_that_do_not_log_yet():
    recorded = recorded_updates(DATA / "qemu-7.2-pc-migrate.strace.gz")
    first, reset = recorded[0].after, recorded[1].after
    pc = a_pc(first, first[1], reset[2].userspace_addr, has_vga=True)
    changes = [
        nothing,
        # The recording's second and third update are the reset, cut in two by its tracer's pause.
        PcMemory.reset,
        *boot_of_seabios(*(recorded[number].regions[0].userspace_addr for number in (5, 6, 8))),
        log_everything,
    ]
    replay(pc, [recorded[0], *recorded[2:]], changes, single_commits_from=2)


def test_firmware_that_dies_under_qemu_7_switches_its_segments_as_the_tree_does():
    recorded = recorded_updates(DATA / "qemu-7.2-pam-dies.strace.gz")
    pc = a_pc(recorded[0].after, recorded[1].after[1], recorded[2].after[2].userspace_addr, has_vga=False)
    changes = [
        nothing,
        PcMemory.reset,
        *firmware_that_shows_ram_segment_by_segment(),
        *switches_of_the_first_segments(1),
    ]
    # The first two updates are one tree: QEMU commits the BIOS by itself.
    replay(pc, recorded[1:], changes, single_commits_from=2)


def test_two_hundred_switches_to_and_fro_under_qemu_10_are_those_of_the_tree():
    recorded = recorded_updates(DATA / "qemu-10.0-pam-lives.strace.gz")
    reset = recorded[1].after
    pc = a_pc(recorded[0].after, reset[3], reset[4].userspace_addr, has_vga=False)
    begins = [PcMemory.reset, *firmware_that_shows_ram_segment_by_segment()]
    changes = [*begins, *switches_of_the_first_segments(len(recorded) - 1 - len(begins))]
    assert len(recorded) > 400
    replay(pc, recorded[1:], changes, single_commits_from=1)


def small_pc() -> PcMemory:
    return PcMemory(
        ram_addr=0x7000_0000, ram_size=16 << 20, bios_addr=0x6000_0000, bios_size=1 << 18, option_rom_addr=0x5000_0000
    )


def test_smram_and_the_vga_window_take_turns_and_only_that_range_is_touched():
    pc = small_pc()
    pc.reset()
    draft = Draft({})
    lay_out(flatten(pc.root), draft, {})
    closed = draft.plan().after
    pc.set_smram_open(is_open=True)
    opening = Draft(closed)
    lay_out(flatten(pc.root), opening, closed)
    touched = {(step.slot.guest_phys_addr, step.slot.end) for step in opening.plan().steps}
    assert touched == {(0, 0xA_0000), (0, 0xC_0000)}
    window = flatten(pc.root).at(0xA_0000)
    assert window is not None
    assert window.region is pc.ram
    pc.set_smram_open(is_open=False)
    window = flatten(pc.root).at(0xA_0000)
    assert window is not None
    assert window.region is pc.vga_window


def test_a_dimm_comes_and_goes_by_one_call_each_and_nobody_is_held():
    pc = small_pc()
    draft = Draft({})
    lay_out(flatten(pc.root), draft, {})
    without = draft.plan().after
    dimm = pc.plug_dimm("dimm0", 0x4000_0000, 1 << 20)
    plugging = Draft(without)
    lay_out(flatten(pc.root), plugging, without)
    plugged = plugging.plan()
    assert [type(step) for step in plugged.steps] == [Create]
    pc.unplug(dimm)
    unplugging = Draft(plugged.after)
    lay_out(flatten(pc.root), unplugging, plugged.after)
    assert [type(step) for step in unplugging.plan().steps] == [Delete]
    assert not plugged.needs_hold
    assert not unplugging.plan().needs_hold
    assert unplugging.plan().after == without


def test_an_address_without_a_pam_segment_is_refused():
    with pytest.raises(OutOfRange, match="no PAM segment begins at 0xc1000"):
        small_pc().set_pam(0xC_1000, Pam.RAM)
