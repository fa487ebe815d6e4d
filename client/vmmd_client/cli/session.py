"""How a command asks: the daemon's address, the token, one connection, and an end that leaves nothing behind.

A command is a coroutine function behind `@asks`: it is given a connected client and a screen, and what it raises
becomes an exit code. SIGTERM and Ctrl-C cancel it, so its `finally` blocks and `async with` clean up.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

from vmmd.api.places import default_socket

from ..errors import VmmdError
from .exits import REFUSED, CommandError, Terminated, command_error
from .screen import Screen

if TYPE_CHECKING:
    from ..connection import Client

_COMPLETION_TIMEOUT_S = 2.0

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Session:
    """What every command knows before it asks.

    Attributes:
        url: the daemon's address.
        token: the bearer token for TCP, or None.
        timeout_s: how long each call may take, in seconds.
    """

    url: str
    token: str | None
    timeout_s: float

    @classmethod
    def of(cls, context: click.Context) -> Session:
        """Read the options that stand before the command's name.

        Raises:
            CommandError: the token file cannot be read.
        """
        options = context.find_root().params
        return cls(
            url=options.get("url") or default_url(),
            token=(options.get("token") or "").strip() or _token(options.get("token_file")),
            timeout_s=options["timeout_s"],
        )

    def connect(self) -> Client:
        """Make a client; `async with` connects it."""
        from ..connection import connect  # noqa: PLC0415 -- --help and completion load no client

        return connect(self.url, token=self.token, timeout_s=self.timeout_s)


def default_url() -> str:
    """Give the address of the daemon that this user's `vmmd serve` starts."""
    return f"unix://{quote(str(default_socket()))}"


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"the token file {file} cannot be read: {error}", 2, kind="UsageError") from None


Command = Callable[..., Coroutine[Any, Any, int | None]]


def asks(function: Command) -> Callable[..., int]:
    """Make a command's callback of a coroutine function, and give the command `--json`.

    The function gets a connected client, a screen, and the command's parameters; what it returns is the exit code,
    None for 0.
    """
    return asks_if(lambda **_: None)(function)


def asks_if(check: Callable[..., None]) -> Callable[[Command], Callable[..., int]]:
    """Do as `asks`, behind a check of the parameters together, which raises a click.UsageError and asks nobody."""

    def decorate(function: Command) -> Callable[..., int]:
        @click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout, and nothing else.")
        @click.pass_context
        @functools.wraps(function)
        def callback(context: click.Context, /, as_json: bool, **parameters: Any) -> int:
            check(**parameters)
            as_json = as_json or bool(context.find_root().params.get("as_json"))
            try:
                session = Session.of(context)
                return run(_connected(session, function, Screen(as_json=as_json), parameters)) or 0
            except VmmdError as error:
                refused = command_error(error)
            except OSError as error:
                if isinstance(error, BrokenPipeError) or error.filename is None:
                    raise
                refused = CommandError(f"{error.filename}: {error.strerror}", REFUSED, kind="OSError")
            except CommandError as error:
                refused = error
            refused.as_json = as_json
            raise refused from None

        return callback

    return decorate


async def _connected(session: Session, function: Command, screen: Screen, parameters: Mapping[str, Any]) -> int | None:
    async with session.connect() as client:
        return await function(client, screen, **parameters)


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine to its end; Ctrl-C and SIGTERM cancel it.

    Raises:
        KeyboardInterrupt: Ctrl-C came.
        Terminated: SIGTERM came.
    """
    signalled = False

    async def guarded() -> _Result:
        task = asyncio.current_task()

        def terminate() -> None:
            nonlocal signalled
            signalled = True
            if task is not None:
                task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await main

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if signalled:
            raise Terminated from None
        raise


def vm_ids(session: Session) -> list[tuple[str, str | None]]:
    """Give ids and names of the daemon's VMs, for completion: quickly, and nothing where anything is wrong."""

    async def ask() -> list[tuple[str, str | None]]:
        async with replace(session, timeout_s=_COMPLETION_TIMEOUT_S).connect() as client:
            return [(info.vm, info.name) for info in await client.kvm.list_vms()]

    try:
        return asyncio.run(ask())
    except VmmdError:
        return []


def stdout_is_terminal() -> bool:
    """Tell whether somebody looks at stdout."""
    return sys.stdout.isatty()
