"""`vmmctl slots`: a VM's memslots as a table, and guest-physical space drawn with them in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Group

from ..slots.memslots import MemFlag, Memslot
from .guest_map import draw
from .numbers import vm_argument
from .screen import Screen, size, table
from .session import asks

if TYPE_CHECKING:
    from ..connection import Client


@click.command()
@vm_argument
@click.option("--map/--no-map", "with_map", default=True, help="Draw guest-physical space below the table.")
@asks
async def slots(vmmd: Client, screen: Screen, vm: str, with_map: bool) -> None:
    """Show the memslots: a table, and a map of guest-physical space.

    JSON: {"vm", "generation", "slots": [{"slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr"}]}
    """
    known = await vmmd.vm(vm).get_memory_regions()
    ordered = sorted(known.slots.values(), key=lambda slot: slot.guest_phys_addr)
    value = {"vm": vm, "generation": known.generation, "slots": [fields(slot) for slot in ordered]}
    rows = [
        (
            slot.slot,
            f"{slot.guest_phys_addr:#x}",
            f"{slot.end:#x}",
            size(slot.memory_size),
            f"{slot.userspace_addr:#x}",
            flag_words(slot.flags),
        )
        for slot in ordered
    ]
    count = f"{len(ordered):,} slot{'' if len(ordered) == 1 else 's'}"
    shown = [f"{vm}: {count}, generation {known.generation}"]
    if not ordered or screen.as_json:
        screen.give(value, *shown)
        return
    # In a group, since rich asks a text of its own whether it may be wrapped only there.
    drawn = [Group(draw(ordered))] if with_map else []
    screen.give(value, *shown, table((">slot", ">from", ">to", ">size", ">userspace_addr", "flags"), rows), *drawn)


def fields(slot: Memslot) -> dict[str, object]:
    """Give a memslot in JSON's types, as on the wire."""
    return {
        "slot": slot.slot,
        "flags": slot.flags,
        "guest_phys_addr": hex(slot.guest_phys_addr),
        "memory_size": hex(slot.memory_size),
        "userspace_addr": hex(slot.userspace_addr),
    }


def flag_words(flags: int) -> str:
    """Name a memslot's flags: "log", "read-only"."""
    words = (("log", MemFlag.LOG_DIRTY_PAGES), ("read-only", MemFlag.READONLY))
    return " ".join(word for word, flag in words if flags & flag)
