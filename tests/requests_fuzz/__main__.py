"""`python -m tests.requests_fuzz`: ask a live daemon what nobody should, and say where its answer may not be.

Requests are made from the method table's own schemas, and most are broken: parameters, envelopes, bytes, batches. Every
answer has to be a proper JSON-RPC answer and none an internal error; the daemon has to live, and its other VMs have to
stay as they were. It prints what was asked and what came of it, and the first request with another answer. The exit
status is 1 where there is one, else 0.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.requests_fuzz.fuzz import Finding, Tally, fuzz
from tests.requests_fuzz.subject import subject
from vmmd.api.errors import PROTOCOL_ERRORS, errno_name

_COLUMNS = 5


def main(arguments: list[str] | None = None) -> int:
    """Run the requests and give the exit status."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"seed {options.seed}")
    tally = Tally()
    try:
        finding = asyncio.run(_run(options.seed, options.requests, tally, console))
    except KeyboardInterrupt:
        return 130
    console.print(summary(tally))
    if finding is None:
        console.print("no answer that may not be; the daemon lives, and its bystanders are as they were")
        return 0
    console.print(f"{finding.sentence}\n  sent:   {finding.body!r}\n  answer: {finding.answer}\n  seed {options.seed}")
    return 1


def summary(tally: Tally) -> str:
    """Give what was asked and what came of it, by method and by code."""
    methods = [f"{name} {count}" for name, count in tally.methods.most_common()]
    codes = [f"{_code(code)} {count}" for code, count in tally.codes.most_common()]
    return "\n".join(
        (
            f"{tally.requests} requests in {tally.bodies} bodies; {tally.given_up} were given up after waiting for a "
            f"guest; bystanders looked at {tally.looks} times",
            "by method:",
            *_rows(methods),
            "by answer:",
            *_rows(codes),
        )
    )


def _code(code: int) -> str:
    if code == 0:
        return "result"
    return str(code) if code in PROTOCOL_ERRORS else errno_name(code) or str(code)


def _rows(words: list[str]) -> list[str]:
    return [f"  {'  '.join(words[start : start + _COLUMNS])}" for start in range(0, len(words), _COLUMNS)]


async def _run(seed: str, requests: int, tally: Tally, console: Console) -> Finding | None:
    columns = (TextColumn("requests"), BarColumn(), TextColumn("{task.completed} of {task.total}"), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="vmmd-") as folder, Progress(*columns, console=console) as progress:
        task = progress.add_task("requests", total=requests)
        async with subject(Path(folder)) as asked:
            return await fuzz(
                asked, seed, requests, tally, lambda tally: progress.update(task, completed=tally.requests)
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.requests_fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, metavar="N", help="at least so many (100000)")
    parser.add_argument("--seed", default=secrets.token_hex(4), metavar="S", help="any text; left out: a fresh one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
