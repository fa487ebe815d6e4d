"""`vmmctl regs`: a vCPU's registers, shown and set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .numbers import Word, parse_u64, vm_argument
from .screen import Screen, table
from .session import asks

if TYPE_CHECKING:
    from ..connection import Client

ABI_NAMES = (
    *("zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1"),
    *(f"a{number}" for number in range(8)),
    *(f"s{number}" for number in range(2, 12)),
    *("t3", "t4", "t5", "t6"),
)
"""The psABI's names of x0 to x31."""

# A name, two spaces, eighteen characters of value, two spaces.
_CELL_WIDTH = 30

vcpu_argument = click.argument("vcpu", type=click.IntRange(0, 2**32 - 1), default=0)


class Assignment(Word):
    """NAME=VALUE, as pc=0x1000."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Read it, or tell the user what is wrong with it."""
        if isinstance(value, tuple):
            return value
        name, equals, number = value.partition("=")
        if not equals or not name:
            self.fail(f"{value!r} sets no register: write NAME=VALUE, as pc=0x1000", param, ctx)
        try:
            return name, parse_u64(number, units=False)
        except ValueError as error:
            self.fail(f"{name}: {error}", param, ctx)


@click.group()
def regs() -> None:
    """Show and set a vCPU's registers."""


@regs.command()
@vm_argument
@vcpu_argument
@asks
async def show(vmmd: Client, screen: Screen, vm: str, vcpu: int) -> None:
    """Show the registers; a running vCPU leaves guest mode for a moment.

    JSON: {"vm", "vcpu", "regs": {name: "0x…"}}
    """
    values = await vmmd.vm(vm).vcpu(vcpu).get_regs()
    columns = max(1, screen.console.width // _CELL_WIDTH)
    named = [(_shown_name(name), value) for name, value in values.items()]
    rows = [
        [text for name, value in named[at : at + columns] for text in (name, f"{value:#018x}")]
        for at in range(0, len(named), columns)
    ]
    value = {"vm": vm, "vcpu": vcpu, "regs": {name: hex(value) for name, value in values.items()}}
    screen.give(value, table(("",) * (2 * columns), [row + [""] * (2 * columns - len(row)) for row in rows]))


@regs.command("set")
@vm_argument
@vcpu_argument
@click.argument("values", metavar="NAME=VALUE...", type=Assignment(), nargs=-1, required=True)
@asks
async def set_(vmmd: Client, screen: Screen, vm: str, vcpu: int, values: tuple[tuple[str, int], ...]) -> None:
    """Set the registers that are named; the others stay.

    JSON: {"vm", "vcpu", "regs": {name: "0x…"}}
    """
    given = dict(values)
    await vmmd.vm(vm).vcpu(vcpu).set_regs(given)
    value = {"vm": vm, "vcpu": vcpu, "regs": {name: hex(number) for name, number in given.items()}}
    screen.give(value, table(("", ""), [(name, f"{number:#018x}") for name, number in given.items()]))


def _shown_name(name: str) -> str:
    """Give a register's name with its ABI name beside it."""
    if name[:1] == "x" and name[1:].isdecimal():
        return f"{name} {ABI_NAMES[int(name[1:])]}"
    return name
