"""The group `vmmctl`: its commands by name, each loaded when it is asked for, and how the process ends."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from .exits import INTERRUPTED, NO_READER, REFUSED, TERMINATED, CommandError, Ended, Terminated

COMMANDS: Mapping[str, tuple[str, str]] = {
    "ping": ("ping", "Ask whether the daemon answers, and which it is."),
    "vm": ("vm", "Make, list, start, advance, stop and destroy VMs."),
    "run": ("run", "Run a guest, T64 source or an ELF file, with its console."),
    "slots": ("slots", "Show the memslots: a table, and a map."),
    "grow": ("changes", "Make a slot larger at its end, in place."),
    "shrink": ("changes", "Make a slot smaller at its end."),
    "split": ("changes", "Make two slots of one, at a guest-physical address."),
    "merge": ("changes", "Make one slot of neighbours, under the first one's id."),
    "move": ("changes", "Put a slot at another guest-physical address."),
    "flags": ("changes", "Switch a slot's flags on or off."),
    "dirty": ("dirty", "Fetch dirty pages, of slots or of guest-physical ranges."),
    "memory": ("memory", "Read, write and dump memory; map and unmap host memory."),
    "regs": ("regs", "Show and set a vCPU's registers."),
    "kick": ("kick", "Kick all running vCPUs: open or renew a hold, or kick raw."),
    "resume": ("kick", "Resume all kicked vCPUs: end a hold, or every raw kick."),
    "stats": ("stats", "Show a VM's counters, and each vCPU's."),
    "events": ("events", "Follow what happens, of one VM or of all."),
    "top": ("top", "Show what every VM does a second, live."),
    "trace-update": ("trace_update", "Trace an update call by call, and what vCPUs see of it."),
    "asm": ("asm", "Assemble T64 source."),
    "disasm": ("asm", "Write code as T64 source."),
    "call": ("call", "Call any method of the wire."),
    "discover": ("discover", "List the daemon's methods, or tell one."),
    "audit": ("audit", "Find the windows that a VMM left open, in recordings."),
    "replay": ("replay", "Replay recorded updates under vCPUs, plain and atomic."),
    "demo": ("demo", "Replay the recording that comes with vmmd."),
    "completion": ("completion", "Write the script that completes vmmctl in a shell."),
}
"""Command to module, and to the sentence that `--help` and completion show of it without loading it. The module has the
command under its name, with _ for -."""


class Commands(click.Group):
    """A group whose commands are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        loaded = importlib.import_module(f".{module}", __package__)
        command: click.Command = getattr(loaded, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands, and load none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, says) for name, (_, says) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Give the commands that begin so, and the group's own options, and load no command."""
        named = [(name, says) for name, (_, says) in COMMANDS.items() if name.startswith(incomplete)]
        options = super(click.Group, self).shell_complete(ctx, incomplete)
        return [*(CompletionItem(name, help=says) for name, says in named), *options]

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
