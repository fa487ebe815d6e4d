"""The command `vmmd`: its arguments and its exit codes.

0: it was asked to stop. 2: the arguments or the settings cannot be used. 3: it cannot listen where it was told to.
A daemon that dies of a signal in native code leaves a Python traceback of every thread on the standard error.
"""

import argparse
import asyncio
import faulthandler
import sys
from collections.abc import Sequence
from pathlib import Path

from vmmd import __version__
from vmmd.api.places import default_socket
from vmmd.config import ConfigError, load
from vmmd.daemon import serve
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
    given = {name: value for name in ("socket", "port") if (value := getattr(options, name)) is not None}
    try:
        asyncio.run(serve(load(options.config, given)))
    except ConfigError as error:
        sys.stderr.write(f"vmmd: the settings cannot be used:\n{error}\n")
        return EXIT_CONFIG
    except (BindError, ActivationError) as error:
        sys.stderr.write(f"vmmd: {error}\n")
        return EXIT_BIND
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


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
        "at. The log goes to the standard error. SIGTERM and SIGINT end it in order.",
        epilog="Settings: the command line wins over the environment (VMMD_PORT, VMMD_LIMITS__VMS, …), that over the "
        "file, that over the defaults; config/vmmd.toml documents them all. "
        "Exit codes: 0 it was asked to stop, 2 the settings cannot be used, 3 it cannot listen.",
    )
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
    return parser


if __name__ == "__main__":
    sys.exit(main())
