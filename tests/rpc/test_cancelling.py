"""Calls that end before their time: by a deadline, by rpc.cancel, or since nobody waits any more."""

import asyncio
import json

import pytest

from tests.rpc.sockets import connected, serving
from tests.rpc.test_websocket import endless, runs, until_free
from tests.rpc.wire import PAGE, Failed, Wire, is_failed, regions, request, set_region
from vmmd.rpc.caller import Caller

FOR_EVER = 10**15


async def long_vm(wire: Wire) -> str:
    """Make a cooperative VM whose vCPU counts for good."""
    vm = (await wire.call("kvm.create_vm", execution="cooperative"))["vm"]
    hva = (await wire.call("vm.map_host_memory", vm=vm, size=PAGE))["userspace_addr"]
    await wire.send(set_region(vm, 0, 0, PAGE, hva))
    await endless(wire, vm, hva)
    return vm


@pytest.mark.parametrize("call", ["vcpu.run", "vm.advance", "vm.map_host_memory", "vm.kick_all_running_vcpus"])
async def test_a_call_ends_at_its_deadline_and_leaves_nothing_behind(
    wire: Wire, vm: str, memory: str, call: str
) -> None:
    await endless(wire, vm, memory)
    long = await long_vm(wire)
    params = {
        "vcpu.run": {"vm": vm, "vcpu": 0},
        "vm.advance": {"vm": long, "instructions": FOR_EVER},
        "vm.map_host_memory": {"vm": vm, "size": PAGE, "wait_ms": 1000},
        "vm.kick_all_running_vcpus": {"vm": vm, "hold": "mine", "wait_ms": 1000},
    }[call]
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="theirs")
    (outcome,) = await wire.batch(request(call, **params, deadline_ms=20))
    assert is_failed(outcome, "ETIMEDOUT")
    # Its own wait would have ended otherwise.
    assert "deadline_ms" in outcome.message
    await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="theirs")
    # Nobody is held, and nothing runs.
    await wire.call("vm.map_host_memory", vm=vm, size=PAGE)
    assert is_failed((await wire.batch(request("vcpu.run", vm=vm, vcpu=0, timeout_ms=1)))[0], "EINTR")
    assert (await wire.call("vm.advance", vm=long, instructions=5))["instructions"] == 5


async def test_what_has_not_begun_at_its_deadline_is_not_begun(wire: Wire, vm: str, memory: str) -> None:
    await endless(wire, vm, memory)
    run, late, other = await wire.batch(
        request("vcpu.run", vm=vm, vcpu=0, timeout_ms=50),
        request("vm.create_vcpu", vm=vm, vcpu=1, deadline_ms=10),
        request("vm.create_vcpu", vm=vm, vcpu=2),
    )
    assert is_failed(run, "EINTR")
    assert is_failed(late, "ETIMEDOUT")
    assert other == {"vcpu": 2}
    assert (await wire.call("kvm.list_vms"))[0]["vcpus"] == [0, 2]


async def test_a_deadline_inside_a_hold_fails_it(wire: Wire, vm: str, memory: str) -> None:
    long = await long_vm(wire)
    outcomes = await wire.batch(
        request("vm.kick_all_running_vcpus", vm=vm, hold="h"),
        set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h"),
        request("vm.advance", vm=long, instructions=FOR_EVER, deadline_ms=10),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="h"),
    )
    assert is_failed(outcomes[-1], "ETIMEDOUT")
    assert outcomes[-1].data["rolled_back"]
    assert 3 not in await regions(wire, vm)


async def test_a_call_of_a_websocket_is_cancelled_by_its_id_and_others_go_on(wire: Wire, vm: str, memory: str) -> None:
    await endless(wire, vm, memory)
    async with serving(wire) as client, connected(client) as socket:
        run = await socket.ask("vcpu.run", vm=vm, vcpu=0)
        await runs(wire, vm)
        assert await socket.call("rpc.cancel", id=run) == {"cancelled": True}
        with pytest.raises(Failed, match=r"rpc\.cancel") as failed:
            Wire.result(await socket.answer(run))
        assert failed.value.data["errno"] == "ECANCELED"
        assert await socket.call("rpc.cancel", id=run) == {"cancelled": False}
        assert is_failed((await wire.batch(request("vcpu.run", vm=vm, vcpu=0, timeout_ms=1)))[0], "EINTR")


