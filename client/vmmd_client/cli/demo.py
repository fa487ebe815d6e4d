"""`vmmctl demo`: the project's demonstration, `python -m vmmd_client.demo`."""

import click


@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> int:
    """Replay a recorded VMM's memory map updates under running vCPUs, plain and atomic.

    It is `vmmctl replay` without a recording, and takes its options: --url is a daemon that is there.
    """
    from .. import demo as shown  # noqa: PLC0415 -- it loads what no other command needs

    return shown.main(list(arguments))
