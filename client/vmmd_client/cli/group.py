"""The group `vmmctl`: its commands by name, each loaded when it is asked for, and how the process ends."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from .exits import INTERRUPTED, NO_READER, REFUSED, TERMINATED, CommandError, Ended, Terminated

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

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the options in front of the command; --help writes, so its reader may be gone too."""
        with _endings():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what ends it from outside is turned into an exit code before click has a word for it."""
        with _endings():
            result = super().invoke(ctx)
            sys.stdout.flush()
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


@contextlib.contextmanager
def _endings() -> Iterator[None]:
    """Turn what ends a command from outside into its exit code, and a stdout that takes nothing into a sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise Ended(INTERRUPTED) from None
    except Terminated:
        raise Ended(TERMINATED) from None
    except BrokenPipeError:
        _forget_stdout()
        raise Ended(NO_READER) from None
    except OSError as error:
        # Files have a name, and connections errors of the library's own: this is stdout.
        if error.filename is not None:
            raise
        _forget_stdout()
        raise CommandError(f"stdout cannot be written: {error.strerror}", REFUSED, kind="OSError") from None


def _forget_stdout() -> None:
    """Have the interpreter's last flush of stdout, when it ends, go nowhere: it would complain once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
