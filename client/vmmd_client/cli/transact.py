"""One change of the memory map: planned, shown, checked or made, as the options say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..dirty import DirtyBitmap
from ..memslots import SlotMap
from ..order import TransactionResult
from ..plan import Fetch, Plan, Step
from ..transaction import Transaction
from ..vm import Vm
from .dirty import page_ranges, range_fields
from .screen import Screen, cell, duration, size, table
from .slots import fields

Change = Callable[[Transaction, SlotMap], None]


@dataclass(frozen=True, slots=True)
class Ways:
    """How a change is to be made.

    Attributes:
        plan: show what would be sent, and ask nothing.
        dry_run: have the daemon check it, and change nothing.
        hold: take a hold also where no vCPU could see the difference.
        wait_ms: how long to wait for a turn, in milliseconds.
    """

    plan: bool
    dry_run: bool
    hold: bool
    wait_ms: int


class _NotSent(Exception):  # noqa: N818 -- it is no error: it leaves a transaction's block so that nothing is sent.
    """Leaves the block of a transaction that is only looked at."""


async def transact(vm: Vm, screen: Screen, ways: Ways, change: Change) -> None:
    """Make a change as one transaction, or show what it would be."""
    table_before = await vm.slot_table()
    transaction = vm.transaction(hold=ways.hold, wait_ms=ways.wait_ms)
    try:
        async with transaction as draft:
            change(draft, table_before.slots)
            plan = draft.plan()
            if ways.plan or ways.dry_run:
                raise _NotSent
        result = transaction.result
    except _NotSent:
        result = None
        if ways.dry_run:
            regions = [step.region for step in plan.steps if not isinstance(step, Fetch)]
            await vm.set_user_memory_region_list(
                regions, dry_run=True, if_generation=table_before.generation, wait_ms=ways.wait_ms
            )
    _give(vm, screen, ways, plan, result)


def _give(vm: Vm, screen: Screen, ways: Ways, plan: Plan, result: TransactionResult | None) -> None:
    held = plan.needs_hold or ways.hold
    value = {
        "vm": vm.id,
        "plan": {"needs_hold": plan.needs_hold, "steps": [_step_fields(step) for step in plan.steps]},
        "dry_run": ways.dry_run,
        "result": None if result is None else _result_fields(result),
    }
    steps = ["kick all vCPUs, and wait until none is in guest mode"] if held else []
    steps += [str(step) for step in plan.steps]
    steps += ["resume them"] if held else []
    shown: list[Any] = [table((">", ""), [(number, step) for number, step in enumerate(steps, 1)])]
    if not held:
        shown.append(cell("no vCPU can see the difference between two of the steps, so none is held"))
    if result is None:
        shown.append(cell("the daemon would do this; nothing was changed" if ways.dry_run else "nothing was sent"))
    else:
        paused = f"paused for {duration(result.pause_ns)}" if result.pause_ns is not None else "nobody was paused"
        shown.append(cell(f"generation {result.generation}, {paused}"))
        dirty = [
            (log.slot, f"{gpa:#x}", size(length))
            for log in result.dirty
            for gpa, length in page_ranges(log.dirty_pages())
        ]
        if dirty:
            shown += [
                cell("dirty in the logs of the slots that went, and told here alone:"),
                table((">slot", ">from", ">size"), dirty),
            ]
    screen.give(value, *shown)


def _step_fields(step: Step) -> dict[str, object]:
    return {"call": type(step).__name__.lower(), **fields(step.slot)}


def _result_fields(result: TransactionResult) -> dict[str, object]:
    return {
        "generation": result.generation,
        "pause_ns": result.pause_ns,
        "kick_ns": result.kick_ns,
        "dirty": [_log_fields(log) for log in result.dirty],
    }


def _log_fields(log: DirtyBitmap) -> dict[str, object]:
    return {
        "slot": log.slot,
        "guest_phys_addr": hex(log.guest_phys_addr),
        "ranges": range_fields(page_ranges(log.dirty_pages())),
    }
