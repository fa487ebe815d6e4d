"""The main job, as anybody can run it: `python -m vmmd_client.demo`, `vmmctl replay` on the shipped recording."""

import sys
from collections.abc import Sequence

from .cli.exits import TERMINATED, Terminated
from .cli.replay import replay


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and give its exit status: 0 only if atomic shows nothing and plain shows something."""
    try:
        replay.main(arguments, prog_name="python -m vmmd_client.demo")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Terminated:
        return TERMINATED


if __name__ == "__main__":
    sys.exit(main())
