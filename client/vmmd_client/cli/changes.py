"""`vmmctl grow`, `shrink`, `split`, `merge`, `move`: changes of the memory map, each one transaction.

What KVM lacks. A change is planned on the slot table as it stands and sent with that table's generation, so nobody's
change in between is lost. `--plan` shows what would be sent; `--dry-run` has the daemon check it; neither changes
anything.
"""

from collections.abc import Callable
from typing import Any

import click

from ..connection import Client
from ..errors import BadAddress, PlanError
from ..memslots import Memslot, SlotMap
from ..transaction import DEFAULT_WAIT_MS, Transaction
from ..vm import Vm
from .numbers import NUMBER, SIZE, SLOT, SlotName, vm_argument
from .screen import Screen
from .session import asks, asks_if
from .transact import Ways, transact


def changes_map(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a change of the memory map."""
    for option in (
        click.option("--wait-ms", type=click.IntRange(0), default=DEFAULT_WAIT_MS, metavar="N", show_default=True,
                     help="How long to wait while somebody else holds the VM."),
        click.option("--hold", is_flag=True, help="Hold the vCPUs also where none could see the difference."),
        click.option("--dry-run", is_flag=True, help="Have the daemon check everything, and change nothing."),
        click.option("--plan", is_flag=True, help="Show what would be sent, and send nothing."),
        vm_argument,
    ):  # fmt: skip
        function = option(function)
    return function


def _ways(options: dict[str, Any]) -> Ways:
    return Ways(**{name: options[name] for name in Ways.__dataclass_fields__})


def _one_of_both(by: int | None, to: int | None, **_: object) -> None:
    if (by is None) == (to is None):
        raise click.UsageError("say how far: --by SIZE or --to SIZE")


def _several(slots: tuple[SlotName, ...], **_: object) -> None:
    if len(slots) < 2:
        raise click.UsageError("a merge takes at least two slots")


@click.command()
@changes_map
@click.argument("slot", type=SLOT)
@click.option("--by", type=SIZE, metavar="SIZE", help="How much larger.")
@click.option("--to", type=SIZE, metavar="SIZE", help="How large in all.")
@asks_if(_one_of_both)
async def grow(
    vmmd: Client, screen: Screen, vm: str, slot: SlotName, by: int | None, to: int | None, **options: Any
) -> None:
    """Make a slot larger at its end, in place.

    The host memory behind the slot's own becomes visible, so it has to be mapped: `vmmctl vm create --reserve`, or
    `vmmctl memory map`, provides for it.

    JSON: as of `split`.
    """
    handle = vmmd.vm(vm)
    old = slot.find((await handle.slot_table()).slots)
    size_now = _new_size(old, by, to, 1)
    if size_now <= old.memory_size:
        raise PlanError(f"{old} has {old.memory_size:#x} bytes, and {size_now:#x} are not more; see vmmctl shrink")
    await _require_mapped(handle, old.userspace_addr + old.memory_size, size_now - old.memory_size)
    await transact(handle, screen, _ways(options), lambda draft, _: _resize(draft, old, size_now))


@click.command()
@changes_map
@click.argument("slot", type=SLOT)
@click.option("--by", type=SIZE, metavar="SIZE", help="How much smaller.")
@click.option("--to", type=SIZE, metavar="SIZE", help="How large in all.")
@asks_if(_one_of_both)
async def shrink(
    vmmd: Client, screen: Screen, vm: str, slot: SlotName, by: int | None, to: int | None, **options: Any
) -> None:
    """Make a slot smaller at its end; its host memory stays mapped.

    JSON: as of `split`.
    """
    handle = vmmd.vm(vm)
    old = slot.find((await handle.slot_table()).slots)
    size_now = _new_size(old, by, to, -1)
    if not 0 < size_now < old.memory_size:
        raise PlanError(
            f"{old} has {old.memory_size:#x} bytes and cannot be shrunk to {size_now:#x}: give less, and more than 0"
        )
    await transact(handle, screen, _ways(options), lambda draft, _: _resize(draft, old, size_now))


@click.command()
@changes_map
@click.argument("slot", type=SLOT)
@click.argument("at", type=SIZE, metavar="ADDRESS")
@click.option("--new-slot", type=NUMBER, metavar="ID", help="The upper half's id.  [default: the lowest that is free]")
@asks
async def split(
    vmmd: Client, screen: Screen, vm: str, slot: SlotName, at: int, new_slot: int | None, **options: Any
) -> None:
    """Make two slots of one, at a guest-physical address.

    JSON: {"vm", "plan": {"needs_hold", "steps": [{"call": "fetch", "delete" or "create", slot…}]}, "dry_run", "result":
    null or {"generation", "pause_ns", "kick_ns", "dirty": [{"slot", "guest_phys_addr", "ranges": [as of `dirty`]}]}}
    """

    def change(draft: Transaction, slots: SlotMap) -> None:
        old = slot.find(slots)
        if not old.guest_phys_addr < at < old.end:
            raise PlanError(f"{old} cannot be split at {at:#x}: the address has to lie inside it")
        lower = at - old.guest_phys_addr
        upper = next(free for free in range(len(slots) + 1) if free not in slots) if new_slot is None else new_slot
        draft.delete(old.slot)
        _create(draft, Memslot(old.slot, old.flags, old.guest_phys_addr, lower, old.userspace_addr))
        _create(draft, Memslot(upper, old.flags, at, old.memory_size - lower, old.userspace_addr + lower))

    await transact(vmmd.vm(vm), screen, _ways(options), change)


@click.command()
@changes_map
@click.argument("slots", metavar="SLOT SLOT...", type=SLOT, nargs=-1, required=True)
@asks_if(_several)
async def merge(vmmd: Client, screen: Screen, vm: str, slots: tuple[SlotName, ...], **options: Any) -> None:
    """Make one slot of neighbours, under the first one's id.

    They have to touch in guest-physical space and in host memory, in the same order, with equal flags.

    JSON: as of `split`.
    """

    def change(draft: Transaction, known: SlotMap) -> None:
        first, *others = [name.find(known) for name in slots]
        for other in others:
            draft.merge(first.slot, other.slot)

    await transact(vmmd.vm(vm), screen, _ways(options), change)


@click.command()
@changes_map
@click.argument("slot", type=SLOT)
@click.argument("address", type=SIZE)
@asks
async def move(vmmd: Client, screen: Screen, vm: str, slot: SlotName, address: int, **options: Any) -> None:
    """Put a slot at another guest-physical address, over the same host memory.

    JSON: as of `split`.
    """

    def change(draft: Transaction, slots: SlotMap) -> None:
        old = slot.find(slots)
        draft.delete(old.slot)
        _create(draft, Memslot(old.slot, old.flags, address, old.memory_size, old.userspace_addr))

    await transact(vmmd.vm(vm), screen, _ways(options), change)


def _new_size(old: Memslot, by: int | None, to: int | None, sign: int) -> int:
    """Give the size that a slot is to have; `sign` is that of `by`."""
    if by is None:
        return to or 0
    return old.memory_size + sign * by


async def _require_mapped(vm: Vm, userspace_addr: int, size_bytes: int) -> None:
    """Refuse to show the guest host memory that is not there: looks at the first and at the last byte."""
    try:
        for address in (userspace_addr, userspace_addr + size_bytes - 1):
            await vm.read_host_memory(address, 1)
    except BadAddress:
        raise PlanError(
            f"there is no host memory at [{userspace_addr:#x}, {userspace_addr + size_bytes:#x}), behind the slot's "
            "own; reserve it when the VM is created (vmmctl vm create --reserve)"
        ) from None


def _resize(draft: Transaction, old: Memslot, memory_size: int) -> None:
    draft.delete(old.slot)
    _create(draft, Memslot(old.slot, old.flags, old.guest_phys_addr, memory_size, old.userspace_addr))


def _create(draft: Transaction, slot: Memslot) -> None:
    draft.create(
        slot.slot,
        guest_phys_addr=slot.guest_phys_addr,
        memory_size=slot.memory_size,
        userspace_addr=slot.userspace_addr,
        flags=slot.flags,
    )
