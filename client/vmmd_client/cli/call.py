"""`vmmctl call`: any method of the wire, by its name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from vmmd.api.methods import METHODS

from .numbers import Word
from .session import asks

if TYPE_CHECKING:
    from ..connection import Client
    from .screen import Screen


class MethodType(Word):
    """A method's name on the wire, completed from the contract."""

    name = "method"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Give the methods of the contract."""
        return [CompletionItem(name, help=METHODS[name].summary) for name in METHODS if name.startswith(incomplete)]


class Parameter(Word):
    """NAME=VALUE: the value is JSON where it is JSON, else a string."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Read it, or tell the user what is wrong with it."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is no parameter: write NAME=VALUE, as vm=vm1 or regions='[…]'", param, ctx)
        try:
            return name, json.loads(text)
        except (ValueError, RecursionError):
            return name, text


@click.command()
@click.argument("method", type=MethodType())
@click.argument("params", metavar="NAME=VALUE...", type=Parameter(), nargs=-1)
@asks
async def call(vmmd: Client, screen: Screen, method: str, params: tuple[tuple[str, Any], ...]) -> None:
    """Call any method of the wire; a value that is JSON is sent as that, any other as a string.

    The result is written as JSON, indented without --json.
    """
    result = await vmmd.call(method, **dict(params))
    click.echo(json.dumps(result, indent=None if screen.as_json else 2))