async def test_a_cancelled_call_of_a_batch_is_not_begun_and_the_rest_is_carried_out(
    wire: Wire, vm: str, memory: str
) -> None:
    await endless(wire, vm, memory)
    batch = [
        request("vcpu.run", vm=vm, vcpu=0) | {"id": "run"},
        request("vm.create_vcpu", vm=vm, vcpu=1) | {"id": "one"},
        request("vm.create_vcpu", vm=vm, vcpu=2) | {"id": "two"},
    ]
    async with serving(wire) as client, connected(client) as socket:
        await socket.socket.send_str(json.dumps(batch))
        await runs(wire, vm)
        await socket.tell("rpc.cancel", id="one")
        await socket.tell("rpc.cancel", id="run")
        run, one, two = await socket.answer("batch")
        assert run["error"]["data"]["errno"] == one["error"]["data"]["errno"] == "ECANCELED"
        assert two["result"] == {"vcpu": 2}


@pytest.mark.parametrize("call_id", [True, None, [1]])
async def test_what_is_no_id_of_a_call_that_can_be_cancelled_is_refused(wire: Wire, call_id: object) -> None:
    async with serving(wire) as client, connected(client) as socket:
        refused = await socket.answer(await socket.ask("rpc.cancel", id=call_id))
        assert refused["error"]["code"] == -32602


async def test_over_http_a_call_is_cancelled_by_closing_and_the_error_says_so(wire: Wire) -> None:
    with pytest.raises(Failed, match="closing its connection") as failed:
        await wire.call("rpc.cancel", id=1)
    assert failed.value.data["errno"] == "EOPNOTSUPP"


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("call", ["vcpu.run", "vm.advance"])
async def test_a_run_over_http_whose_client_goes_is_interrupted(
    wire: Wire, vm: str, memory: str, call: str, in_batch: bool
) -> None:
    await endless(wire, vm, memory)
    long = await long_vm(wire)
    params = {"vm": vm, "vcpu": 0} if call == "vcpu.run" else {"vm": long, "instructions": FOR_EVER}
    body = request(call, **params)
    async with serving(wire) as client:
        asking = asyncio.create_task(client.post("/rpc", json=[body] if in_batch else body))
        await runs(wire, params["vm"])
        asking.cancel()
        probe = request(call, **(params | ({"timeout_ms": 1} if call == "vcpu.run" else {"instructions": 5})))
        while is_failed(outcome := (await wire.batch(probe))[0], "EBUSY"):
            await asyncio.sleep(0)
    assert is_failed(outcome, "EINTR") if call == "vcpu.run" else outcome["instructions"] == 5


async def test_the_rest_of_a_batch_whose_caller_goes_is_carried_out_and_waits_for_nothing(
    wire: Wire, vm: str, memory: str
) -> None:
    await endless(wire, vm, memory)
    caller = Caller()
    batch = [
        request("vcpu.run", vm=vm, vcpu=0),
        set_region(vm, 0, 0, 0, 0),
        set_region(vm, 3, 8 * PAGE, PAGE, memory),
        request("vcpu.run", vm=vm, vcpu=0),
    ]
    sent = asyncio.create_task(wire.send(batch, caller))
    await runs(wire, vm)
    caller.leave()
    first, deleted, created, second = await sent
    assert first["error"]["data"]["errno"] == second["error"]["data"]["errno"] == "ECANCELED"
    assert "result" in deleted
    assert "result" in created
    assert (await regions(wire, vm)).keys() == {3}


