"""`vmmctl trace-update`: every call of one update of the memory map, drawn as a time line, plain next to atomic."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from ..audit.updates import Hole
from ..errors import PlanError
from ..replay import report
from ..replay.guest import PAGE_SIZE, Guest, install
from ..replay.timeline import Picture
from ..replay.timeline import trace_update as trace
from ..slots.memslots import Memslot, deletion_of
from .numbers import SLOT, VM, SlotName
from .screen import Screen, cell, duration, table
from .session import asks_if
from .slots import fields as slot_fields

if TYPE_CHECKING:
    from ..connection import Client
    from ..vm import Vm

_VCPUS = 2
_MEMORY_BYTES = 64 * PAGE_SIZE
_LOOK_AGAIN_S = 0.005


@dataclass(frozen=True, slots=True)
class Subject:
    """What is traced.

    Attributes:
        vm: the VM.
        vcpus: its vCPUs' ids.
        slot: the slot that goes and comes back.
    """

    vm: Vm
    vcpus: Sequence[int]
    slot: Memslot


def _both_or_neither(vm: str | None, slot: SlotName | None, **_: object) -> None:
    if (vm is None) != (slot is None):
        raise click.UsageError("give a VM and one of its slots, or neither")


@click.command()
@click.argument("vm", type=VM, required=False)
@click.argument("slot", type=SLOT, required=False)
@click.option("--plain", "with_plain", is_flag=True, help="Also make a plain update of VM, which its guest can notice.")
@asks_if(_both_or_neither)
async def trace_update(vmmd: Client, screen: Screen, vm: str | None, slot: SlotName | None, with_plain: bool) -> None:
    """Trace an update call by call: slot SLOT of VM is deleted and created again, which changes nothing in the end.

    Without VM it does so in a VM of its own, whose two vCPUs load and store in that slot: first plain, one ioctl after
    another, then atomic, in a hold. Each call goes alone, and every vCPU's counters are read behind it: that takes
    longer than a transaction, which sends all of it at once. A slot with a dirty log is refused: it would be lost.

    JSON: [{"mode", "vm", "slot", "pause_ns", "steps": [{"step", "call_ns", "generation", "held", "missing", "vcpus":
    {id: {"instructions", "stray_exits"}}}]}]
    """
    pictures: list[Picture] = []
    async with _subject(vmmd, vm, slot) as subject:
        regions = (deletion_of(subject.slot), subject.slot)
        holes = (Hole(subject.slot.guest_phys_addr, subject.slot.memory_size, 0, 1),)
        if with_plain or vm is None:
            pictures.append(await trace(vmmd, subject.vm, subject.vcpus, regions, holes, "plain"))
        pictures.append(await trace(vmmd, subject.vm, subject.vcpus, regions, holes, "atomic"))
    shown: list[Any] = []
    for picture in pictures:
        shown += [report.picture(picture, min(screen.console.width, 110)), _calls(picture), cell("")]
    value = [_fields(subject, picture) for picture in pictures]
    screen.give(value, *shown, report.legend())


@contextlib.asynccontextmanager
async def _subject(vmmd: Client, vm: str | None, slot: SlotName | None) -> AsyncIterator[Subject]:
    """Give the VM that is named, or make one whose vCPUs walk over the slot."""
    if vm is not None and slot is not None:
        handle = vmmd.vm(vm)
        table_now = await handle.slot_table()
        vcpus = next((info.vcpus for info in await vmmd.kvm.list_vms() if info.vm == vm), ())
        found = slot.find(table_now.slots)
        if found.is_logged:
            raise PlanError(f"{found} keeps a dirty log, which goes with the slot; trace one that keeps none")
        yield Subject(handle, vcpus, found)
        return
    handle = await vmmd.kvm.create_vm("trace-update")
    try:
        memory = Memslot(0, 0, 0x10_0000, _MEMORY_BYTES, await handle.map_host_memory(_MEMORY_BYTES, "traced"))
        await handle.set_user_memory_region(
            0,
            guest_phys_addr=memory.guest_phys_addr,
            memory_size=memory.memory_size,
            userspace_addr=memory.userspace_addr,
        )
        pages = list(range(memory.guest_phys_addr, memory.end, PAGE_SIZE))
        guest = await install(
            vmmd, handle, gpa=0x20_0000, slot=1, pages=[pages[vcpu::_VCPUS] for vcpu in range(_VCPUS)]
        )
        await handle.start("ones")
        await _all_walk(guest)
        yield Subject(handle, range(_VCPUS), memory)
    finally:
        await handle.destroy()


async def _all_walk(guest: Guest) -> None:
    """Wait until every vCPU has been over all its pages once, so that none is still on its way to them."""
    passes = [0]
    while not all(passes):
        await asyncio.sleep(_LOOK_AGAIN_S)
        reply = await guest.vm.read_host_memory(guest.counters_addr, guest.counters_size)
        passes = [counters.passes for counters in guest.counters(reply)]


def _calls(picture: Picture) -> RenderableType:
    """Give the update's calls, each with its time and the generation that it left."""
    rows: list[tuple[object, ...]] = []
    for column in picture.columns:
        if column.call_ns is not None:
            strays = sum(doing.stray_exits for doing in column.doings)
            rows.append((column.label, duration(column.call_ns), column.generation or "", strays))
    rows.append(("paused for", duration(picture.pause_ns), "", ""))
    return table(("call", ">took", ">generation", ">stray exits"), rows)


def _fields(subject: Subject, picture: Picture) -> dict[str, Any]:
    return {
        "mode": picture.mode,
        "vm": subject.vm.id,
        "slot": slot_fields(subject.slot),
        "pause_ns": picture.pause_ns,
        "steps": [
            {
                "step": column.label,
                "call_ns": column.call_ns,
                "generation": column.generation,
                "held": column.held,
                "missing": any(column.missing),
                "vcpus": {
                    str(vcpu): {"instructions": doing.instructions, "stray_exits": doing.stray_exits}
                    for vcpu, doing in zip(subject.vcpus, column.doings, strict=True)
                },
            }
            for column in picture.columns
        ],
    }
