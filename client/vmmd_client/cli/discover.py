"""`vmmctl discover`: what the daemon can be asked, by its own OpenRPC document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmmd.api.errors import errno_name

from ..errors import PlanError, ProtocolError
from .call import MethodType
from .screen import Screen, cell, table
from .session import asks

if TYPE_CHECKING:
    from ..connection import Client


@click.command()
@click.argument("method", type=MethodType(), required=False)
@asks
async def discover(vmmd: Client, screen: Screen, method: str | None) -> None:
    """List the daemon's methods, or tell one: its parameters, its errors, what it gives.

    JSON: the OpenRPC document, or the method's object in it
    """
    document = await vmmd.call("rpc.discover")
    methods = document.get("methods") if isinstance(document, dict) else None
    if not isinstance(methods, list) or not all(isinstance(each, dict) and "name" in each for each in methods):
        raise ProtocolError("what rpc.discover gave is no OpenRPC document: it has no list of methods")
    if method is None:
        rows = [(each["name"], each.get("x-ioctl") or "", each.get("summary") or "") for each in methods]
        screen.give(document, table(("method", "ioctl", ""), rows))
        return
    found: dict[str, Any] | None = next((each for each in methods if each["name"] == method), None)
    if found is None:
        raise PlanError(f"the daemon has no method {method}; vmmctl discover lists what it has")
    params = [
        (param.get("name", ""), "" if param.get("required") else "optional", _description(param))
        for param in found.get("params", ())
    ]
    errors = [
        (_error_name(error["code"]), error.get("message", "")) for error in found.get("errors", ()) if "code" in error
    ]
    shown = [cell(f"{found['name']}: {found.get('summary') or ''}")]
    screen.give(
        found,
        *shown,
        *([table(("parameter", "", ""), params)] if params else []),
        *([table(("error", ""), errors)] if errors else []),
    )


def _error_name(code: Any) -> str:
    return (errno_name(code) if isinstance(code, int) else None) or str(code)


def _description(param: dict[str, Any]) -> str:
    schema = param.get("schema")
    return str(param.get("description") or (schema.get("description") if isinstance(schema, dict) else "") or "")
