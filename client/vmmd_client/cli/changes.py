"""`vmmctl grow`, `shrink`, `split`, `merge`, `move`, `flags`: changes of the memory map, each one transaction.

What KVM lacks. A change is planned on the slot table as it stands and sent with that table's generation, so nobody's
change in between is lost. `--plan` shows what would be sent; `--dry-run` has the daemon check it; neither changes
anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..changes.transaction import DEFAULT_WAIT_MS, Transaction
from ..errors import BadAddress, PlanError
from .numbers import NUMBER, SIZE, SLOT, SlotName, vm_argument
from .session import asks, asks_if
from .transact import Ways, transact

if TYPE_CHECKING:
    from ..connection import Client
    from ..slots.memslots import Memslot
    from ..vm import Vm
    from .screen import Screen


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


def _some_flag(log: bool | None, read_only: bool | None, **_: object) -> None:
    if log is None and read_only is None:
        raise click.UsageError("say which flag: --log or --no-log, --read-only or --no-read-only")


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

    The host memory behind the slot's own becomes visible, so it has to be mapped: `vmmctl vm create --reserve` provides
    for it.

    JSON: as of `split`.
    """
    handle = vmmd.vm(vm)

    async def change(draft: Transaction) -> None:
        old = slot.find(draft.slots)
        new = draft.grow(old.slot, by if by is not None else (to or 0) - old.memory_size)
        await _require_mapped(handle, old, new)

    await transact(handle, screen, _ways(options), change)


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

    async def change(draft: Transaction) -> None:
        old = slot.find(draft.slots)
        draft.shrink(old.slot, by if by is not None else old.memory_size - (to or 0))

    await transact(vmmd.vm(vm), screen, _ways(options), change)


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

    JSON: {"vm", "plan": {"needs_hold", "reason", "steps": [{"call": "fetch", "delete", "set_flags", "move" or "create",
    slot…}]}, "dry_run", "result": null or {"generation", "pause_ns", "kick_ns", "dirty": [{"slot", "guest_phys_addr",
    "ranges": [as of `dirty`]}]}}
    """

    async def change(draft: Transaction) -> None:
        draft.split(slot.find(draft.slots).slot, at, second=new_slot)

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

    async def change(draft: Transaction) -> None:
        first, *others = [name.find(draft.slots) for name in slots]
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

    async def change(draft: Transaction) -> None:
        draft.move(slot.find(draft.slots).slot, address)

    await transact(vmmd.vm(vm), screen, _ways(options), change)


@click.command()
@changes_map
@click.argument("slot", type=SLOT)
@click.option("--log/--no-log", default=None, help="Keep a log of dirty pages, or none.")
@click.option("--read-only/--no-read-only", default=None, help="Let the guest's stores exit, or reach memory.")
@asks_if(_some_flag)
async def flags(
    vmmd: Client, screen: Screen, vm: str, slot: SlotName, log: bool | None, read_only: bool | None, **options: Any
) -> None:
    """Switch a slot's flags on or off; those that are not named stay.

    JSON: as of `split`.
    """

    async def change(draft: Transaction) -> None:
        draft.set_flags(slot.find(draft.slots).slot, log_dirty=log, readonly=read_only)

    await transact(vmmd.vm(vm), screen, _ways(options), change)


async def _require_mapped(vm: Vm, old: Memslot, new: Memslot) -> None:
    """Refuse to show the guest host memory that is not there: looks at the first new byte and at the last."""
    first, last = old.userspace_addr + old.memory_size, new.userspace_addr + new.memory_size - 1
    try:
        for address in (first, last):
            await vm.read_host_memory(address, 1)
    except BadAddress:
        raise PlanError(
            f"there is no host memory at [{first:#x}, {last + 1:#x}), behind the slot's own; reserve it when the VM is "
            "created (vmmctl vm create --reserve)"
        ) from None
