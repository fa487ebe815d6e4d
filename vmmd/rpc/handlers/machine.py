"""The run loop and the console."""

from vmmd.api import machine
from vmmd.machine.run_loop import StrayPolicy
from vmmd.rpc.handlers.registry import Core, handles
from vmmd.rpc.handlers.translate import room_bytes
from vmmd.rpc.scope import BodyScope


@handles("vm.start")
async def _start(core: Core, params: machine.StartParams, _scope: BodyScope) -> None:
    core.machine(params).start(StrayPolicy(params.mmio))


@handles("vm.stop")
async def _stop(core: Core, params: machine.StopParams, _scope: BodyScope) -> None:
    await core.machine(params).stop()


@handles("vm.read_console")
async def _read_console(core: Core, params: machine.ReadConsoleParams, scope: BodyScope) -> machine.ConsoleResult:
    data, following = core.machine(params).read_console(params.since)
    # A reader goes on at `next`, so what does not fit into this reply is in the next one.
    shown = data[: room_bytes(scope)]
    return machine.ConsoleResult(data=shown, next=following - len(data) + len(shown))
