"""`vmmctl stats`: what vCPUs have counted since they were created."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..errors import BadVm
from ..wire import calls
from .numbers import vm_argument
from .screen import Screen, table
from .session import asks

if TYPE_CHECKING:
    from vmmd.api.vcpus import StatsResult

    from ..connection import Client


@click.command()
@vm_argument
@asks
async def stats(vmmd: Client, screen: Screen, vm: str) -> None:
    """Show a VM's counters, and each vCPU's.

    JSON: {"vm", "total": {"instructions", "exits": {reason: n}, "stray_exits", "kicks"}, "vcpus": {id: the same}}
    """
    vcpus = next((info.vcpus for info in await vmmd.kvm.list_vms() if info.vm == vm), ())
    async with vmmd.batch() as batch:
        total = batch.add(calls.get_vm_stats(vm))
        each = {vcpu: batch.add(calls.get_vcpu_stats(vm, vcpu)) for vcpu in vcpus}
    counted = {vcpu: reply.result() for vcpu, reply in each.items() if not isinstance(reply.error, BadVm)}
    value = {
        "vm": vm,
        "total": total.result().model_dump(mode="json"),
        "vcpus": {str(vcpu): result.model_dump(mode="json") for vcpu, result in counted.items()},
    }
    rows = [_row(f"vcpu {vcpu}", result) for vcpu, result in counted.items()]
    columns = ("", ">instructions", ">stray exits", ">kicks", "exits")
    screen.give(value, table(columns, [*rows, _row("total", total.result())]))


def _row(name: str, result: StatsResult) -> tuple[object, ...]:
    exits = ", ".join(f"{reason.removeprefix('KVM_EXIT_')} {count:,}" for reason, count in result.exits.items())
    return (name, result.instructions, result.stray_exits, result.kicks, exits)
