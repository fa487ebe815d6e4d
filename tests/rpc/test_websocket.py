"""The WebSocket half: who is let in, calls side by side, what closes a connection, and what goes with it."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError

from tests.rpc.sockets import Socket, client_transport, connected, serving
from tests.rpc.wire import PAGE, Failed, Wire, is_failed, regions, request, set_region
from vmmd.rpc.server import TcpGuard
from vmmd.rpc.websocket import SOCKET_CLOSED

TOKEN = "a token of some length"  # noqa: S105  (the tests' own)
GUARD = TcpGuard(TOKEN, frozenset({"127.0.0.1"}), frozenset({"https://console.example"}))
LET_IN = {"Authorization": f"Bearer {TOKEN}"}


async def endless(wire: Wire, vm: str, memory: str) -> None:
    """Give the VM a vCPU that would run for good."""
    code = (await wire.call("isa.assemble", source="1: addi a0, a0, 1\n j 1b"))["code"]
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=code)
    await wire.call("vm.create_vcpu", vm=vm, vcpu=0)


async def runs(wire: Wire, vm: str) -> None:
    """Wait until the vCPU is inside KVM_RUN."""
    before = (await wire.call("vm.get_stats", vm=vm))["instructions"]
    while (await wire.call("vm.get_stats", vm=vm))["instructions"] == before:
        await asyncio.sleep(0)


async def until_free(wire: Wire, vm: str) -> None:
    """Wait until nobody holds the VM."""
    await wire.call("vm.map_host_memory", vm=vm, size=PAGE, wait_ms=1000)


async def test_a_frame_is_a_body_and_its_answer_is_a_frame(wire: Wire) -> None:
    async with serving(wire) as client, connected(client) as socket:
        assert await socket.call("kvm.get_api_version") == 12
        await socket.socket.send_str("[]")
        assert (await socket.answer(None))["error"]["code"] == -32600
        await socket.socket.send_str(json.dumps([request("kvm.get_api_version"), request("kvm.nothing")]))
        first, second = await socket.answer("batch")
        assert (first["result"], second["error"]["code"]) == (12, -32601)


async def test_nothing_is_said_to_a_notification(wire: Wire) -> None:
    async with serving(wire) as client, connected(client) as socket:
        await socket.tell("kvm.create_vm", name="quietly")
        assert [vm["name"] for vm in await socket.call("kvm.list_vms")] == ["quietly"]
        assert not socket.answers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        (LET_IN | {"Origin": "https://evil.example"}, 403),
        (LET_IN | {"Host": "evil.example"}, 421),
    ],
)
async def test_the_upgrade_is_guarded_as_every_request_is(wire: Wire, headers: dict[str, str], status: int) -> None:
    async with serving(wire, GUARD) as client:
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.ws_connect("/ws", headers=headers)
        assert refused.value.status == status


@pytest.mark.parametrize("origin", [{}, {"Origin": "https://console.example"}])
async def test_who_bears_the_token_and_comes_from_an_allowed_origin_is_let_in(
    wire: Wire, origin: dict[str, str]
) -> None:
    async with serving(wire, GUARD) as client, connected(client, headers=LET_IN | origin) as socket:
        assert await socket.call("kvm.get_api_version") == 12


async def test_a_kick_that_waits_does_not_block_the_resume_behind_it(wire: Wire, vm: str) -> None:
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="theirs")
    async with serving(wire) as client, connected(client) as socket:
        kick = await socket.ask("vm.kick_all_running_vcpus", vm=vm, hold="mine", wait_ms=1000)
        resume = await socket.ask("vm.resume_all_kicked_vcpus", vm=vm, hold="theirs")
        assert "result" in await socket.answer(resume)
        assert (await socket.answer(kick))["result"]["hold"] == "mine"
        await socket.call("vm.resume_all_kicked_vcpus", vm=vm, hold="mine")


async def test_a_second_hold_by_the_same_websocket_is_edeadlk_until_the_first_has_ended(wire: Wire, vm: str) -> None:
    async with serving(wire) as client, connected(client) as socket:
        await socket.call("vm.kick_all_running_vcpus", vm=vm, hold="first")
        second = await socket.answer(await socket.ask("vm.kick_all_running_vcpus", vm=vm, hold="second"))
        assert second["error"]["data"]["errno"] == "EDEADLK"
        assert "first" in second["error"]["message"]
        # The same name renews, and whoever knows it may end it.
        await socket.call("vm.kick_all_running_vcpus", vm=vm, hold="first")
        await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="first")
        await socket.call("vm.kick_all_running_vcpus", vm=vm, hold="second")
        await socket.call("vm.resume_all_kicked_vcpus", vm=vm, hold="second")


async def test_updates_by_batches_of_one_websocket_wait_for_each_other(wire: Wire, vm: str, memory: str) -> None:
    def update(slot: int) -> str:
        hold = f"update {slot}"
        return json.dumps(
            [
                request("vm.kick_all_running_vcpus", vm=vm, hold=hold),
                set_region(vm, slot, slot * PAGE, PAGE, memory, hold=hold),
                request("vm.resume_all_kicked_vcpus", vm=vm, hold=hold),
            ]
        )

    async with serving(wire) as client, connected(client) as socket:
        for slot in (4, 5, 6):
            await socket.socket.send_str(update(slot))
        for _ in range(3):
            assert not [entry for entry in await socket.answer("batch") if "error" in entry]
    assert {4, 5, 6} <= (await regions(wire, vm)).keys()


@pytest.mark.parametrize("abrupt", [True, False])
async def test_the_holds_of_a_websocket_that_goes_are_rolled_back_and_released(
    wire: Wire, vm: str, memory: str, abrupt: bool
) -> None:
    async with serving(wire) as client, connected(client) as socket:
        await socket.call("vm.kick_all_running_vcpus", vm=vm, hold="h", lease_ms=60_000)
        await socket.call("vm.set_user_memory_region", **set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h")["params"])
        assert 3 in await regions(wire, vm)
        if abrupt:
            socket.socket._response.connection.transport.abort()  # type: ignore[union-attr]
        else:
            await socket.socket.close()
        await until_free(wire, vm)
        assert 3 not in await regions(wire, vm)
        with pytest.raises(Failed) as failed:
            await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="h")
        assert failed.value.data["became"] == SOCKET_CLOSED


async def test_a_run_of_a_websocket_that_goes_is_interrupted_and_the_vcpu_is_free(
    wire: Wire, vm: str, memory: str
) -> None:
    await endless(wire, vm, memory)
    async with serving(wire) as client:
        async with connected(client) as socket:
            await socket.ask("vcpu.run", vm=vm, vcpu=0)
            await runs(wire, vm)
        run = request("vcpu.run", vm=vm, vcpu=0, timeout_ms=1)
        while is_failed(outcome := (await wire.batch(run))[0], "EBUSY"):
            await asyncio.sleep(0)
        assert is_failed(outcome, "EINTR")


async def test_a_batch_whose_websocket_goes_during_a_run_in_its_hold_is_rolled_back(
    wire: Wire, vm: str, memory: str
) -> None:
    other = (await wire.call("kvm.create_vm"))["vm"]
    hva = (await wire.call("vm.map_host_memory", vm=other, size=PAGE))["userspace_addr"]
    await wire.send(set_region(other, 0, 0, PAGE, hva))
    await endless(wire, other, hva)
    batch = [
        request("vm.kick_all_running_vcpus", vm=vm, hold="h", lease_ms=60_000),
        set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h"),
        request("vcpu.run", vm=other, vcpu=0),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="h"),
    ]
    async with serving(wire) as client, connected(client) as socket:
        await socket.socket.send_str(json.dumps(batch))
        await runs(wire, other)
        await socket.socket.close()
        await until_free(wire, vm)
    assert 3 not in await regions(wire, vm)


async def test_more_calls_than_may_be_under_way_are_refused_by_the_settings_name_and_a_resume_is_not(
    wire: Wire, vm: str
) -> None:
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="h")
    async with serving(wire, calls_in_flight=2) as client, connected(client) as socket:
        waiting = [await socket.ask("vm.map_host_memory", vm=vm, size=PAGE, wait_ms=1000) for _ in range(2)]
        refused = await socket.answer(await socket.ask("kvm.get_api_version"))
        assert refused["error"]["data"]["errno"] == "EAGAIN"
        assert "limits.calls_in_flight = 2" in refused["error"]["message"]
        await socket.call("vm.resume_all_kicked_vcpus", vm=vm, hold="h")
        for call in waiting:
            assert "result" in await socket.answer(call)
        assert await socket.call("kvm.get_api_version") == 12


@pytest.mark.parametrize(
    ("send", "code", "reason"),
    [
        (lambda socket: socket.socket.send_bytes(b"{}"), 1003, "text frames"),
        (lambda socket: socket.socket.send_str("1" * 1001), 1009, "limits.body_bytes = 1000"),
    ],
)
async def test_what_is_refused_closes_the_connection_with_a_code_and_a_reason(
    wire: Wire, send: Any, code: int, reason: str
) -> None:
    async with serving(wire, body_bytes=1000) as client, connected(client, autoclose=False) as socket:
        await send(socket)
        given, said = await socket.closed()
        assert given == code
        assert reason in said


async def test_a_frame_of_just_the_largest_size_is_taken(wire: Wire) -> None:
    async with serving(wire, body_bytes=1000) as client, connected(client) as socket:
        await socket.socket.send_str(json.dumps(request("kvm.get_api_version")).ljust(1000))
        assert (await socket.answer("kvm.get_api_version"))["result"] == 12


async def test_a_peer_that_does_not_answer_pings_is_gone(wire: Wire, vm: str) -> None:
    async with serving(wire, websocket_silence_ms=100) as client, connected(client, autoping=False) as socket:
        await socket.call("vm.kick_all_running_vcpus", vm=vm, hold="h", lease_ms=60_000)
        # Its pings are read, and stay unanswered.
        reading = asyncio.create_task(socket.socket.receive())
        await until_free(wire, vm)
        await reading


async def test_a_silent_peer_that_answers_pings_stays(wire: Wire) -> None:
    async with serving(wire, websocket_silence_ms=40) as client, connected(client, autoping=False) as socket:
        for _ in range(3):
            assert (await socket.socket.receive(timeout=20)).type is WSMsgType.PING
            await socket.socket.pong()
        await socket.socket.send_str(json.dumps(request("kvm.get_api_version")))
        assert (await socket.answer("kvm.get_api_version"))["result"] == 12


async def test_a_peer_that_begins_a_frame_and_does_not_end_it_is_gone(wire: Wire) -> None:
    async with serving(wire, websocket_silence_ms=100) as client, connected(client) as socket:
        client_transport(socket.socket).write(b"\x81\xfe\x03\xe8")  # the head of a masked text frame of 1,000 bytes
        message = await socket.socket.receive(timeout=20)
        assert message.type in {WSMsgType.CLOSED, WSMsgType.ERROR}


async def test_a_ping_is_answered_with_its_data(wire: Wire) -> None:
    async with serving(wire) as client, connected(client, autoping=False) as socket:
        await socket.socket.ping(b"are you there")
        pong = await socket.socket.receive(timeout=20)
        assert (pong.type, pong.data) == (WSMsgType.PONG, b"are you there")


async def test_a_daemon_that_goes_says_so(wire: Wire) -> None:
    async with serving(wire) as client:
        socket: Socket
        async with connected(client, autoclose=False) as socket:
            assert await socket.call("kvm.get_api_version") == 12
            ending = asyncio.create_task(client.server.close())
            assert await socket.closed() == (1001, "the daemon goes")
            await socket.socket.close()
            await ending


@pytest.mark.parametrize("call_id", ["1.5", "1.50", "-0.0", "1e3", "7", '"seven"'])
async def test_a_call_is_cancelled_by_its_id_to_the_digit(wire: Wire, vm: str, call_id: str) -> None:
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="open", lease_ms=60_000)
    kick = request("vm.kick_all_running_vcpus", vm=vm, hold="waits", wait_ms=60_000)
    cancel = json.dumps(request("rpc.cancel", id="ID")).replace('"ID"', call_id)
    async with serving(wire) as client, connected(client) as socket:
        await socket.socket.send_str(json.dumps(kick | {"id": "ID"}).replace('"ID"', call_id))
        await socket.socket.send_str(cancel)
        answers = [json.loads((await socket.socket.receive()).data) for _ in range(2)]
    assert {"cancelled": True} in [answer.get("result") for answer in answers]
    assert "ECANCELED" in json.dumps(answers)
