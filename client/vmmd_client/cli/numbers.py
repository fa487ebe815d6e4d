"""What a command line's words mean: numbers, sizes, slots, registers, names of VMs.

A number is decimal or 0x…; a size may end in K, M, G or T (powers of 1024). A slot is named by its id, or by a
guest-physical address that it covers: 0x… is always an address, `@64M` is one too. Anything else is a usage error that
says what would do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ..errors import PlanError
from .session import Session, vm_ids

if TYPE_CHECKING:
    from ..slots.memslots import Memslot, SlotMap

U64_MAX = 2**64 - 1

_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)(?:([KkMmGgTt])(?:i?[Bb])?)?")
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_u64(text: str, *, units: bool) -> int:
    """Read a number of 64 bits.

    Args:
        text: "4096", "0x1000", and with units "4K".
        units: whether a unit may follow.

    Raises:
        ValueError: it is none; the message says what would be one.
    """
    match = _NUMBER.fullmatch(text)
    if match is None or (match[2] and not units):
        forms = "4096, 0x1000 or 4K (K, M, G, T)" if units else "4096 or 0x1000"
        raise ValueError(f"{text!r} is no {'size' if units else 'number'}: write it as {forms}")
    digits = match[1]
    value = (int(digits, 16) if digits[:2] in {"0x", "0X"} else int(digits)) << _SHIFTS[(match[2] or "").upper()]
    if value > U64_MAX:
        raise ValueError(f"{text} is more than 64 bits hold")
    return value


# Only later versions of click have it generic at run time.
class Word(click.ParamType):  # type: ignore[type-arg]
    """A word of the command line that means something."""


class Number(Word):
    """A number of 64 bits, decimal or 0x…; with units also 4K, 2M, 1G."""

    def __init__(self, *, units: bool = False) -> None:
        self.name = "size" if units else "number"
        self._units = units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or tell the user what is wrong with it."""
        if isinstance(value, int):
            return value
        try:
            return parse_u64(value, units=self._units)
        except ValueError as error:
            self.fail(str(error), param, ctx)


NUMBER = Number()
SIZE = Number(units=True)


@dataclass(frozen=True, slots=True)
class SlotName:
    """A slot as a user names it.

    Attributes:
        number: the slot's id, or an address.
        is_address: which of the two.
    """

    number: int
    is_address: bool

    def find(self, slots: SlotMap) -> Memslot:
        """Give the slot that is meant.

        Raises:
            PlanError: there is none.
        """
        if not self.is_address:
            if self.number in slots:
                return slots[self.number]
            known = ", ".join(str(slot) for slot in sorted(slots)[:16]) or "none"
            raise PlanError(f"there is no slot {self.number}; the slots are: {known}")
        for slot in slots.values():
            if slot.guest_phys_addr <= self.number < slot.end:
                return slot
        raise PlanError(f"no slot covers {self.number:#x}; vmmctl slots shows what there is")


class SlotType(Word):
    """A slot's id, or an address that it covers."""

    name = "slot"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SlotName:
        """Read it, or tell the user what is wrong with it."""
        if isinstance(value, SlotName):
            return value
        at = value.startswith("@")
        try:
            number = parse_u64(value[1:] if at else value, units=at)
        except ValueError:
            self.fail(f"{value!r} names no slot: give its id (3), or an address in it (0x100000 or @1M)", param, ctx)
        return SlotName(number, at or value[:2] in {"0x", "0X"})


class RangeType(Word):
    """A guest-physical range, START:SIZE."""

    name = "start:size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Read it, or tell the user what is wrong with it."""
        if isinstance(value, tuple):
            return value
        start, colon, size = value.partition(":")
        if not colon:
            self.fail(f"{value!r} is no range: write START:SIZE, as 0x100000:64K", param, ctx)
        try:
            return parse_u64(start, units=True), parse_u64(size, units=True)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class VmType(Word):
    """A VM's id, completed from those that the daemon has."""

    name = "vm"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Give the ids of the daemon's VMs; none where it cannot be asked."""
        return [CompletionItem(vm, help=name) for vm, name in vm_ids(Session.of(ctx)) if vm.startswith(incomplete)]


VM = VmType()
SLOT = SlotType()
RANGE = RangeType()

vm_argument = click.argument("vm", type=VM)
"""The VM that a command is about."""
