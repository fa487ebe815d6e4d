"""`vmmctl kick` and `vmmctl resume`: holds with a name, and the raw pair as it was proposed."""

from __future__ import annotations

import secrets
import shlex
from typing import TYPE_CHECKING

import click

from .numbers import vm_argument
from .screen import Screen, cell, duration, table
from .session import asks_if

if TYPE_CHECKING:
    from ..connection import Client


def _raw_or_held(raw: bool, hold: str | None, lease_ms: int | None, **_: object) -> None:
    if raw and (hold is not None or lease_ms is not None):
        raise click.UsageError("a raw kick has no name and no lease: leave out --raw, or --hold and --lease-ms")


def _one_of_both(raw: bool, hold: str | None, **_: object) -> None:
    if raw == (hold is not None):
        raise click.UsageError("say what to resume: the name of a hold, or --raw")


@click.command()
@vm_argument
@click.option("--hold", metavar="NAME", help="The hold's name; the same again renews it.  [default: one is made]")
@click.option("--raw", is_flag=True, help="Kick as proposed: KVM_RUN gives EINTR until the raw resume.")
@click.option("--lease-ms", type=click.IntRange(1), metavar="N", help="How long the hold stays open without renewal.")
@click.option("--wait-ms", type=click.IntRange(0), metavar="N", help="How long to wait for a turn.")
@asks_if(_raw_or_held)
async def kick(
    vmmd: Client,
    screen: Screen,
    vm: str,
    hold: str | None,
    raw: bool,
    lease_ms: int | None,
    wait_ms: int | None,
) -> None:
    """Kick all running vCPUs: open a hold, or renew it, or kick raw.

    A hold that is neither resumed nor renewed within its lease is rolled back: what was done inside it is undone.

    JSON: {"hold": name or null, "kicked", "kick_ns", "generation", "lease_ms"}
    """
    name = None if raw else hold or secrets.token_hex(16)
    result = await vmmd.vm(vm).kick_all_running_vcpus(name, wait_ms=wait_ms, lease_ms=lease_ms)
    rows = [
        ("hold", result.hold or "none: a raw kick"),
        ("vCPUs kicked", result.kicked),
        ("kick took", duration(result.kick_ns)),
        ("generation", result.generation),
    ]
    screen.give(result.model_dump(mode="json"), table(("", ""), rows))
    if result.hold is not None and result.lease_ms is not None:
        name = shlex.quote(result.hold)
        screen.note(
            f"held for {result.lease_ms:,} ms at most, then rolled back; end it with: vmmctl resume {vm} {name}"
        )


@click.command()
@vm_argument
@click.argument("hold", required=False)
@click.option("--raw", is_flag=True, help="Resume raw kicks.")
@asks_if(_one_of_both)
async def resume(vmmd: Client, screen: Screen, vm: str, hold: str | None, raw: bool) -> None:
    """Resume all kicked vCPUs: end a hold by its name, or with --raw every raw kick.

    JSON: {"pause_ns": integer or null, "generation"}
    """
    result = await vmmd.vm(vm).resume_all_kicked_vcpus(hold)
    paused = "" if result.pause_ns is None else f", paused for {duration(result.pause_ns)}"
    screen.give(result.model_dump(mode="json"), cell(f"resumed{paused}, generation {result.generation}"))
