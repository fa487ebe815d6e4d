"""`vmmctl`: the client library on the command line.

A module holds a family of commands; `group` names them and loads them. Commands ask through the same library as any
other user's program, and refuse nothing that the daemon can judge better.
"""

from pathlib import Path

import click

from ..wire.limits import DEFAULT_TIMEOUT_S
from .group import Commands

_EPILOG = """
Numbers are decimal or 0x…, sizes also 64K, 2M, 1G. A slot is named by its id, or by an address in it (0x100000, @1M).

Exit codes: 0 done, 1 refused, 2 usage, 3 no daemon reached, 4 token wanted, 5 no answer, 130 Ctrl-C.
docs/vmmctl.md shows every command.
"""


@click.group(
    "vmmctl",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
    no_args_is_help=True,
)
@click.option(
    "--url",
    envvar="VMMD_URL",
    show_envvar=True,
    metavar="URL",
    help="The daemon: unix:///path/to/socket or http://host:port. Left out: the socket that vmmd serve makes.",
)
@click.option(
    "--token",
    envvar="VMMD_TOKEN",
    show_envvar=True,
    metavar="TOKEN",
    help="The token for http. Others can see it in ps: rather use the environment or --token-file.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A file that holds the token, as the daemon's token_file.",
)
@click.option(
    "--call-timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long each call may take.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Write JSON to stdout, and nothing else; the same behind a command."
)
@click.version_option(package_name="vmmd", prog_name="vmmctl")
def main(**_options: object) -> None:
    """Ask a vmmd daemon: VMs, memory slots, kicks, and atomic updates of the memory map."""
