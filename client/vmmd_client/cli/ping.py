"""`vmmctl ping`: whether a daemon answers, and which."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from .screen import Screen, duration, table
from .session import Session, asks

if TYPE_CHECKING:
    from ..connection import Client


@click.command()
@asks
async def ping(vmmd: Client, screen: Screen) -> None:
    """Ask whether the daemon answers, and which it is.

    JSON: {"url", "version", "engine", "pid", "uptime_ms", "round_trip_ns", "limits": {name: integer}}
    """
    begin_ns = time.perf_counter_ns()
    info = await vmmd.daemon.get_info()
    round_trip_ns = time.perf_counter_ns() - begin_ns
    url = Session.of(click.get_current_context()).url
    value = {"url": url, **info.model_dump(mode="json"), "round_trip_ns": round_trip_ns}
    rows = [
        ("daemon", f"vmmd {info.version}, engine {info.engine}, process {info.pid}"),
        ("address", url),
        ("up for", f"{info.uptime_ms / 1000:,.1f} s"),
        ("round trip", duration(round_trip_ns)),
    ]
    screen.give(value, table(("", ""), rows))
