"""The run loop, the console, and loading. A file is read on a thread: a large symbol table takes seconds."""

import asyncio
import errno

from vmmd.api import machine
from vmmd.api.methods import METHODS
from vmmd.isa.elf import ElfError, Image, parse
from vmmd.machine.loader import load
from vmmd.machine.run_loop import StrayPolicy
from vmmd.rpc.handlers.registry import Core, handles, handles_at_once
from vmmd.rpc.handlers.translate import EarlyError, entry, room_bytes
from vmmd.rpc.progress import Progress
from vmmd.rpc.results import Encoded, pieces
from vmmd.rpc.scope import BodyScope


@handles_at_once("vm.start")
def _start(core: Core, params: machine.StartParams, _scope: BodyScope) -> None:
    core.machine(params).start(StrayPolicy(params.mmio))


@handles("vm.stop")
async def _stop(core: Core, params: machine.StopParams, _scope: BodyScope) -> None:
    await core.machine(params).stop()


@handles("vm.advance")
async def _advance(core: Core, params: machine.AdvanceParams, scope: BodyScope) -> machine.AdvanceResult:
    with Progress(scope.caller, params.instructions) as progress:
        advanced = await core.machine(params).advance(
            params.instructions,
            StrayPolicy(params.mmio),
            wait_ms=params.wait_ms,
            if_generation=params.if_generation,
            begun=progress.begin,
        )
    return machine.AdvanceResult(
        instructions=advanced.instructions, ended_by=advanced.ended_by.value, digest=advanced.digest
    )


@handles("vm.load_elf")
async def _load_elf(core: Core, params: machine.LoadElfParams, scope: BodyScope) -> Encoded:
    core.vm(params)
    try:
        image, result = await asyncio.to_thread(_read_elf, params.data)
    except ElfError as error:
        raise EarlyError(errno.EINVAL, f"data is no executable for T64: {error}", part=error.part) from None
    if len(result) > scope.reply_left:
        raise EarlyError(
            errno.E2BIG,
            f"{len(image.symbols)} symbols take {len(result)} bytes, and the reply has room for {scope.reply_left} "
            "(limits.reply_bytes); strip the file, or load it in a request of its own",
        )
    # Others were served while the file was read: the VM may be gone.
    await load(core.vm(params), image, params.vcpu, **entry(params))
    return result


def _read_elf(data: bytes) -> tuple[Image, Encoded]:
    """Read an executable; give it with the call's result."""
    image = parse(data)
    result = machine.LoadElfResult(entry=image.entry, symbols=dict(image.symbols))
    return image, Encoded(b"".join(pieces(METHODS["vm.load_elf"].result_adapter, result)))


@handles("vm.read_console")
async def _read_console(core: Core, params: machine.ReadConsoleParams, scope: BodyScope) -> machine.ConsoleResult:
    data, following = core.machine(params).read_console(params.since)
    # A reader goes on at `next`, so what does not fit into this reply is in the next one.
    shown = data[: room_bytes(scope)]
    return machine.ConsoleResult(data=shown, next=following - len(data) + len(shown))
