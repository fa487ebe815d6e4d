"""The command `vmmd`: its arguments and its exit codes.

0: it was asked to stop. 2: the arguments or the settings cannot be used. 3: it cannot listen where it was told to.
A signal that comes before it listens ends it at once, with 0 too, and the second one as it ends any program.
A daemon that dies of a signal in native code leaves a Python traceback of every thread on the standard error.
"""

import argparse
import asyncio
import faulthandler
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from vmmd import __version__, config_commands, log
from vmmd.api.places import default_socket
from vmmd.config import ConfigError, load
from vmmd.daemon import ENDING, serve
from vmmd.rpc.listen import BindError
from vmmd.systemd import ActivationError

EXIT_CONFIG = 2
EXIT_BIND = 3
# What a shell gives a program that SIGINT has ended.
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line behind the program's name; None: this process's.

    Returns:
        The exit code.
    """
    faulthandler.enable()
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ConfigError as error:
        sys.stderr.write(f"vmmd: the settings cannot be used:\n{error}\n")
        return EXIT_CONFIG
    except (BindError, ActivationError) as error:
        sys.stderr.write(f"vmmd: {error}\n")
        return EXIT_BIND
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _serve(options: argparse.Namespace) -> None:
    for number in ENDING:
        # Nothing is bound and nothing is made yet; once there is, the daemon takes its signals itself.
        signal.signal(number, _end_at_once)
    settings = load(options.config, _given(options))
    with log.to_stderr(settings.log.level, settings.log.format):
        asyncio.run(serve(settings))


def _end_at_once(_number: int, _frame: object) -> NoReturn:
    sys.exit(0)


def _show(options: argparse.Namespace) -> None:
    config_commands.show(options.config, _given(options), "json" if options.json else "toml")


def _check(options: argparse.Namespace) -> None:
    config_commands.check(options.file)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Give what the command line sets, by key; what lies in a table, in a dictionary of its own."""
    given: dict[str, Any] = {}
    for assignment in options.set:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: there is no value; write --set {key}=VALUE")
        *tables, name = key.split(".")
        table = given
        for step in tables:
            table = table.setdefault(step, {})
        table[name] = value
    return given | {name: value for name in ("socket", "port") if (value := getattr(options, name)) is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmmd", description="KVM's memslot and kick/resume ioctls in userspace, as JSON-RPC."
    )
    parser.add_argument("--version", action="version", version=f"vmmd {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "serve",
        help="run the daemon in the foreground",
        description="Run the daemon in the foreground. When it is ready it prints one line: the URLs that it answers "
        "at. The log goes to the standard error. SIGTERM, SIGINT and SIGHUP end it in order, a second one at once.",
        epilog="Settings: the command line wins over the environment (VMMD_PORT, VMMD_LIMITS__VMS, …), that over the "
        "file, that over the defaults; config/vmmd.toml documents them all. "
        "Exit codes: 0 it was asked to stop, 2 the settings cannot be used, 3 it cannot listen.",
    )
    command.set_defaults(run=_serve)
    _add_settings(command)
    configuration = commands.add_parser("config", help="show the settings, or check a file with settings")
    inner = configuration.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = inner.add_parser(
        "show",
        help="print the settings that serve would have, and where each comes from",
        description="Print the settings that serve would have with the same arguments, each with where it comes from: "
        "the command line, the environment, the file or the default. Secrets are hidden.",
        epilog="Exit codes: 0, or 2: the settings cannot be used.",
    )
    command.add_argument("--json", action="store_true", help="as JSON (default: as TOML)")
    command.set_defaults(run=_show)
    _add_settings(command)
    command = inner.add_parser(
        "check",
        help="check a file with settings",
        description="Check a file with settings as it stands; the environment is not looked at, and nothing is made.",
        epilog="Exit codes: 0 a daemon would start with it, 2 it would not.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="a TOML file")
    command.set_defaults(run=_check)
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with settings (default: none)")
    command.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help=f"the UNIX socket, made with mode 0600 (default here: {default_socket()})".replace("%", "%%"),
    )
    command.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="also listen on TCP, on 127.0.0.1; 0: any port that is free (default: no TCP)",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting by its key, as --set limits.vms=3; may be given more than once. Not for the token: "
        "others can read a command line",
    )


if __name__ == "__main__":
    sys.exit(main())
