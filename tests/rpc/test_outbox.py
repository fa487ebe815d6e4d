"""Room for answers: whose turn it is, and what becomes of a peer that does not read."""

import asyncio
import errno
import json
from contextlib import suppress
from unittest.mock import Mock

from tests.rpc.sockets import client_transport, connected, serving
from tests.rpc.wire import PAGE, Failed, Wire, request
from vmmd.api.methods import METHODS
from vmmd.rpc.caller import Caller
from vmmd.rpc.dispatch import CallDone, Dispatcher, DispatchLimits, finished
from vmmd.rpc.outbox import Outbox, Room


async def test_what_has_no_room_waits_its_turn_and_small_ones_do_not_overtake() -> None:
    room = Room(100)
    await room.take(60)
    second, third = (asyncio.create_task(room.take(size)) for size in (50, 10))
    await asyncio.sleep(0)
    assert not second.done()
    assert not third.done()
    room.give_back(60)
    await asyncio.gather(second, third)


async def test_more_than_there_is_has_its_turn_alone() -> None:
    room = Room(100)
    await room.take(500)
    after = asyncio.create_task(room.take(1))
    await asyncio.sleep(0)
    assert not after.done()
    room.give_back(500)
    await after


async def test_who_is_cancelled_in_line_has_his_turn_all_the_same_and_nothing_stays_taken() -> None:
    room = Room(100)
    await room.take(100)
    waiting = asyncio.create_task(room.take(100))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    room.give_back(100)
    await waiting
    room.give_back(100)
    await room.take(100)


async def test_a_hold_that_others_wait_for_with_their_room_taken_has_its_own() -> None:
    outbox = Outbox(100)
    await outbox.outside.take(100)
    await outbox.inside.take(100)


async def test_a_peer_that_does_not_read_loses_its_connection_and_its_hold(wire: Wire, vm: str, memory: str) -> None:
    async with serving(wire, unread_ms=50, calls_in_flight=500) as client, connected(client) as socket:
        await socket.call("vm.kick_all_running_vcpus", vm=vm, hold="h", lease_ms=60_000)
        transport = client_transport(socket.socket)
        transport.pause_reading()
        is_held = True
        while is_held:
            # More and more, until it is more than the kernel's buffers take.
            if transport.get_write_buffer_size() == 0:
                with suppress(ConnectionError):
                    await socket.ask("vm.read_host_memory", vm=vm, userspace_addr=memory, length=40_000, hold="h")
            with suppress(Failed):
                await wire.call("vm.map_host_memory", vm=vm, size=PAGE)
                is_held = False
            await asyncio.sleep(0)


async def test_what_waited_for_room_is_not_read_for_a_caller_who_has_gone_and_what_changes_is_carried_out(
    wire: Wire, vm: str, memory: str
) -> None:
    outbox = Outbox(100)
    await outbox.outside.take(100)
    reads, fetches = Caller(outbox=outbox), Caller(outbox=outbox)
    read = request("vm.read_host_memory", vm=vm, userspace_addr=memory, length=8)
    fetched = request("vm.get_dirty_log", vm=vm, slot=9)
    answers = [
        asyncio.create_task(wire.send(read, reads)),
        asyncio.create_task(wire.send(fetched, fetches)),
    ]
    await asyncio.sleep(0)
    for caller in (reads, fetches):
        caller.leave()
    outbox.outside.give_back(100)
    nothing = await answers[0]
    reads.sent()
    assert nothing is None
    assert (await answers[1])["error"]["code"] == errno.ENOENT


async def test_what_is_not_read_for_a_caller_who_has_gone_is_noted_as_ended() -> None:
    noted: list[CallDone] = []

    async def execute(_method: object, _params: object, _scope: object) -> bytes:
        raise AssertionError("nothing is read")

    limits = DispatchLimits(batch_calls=1, reply_bytes=1 << 16, json_depth=16)
    dispatcher = Dispatcher(METHODS, execute, Mock(), limits, noted.extend)
    caller = Caller(outbox=Outbox(100))
    caller.leave()
    read = json.dumps(request("vm.read_host_memory", vm="vm1", userspace_addr=0, length=8)).encode()
    assert await finished(dispatcher.begin(read, caller)) is None
    [(method, vm, _, error, _)] = noted
    assert (method and method.name, vm, error and error.data) == (
        "vm.read_host_memory",
        "vm1",
        {"errno": "ECANCELED"},
    )
