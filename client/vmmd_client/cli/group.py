"""The group `vmmctl`: its commands by name, each loaded when it is asked for, and how the process ends."""

import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .exits import INTERRUPTED, NO_READER, TERMINATED, Ended, Terminated

COMMANDS: Mapping[str, str] = {
    "ping": "ping",
    "vm": "vm",
    "run": "run",
    "slots": "slots",
    "grow": "changes",
    "shrink": "changes",
    "split": "changes",
    "merge": "changes",
    "move": "changes",
    "flags": "changes",
    "dirty": "dirty",
    "memory": "memory",
    "regs": "regs",
    "kick": "kick",
    "resume": "kick",
    "stats": "stats",
    "events": "events",
    "top": "top",
    "trace-update": "trace_update",
    "asm": "asm",
    "disasm": "asm",
    "call": "call",
    "discover": "discover",
    "audit": "audit",
    "replay": "replay",
    "demo": "demo",
    "completion": "completion",
}
"""Command to module. The module has the command under its name, with _ for -."""


class Commands(click.Group):
    """A group whose commands are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command; None where there is none of that name."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        loaded = importlib.import_module(f".{module}", __package__)
        command: click.Command = getattr(loaded, cmd_name.replace("-", "_"))
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what ends it from outside is turned into an exit code before click has a word for it."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise Ended(INTERRUPTED) from None
        except Terminated:
            raise Ended(TERMINATED) from None
        except BrokenPipeError:
            # The interpreter flushes stdout once more when it ends, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Ended(NO_READER) from None
        return result

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> None:
        """Run the command line and end the process with its exit code; no exception is shown as a traceback."""
        extra["standalone_mode"] = False
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal that cannot show a character gets it as an escape, and no command dies of it.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            code = super().main(args, prog_name, **extra)
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except click.Abort:
            code = INTERRUPTED
        except Ended as ended:
            code = ended.exit_code
        sys.exit(code)