async def test_a_caller_who_went_while_a_call_was_carried_through_is_gone_for_the_next_one(
    wire: Wire, vm: str, memory: str
) -> None:
    await endless(wire, vm, memory)
    other = (await wire.call("kvm.create_vm"))["vm"]
    gone = False
    caller = Caller(has_gone=lambda: gone)
    batch = [request("kvm.destroy_vm", vm=other), request("vcpu.run", vm=vm, vcpu=0)]
    sent = asyncio.create_task(wire.send(batch, caller))
    await asyncio.sleep(0)
    # As the server does it, when a connection is lost.
    gone = True
    sent.cancel()
    destroyed, run = await sent
    assert destroyed["result"] is None
    assert run["error"]["data"]["errno"] == "ECANCELED"


async def test_a_hold_that_a_batch_leaves_open_is_rolled_back_where_its_caller_went(
    wire: Wire, vm: str, memory: str
) -> None:
    other = (await wire.call("kvm.create_vm"))["vm"]
    hva = (await wire.call("vm.map_host_memory", vm=other, size=PAGE))["userspace_addr"]
    await wire.send(set_region(other, 0, 0, PAGE, hva))
    await endless(wire, other, hva)
    caller = Caller()
    batch = [
        request("vm.kick_all_running_vcpus", vm=vm, hold="h", lease_ms=60_000),
        set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h"),
        request("vcpu.run", vm=other, vcpu=0),
    ]
    sent = asyncio.create_task(wire.send(batch, caller))
    await runs(wire, other)
    caller.leave()
    await sent
    await until_free(wire, vm)
    assert 3 not in await regions(wire, vm)


async def test_destroying_a_vm_is_carried_through_whoever_goes(wire: Wire, vm: str, memory: str) -> None:
    await endless(wire, vm, memory)
    run = asyncio.create_task(wire.send(request("vcpu.run", vm=vm, vcpu=0)))
    await runs(wire, vm)
    caller = Caller()
    destroying = asyncio.create_task(wire.send(request("kvm.destroy_vm", vm=vm), caller))
    await asyncio.sleep(0)
    caller.leave()
    assert Wire.result(await destroying) is None
    assert is_failed(_failed(await run), "ECANCELED")
    assert await wire.call("kvm.list_vms") == []


def _failed(answer: dict[str, dict[str, object]]) -> Failed:
    return Failed(answer["error"])


async def test_an_advance_that_takes_long_tells_how_far_it_is(wire: Wire) -> None:
    vm = await long_vm(wire)
    async with serving(wire) as client, connected(client) as socket:
        call = await socket.ask("vm.advance", vm=vm, instructions=FOR_EVER)
        first = await socket.notified("progress")
        second = await socket.notified("progress")
        assert (first["id"], first["total"]) == (call, FOR_EVER)
        assert 0 < first["done"] < second["done"]
        # Others are answered meanwhile.
        assert await socket.call("kvm.get_api_version") == 12
        await socket.tell("rpc.cancel", id=call)
        assert "error" in await socket.answer(call)


@pytest.mark.parametrize(
    ("bad", "fails"),
    [
        (set_region("VM", 3, 8 * PAGE, "no number", 0, hold="h"), True),
        (request("vm.set_user_memory_regoin", vm="VM", hold="h"), True),
        (request("vm.set_user_memory_region", vm="VM", hold="another"), False),
        (request("vm.kick_all_running_vcpus", vm="VM", hold="h", lease_ms="long"), False),
        (request("vm.resume_all_kicked_vcpus", vm="VM", hold="h", nothing=1), False),
    ],
)
async def test_a_call_that_is_refused_for_its_parameters_fails_the_open_hold_that_it_names(
    wire: Wire, vm: str, memory: str, bad: dict[str, dict[str, object]], fails: bool
) -> None:
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="h")
    await wire.send(set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h"))
    bad["params"]["vm"] = vm
    assert (await wire.send(bad))["error"]["code"] in {-32601, -32602}
    (outcome,) = await wire.batch(request("vm.resume_all_kicked_vcpus", vm=vm, hold="h"))
    assert isinstance(outcome, Failed) == fails
    assert (3 in await regions(wire, vm)) != fails
