"""Measures vmmd, and prints tables: `python -m tests.benchmarks [NAME…]`, by default all.

Figures are medians of several runs in one process; what matters are the ratios in one table.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import (
    cold_code,
    guests,
    holds,
    interpreter,
    logs,
    memory_goes_back,
    memslots,
    never_torn,
    pauses,
    rpc,
    scaling,
    soak,
    stress_without_a_hold,
    translating,
)

BENCHMARKS: dict[str, Callable[[], Coroutine[Any, Any, Table]]] = {
    "interpreter": interpreter.measure,
    "guests": guests.measure,
    "cold": cold_code.measure,
    "scaling": scaling.measure,
    "translating": translating.measure,
    "holds": holds.measure,
    "pauses": pauses.measure,
    "rpc": rpc.measure,
    "memslots": memslots.measure,
    "logs": logs.measure,
    "torn": never_torn.measure,
    "changes": stress_without_a_hold.measure,
    "memory": memory_goes_back.measure,
    "soak": soak.measure,
}


def main() -> None:
    """Run what is named, or everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], metavar="NAME", help=", ".join(BENCHMARKS))
    lasts = "how long the soak lasts (default: %(default)g)"
    parser.add_argument("--seconds", type=float, default=soak.DEFAULT_S, metavar="N", help=lasts)
    parser.add_argument("--short", action="store_true", help="of the benchmark rpc only the calls side by side")
    options = parser.parse_args()
    # Where nobody watches, tables are as wide as they want to be.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    chosen = {"soak": partial(soak.measure, options.seconds), "rpc": partial(rpc.measure, short=options.short)}
    for name in options.names or BENCHMARKS:
        measure = chosen.get(name, BENCHMARKS[name])
        console.print(asyncio.run(measure()))


if __name__ == "__main__":
    main()
