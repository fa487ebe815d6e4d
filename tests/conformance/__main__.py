"""`python -m tests.conformance`: ask this machine's KVM and vmmd the same random sequences, and say where they differ.

It prints what it tried, and each difference as the shortest sequence that shows it. The exit status is 0 where there is
none, and also where there is no KVM to ask, which it says in one line; it is 1 where they differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.conformance.askable import Askable
from tests.conformance.compare import Tally
from tests.conformance.generate import sequences
from tests.conformance.host import Host, NotAskableError, ask_host
from tests.conformance.kernel import Kvm
from tests.conformance.live import Found, Live, MakeSubject
from tests.conformance.oracle import ask_kernel
from tests.conformance.subjects import in_process, over_rpc
from vmmd.isa.engine import ENGINES
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd_client import connect
from vmmd_client.local_daemon import local_daemon

_MOST_FOUND = 5
_RPC_AT_ONCE = 8


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison and give its exit status."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        host = ask_host()
    except NotAskableError as error:
        console.print(f"conformance: not asked: {error}")
        return 0
    console.print(_said(host))
    console.print(f"seed {options.seed}, {options.sequences} sequences, {'RPC' if options.rpc else options.engine}")
    tally = Tally()
    try:
        found = asyncio.run(_compare(options, Askable(host), tally, console))
    except KeyboardInterrupt:
        return 130
    _report(tally, found, console)
    return 1 if found else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--sequences", type=_count, default=2000, metavar="N", help="how many to ask (2000)")
    parser.add_argument("--seed", default=secrets.token_hex(4), metavar="S", help="any text; left out: a fresh one")
    parser.add_argument("--rpc", action="store_true", help="ask vmmd through a daemon's RPC, not in process")
    parser.add_argument("--engine", choices=ENGINES, default="compiled", help="in process: which engine (compiled)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


async def _compare(options: argparse.Namespace, askable: Askable, tally: Tally, console: Console) -> list[Found]:
    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    vmmd = _over_rpc() if options.rpc else _in_process(options.engine)
    with Kvm() as kvm, Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("asking", total=options.sequences)
        async with vmmd as make_subject:
            live = Live(partial(ask_kernel, kvm, askable.windows), make_subject, askable)
            return await live.ask_all(
                sequences(askable, options.seed, options.sequences),
                tally,
                at_once=_RPC_AT_ONCE if options.rpc else 1,
                most_found=_MOST_FOUND,
                asked=partial(progress.advance, task),
            )


@asynccontextmanager
async def _in_process(engine: str) -> AsyncIterator[MakeSubject]:
    limits = Limits(guest_memory_bytes=1 << 30, vms=4, vcpus_per_vm=1)
    system = System(engine=engine, cache_dir=None, workers=None, limits=limits)
    try:
        yield partial(in_process, system)
    finally:
        await system.close()


@asynccontextmanager
async def _over_rpc() -> AsyncIterator[MakeSubject]:
    async with local_daemon() as url, connect(url) as vmmd:
        yield partial(over_rpc, vmmd)


def _said(host: Host) -> str:
    return (
        f"this machine's KVM: {host.slots} slots in {host.spaces} address space(s), slots up to 2^{host.slot_bits}, "
        f"guests up to 2^{host.guest_bits}, userspace up to {host.userspace_end:#x}, dirty log modes "
        f"{host.log_modes:#x}, {'with' if host.readonly else 'without'} read-only slots; "
        f"slots of up to {host.affordable_pages} pages are made"
    )


def _report(tally: Tally, found: list[Found], console: Console) -> None:
    answers: dict[str, list[str]] = defaultdict(list)
    for (operation, answer), count in sorted(tally.answers.items(), key=lambda item: (item[0][0], -item[1])):
        answers[operation].append(f"{answer} {count}")
    for operation, counts in answers.items():
        console.print(f"  {operation:<23} {', '.join(counts)}")
    console.print(f"  changes of slots        {', '.join(f'{kind} {n}' for kind, n in tally.changes.most_common())}")
    console.print(
        f"{tally.sequences} sequences, {tally.operations} operations; after {tally.refused} refused calls both were "
        f"found as before ({tally.probes} probes); {tally.left_out} accesses left out, where T64's rule is its own; "
        f"{tally.freedom} logs with bits that the kernel is free to set"
    )
    for each in found:
        _report_difference(each, console)
    console.print(f"{len(found) or 'no'} difference{'s' if len(found) != 1 else ''}")


def _report_difference(found: Found, console: Console) -> None:
    times = "" if found.comes_again else ", seen once: a second asking did not show it"
    console.print(f"\ndifference in sequence {found.sequence['id']}{times}; the shortest that shows it:")
    for index, operation in enumerate(found.shortest["ops"]):
        console.print(f"  {index}: {json.dumps(operation)}", markup=False)
    console.print(str(found.difference), markup=False)


if __name__ == "__main__":
    sys.exit(main())
