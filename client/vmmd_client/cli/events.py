"""`vmmctl events`: what happens in the daemon, as it happens."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..events import AnyEvent, OtherEvent, Place
from ..slots.memslots import Memslot
from .numbers import VM, Word, parse_u64
from .session import asks
from .text import one_line

if TYPE_CHECKING:
    from ..connection import Client
    from .screen import Screen


class PlaceType(Word):
    """A place among the events: SEQ, or SEQ:EPOCH."""

    name = "seq[:epoch]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """Read it, or tell the user what is wrong with it."""
        if isinstance(value, Place):
            return value
        number, _, epoch = value.partition(":")
        try:
            return Place(parse_u64(number, units=False), epoch or None)
        except ValueError as error:
            self.fail(f"{error}; with the epoch of the daemon that counted it, SEQ:EPOCH", param, ctx)


@click.command()
@click.argument("vm", type=VM, required=False)
@click.option("--since", type=PlaceType(), metavar="SEQ[:EPOCH]", help="Begin behind that event; 0: all that are kept.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only events of that type; several times: of any.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many events.")
@asks
async def events(
    vmmd: Client, screen: Screen, vm: str | None, since: Place | None, types: tuple[str, ...], count: int | None
) -> None:
    """Follow what happens, of one VM or of all, until Ctrl-C; across lost connections too.

    What the daemon no longer has comes as one event of the type "gap", which no --type leaves out. The epoch tells this
    start of the daemon from others: events are numbered from 1 in each.

    JSON: a line an event, {"seq", "epoch", "time", "vm", "type", …}, the rest as in the daemon's contract
    """
    given = 0
    async with vmmd.events(vm, since) as stream:
        if since is None and stream.place is not None:
            screen.note(f"following from event {stream.place.seq}:{stream.place.epoch} on; Ctrl-C ends it")
        async for event in stream:
            event_type = event.wire_type if isinstance(event, OtherEvent) else event.type
            if types and event_type not in {*types, "gap"}:
                continue
            epoch = None if stream.place is None else stream.place.epoch
            fields = event.model_dump(mode="json")
            if isinstance(event, OtherEvent):
                fields |= {"type": fields.pop("wire_type"), **fields.pop("fields")}
            if screen.as_json:
                screen.json({"seq": event.seq, "epoch": epoch, **fields})
            else:
                screen.console.print(_line(event, fields), soft_wrap=True)
                sys.stdout.flush()
            given += 1
            if given == count:
                return


def _line(event: AnyEvent, fields: dict[str, Any]) -> Text:
    """Give an event as one line: when, its number, the VM, what, and its details."""
    details = " ".join(
        f"{name}={one_line(_words(name, value))}"
        for name, value in fields.items()
        if name not in {"seq", "time", "vm", "type"} and value is not None and (name, value) != ("left_out", 0)
    )
    return Text.assemble(
        (one_line(event.time), "dim"),
        f"  {event.seq:>6}  {one_line(event.vm or '-'):<6} ",
        (one_line(fields["type"]), "bold"),
        f"  {details}",
    )


def _words(name: str, value: Any) -> str:
    """Write one of an event's details: regions as slots, anything else that has parts as JSON."""
    if name == "regions":
        return "[" + ", ".join(_region(region) for region in value) + "]"
    if isinstance(value, dict):
        value = {part: each for part, each in value.items() if each is not None}
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _region(region: dict[str, Any]) -> str:
    start, size = int(region["guest_phys_addr"], 16), int(region["memory_size"], 16)
    return str(Memslot(region["slot"], 0, start, size, 0)) if size else f"no slot {region['slot']}"
