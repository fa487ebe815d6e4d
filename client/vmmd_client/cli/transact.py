"""One change of the memory map: planned, shown, checked or made, as the options say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..changes.transaction import Transaction
from ..slots.plan import Create, Delete, Fetch, Move, Plan, SetFlags, Step
from .dirty import page_ranges, range_fields
from .screen import Screen, cell, duration, size, table
from .slots import fields

if TYPE_CHECKING:
    from ..changes.dirty import DirtyBitmap
    from ..changes.order import TransactionResult
    from ..vm import Vm

Change = Callable[[Transaction], Awaitable[None]]

_CALLS: dict[type[Step], str] = {
    Fetch: "fetch",
    Delete: "delete",
    SetFlags: "set_flags",
    Move: "move",
    Create: "create",
}


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
    transaction = vm.transaction(hold=ways.hold, dry_run=ways.dry_run, wait_ms=ways.wait_ms)
    result = None
    try:
        async with transaction as draft:
            await change(draft)
            plan = draft.plan()
            if ways.plan:
                raise _NotSent
        if not ways.dry_run:
            result = transaction.result
    except _NotSent:
        pass
    _give(vm, screen, ways, plan, result)


def _give(vm: Vm, screen: Screen, ways: Ways, plan: Plan, result: TransactionResult | None) -> None:
    held = plan.needs_hold or ways.hold
    value = {
        "vm": vm.id,
        "plan": {
            "needs_hold": plan.needs_hold,
            "reason": plan.reason,
            "steps": [{"call": _CALLS[type(step)], **fields(step.slot)} for step in plan.steps],
        },
        "dry_run": ways.dry_run,
        "result": None if result is None else _result_fields(result),
    }
    steps = ["kick all vCPUs, and wait until none is in guest mode"] if held else []
    steps += [str(step) for step in plan.steps]
    steps += ["resume them"] if held else []
    shown: list[Any] = [table((">", ""), [(number, step) for number, step in enumerate(steps, 1)])]
    if plan.reason is not None:
        shown.append(cell(f"vCPUs are held, since {plan.reason}"))
    elif not held:
        shown.append(cell("no vCPU can see the difference between two of the steps, so none is held"))
    if result is None:
        shown.append(cell("the daemon would do this; nothing was changed" if ways.dry_run else "nothing was sent"))
    else:
        shown += _outcome(result)
    screen.give(value, *shown)


def _outcome(result: TransactionResult) -> list[Any]:
    """Say what a transaction has done."""
    paused = f"paused for {duration(result.pause_ns)}" if result.pause_ns is not None else "nobody was paused"
    shown: list[Any] = [cell(f"generation {result.generation}, {paused}")]
    dirty = [
        (log.slot, f"{gpa:#x}", size(length)) for log in result.dirty for gpa, length in page_ranges(log.dirty_pages())
    ]
    if dirty:
        shown += [
            cell("dirty in the logs of the slots that went, and told here alone:"),
            table((">slot", ">from", ">size"), dirty),
        ]
    return shown


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
