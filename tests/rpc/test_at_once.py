"""Calls that are alone in their body and wait for nobody: answered at once, and as they would be otherwise."""

from __future__ import annotations

import errno
import inspect
import json
from typing import Any

import pytest

from tests.rpc.sockets import connected, serving
from tests.rpc.wire import PAGE, Wire, request, set_region
from vmmd.rpc.caller import Caller
from vmmd.rpc.dispatch import finished


def begin(wire: Wire, asked: dict[str, Any]) -> Any:
    return wire.dispatcher.begin(json.dumps(asked).encode(), Caller())


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("kvm.get_api_version", {}),
        ("kvm.check_extension", {"extension": "KVM_CAP_USER_MEMORY"}),
        ("vm.get_stats", {"vm": "vm1"}),
        ("vm.get_stats", {"vm": "another"}),
        ("vm.set_user_memory_region", {"vm": "another", "slot": 0}),
    ],
)
async def test_a_call_alone_and_one_in_a_batch_have_the_same_answer(
    wire: Wire, vm: str, method: str, params: dict[str, Any]
) -> None:
    assert vm == "vm1"
    asked = request(method, **params)
    [in_a_batch] = await wire.send([asked])
    assert await wire.send(asked) == in_a_batch


async def test_a_slot_is_changed_at_once_and_while_the_vm_is_held_the_call_waits_for_its_hold(
    wire: Wire, vm: str, memory: str
) -> None:
    asked = set_region(vm, 1, 2 * PAGE, PAGE, memory)
    assert json.loads(begin(wire, asked))["result"] == {"generation": 2}
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="mine")
    outside, inside = begin(wire, asked | {"id": 1}), begin(wire, set_region(vm, 1, 0, 0, 0, hold="mine"))
    assert inspect.isawaitable(outside)
    assert json.loads(await outside or b"")["error"]["code"] == errno.EBUSY
    assert inspect.isawaitable(inside)
    assert json.loads(await inside or b"")["result"] == {"generation": 3}


async def test_a_named_change_waits_for_the_first_of_its_name(wire: Wire, vm: str, memory: str) -> None:
    asked = set_region(vm, 1, 2 * PAGE, PAGE, memory, request_id="once")
    first, repeat = begin(wire, asked), begin(wire, asked)
    assert json.loads(await first or b"") == json.loads(await repeat or b"")
    assert (await wire.call("vm.get_memory_regions", vm=vm))["generation"] == 2


async def test_a_call_for_another_generation_is_refused_and_nothing_is_changed(
    wire: Wire, vm: str, memory: str
) -> None:
    answer = await wire.send(set_region(vm, 1, 2 * PAGE, PAGE, memory, if_generation=7))
    assert answer["error"]["code"] == errno.ESTALE
    assert (await wire.call("vm.get_memory_regions", vm=vm))["generation"] == 1


async def test_answers_at_once_come_in_the_order_of_their_frames(wire: Wire) -> None:
    async with serving(wire) as client, connected(client) as socket:
        asked = [request("kvm.get_api_version") | {"id": number} for number in range(100)]
        for one in asked:
            await socket.socket.send_str(json.dumps(one))
        answered = [json.loads((await socket.socket.receive(timeout=20)).data)["id"] for _ in asked]
    assert answered == list(range(100))


async def test_a_call_of_a_bunch_begins_before_the_next_one_that_is_answered_at_once(
    wire: Wire, vm: str, memory: str
) -> None:
    made = set_region(vm, 1, 2 * PAGE, PAGE, memory, request_id="made") | {"id": "made"}
    gone = set_region(vm, 1, 0, 0, 0) | {"id": "gone"}
    async with serving(wire) as client, connected(client) as socket:
        await socket.socket.send_str(json.dumps(made))
        await socket.socket.send_str(json.dumps(gone))
        assert (await socket.answer("made"))["result"] == {"generation": 2}
        assert (await socket.answer("gone"))["result"] == {"generation": 3}


async def test_a_call_can_be_cancelled_in_the_bunch_that_it_comes_in(wire: Wire, vm: str) -> None:
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="other")
    async with serving(wire) as client, connected(client) as socket:
        kick = await socket.ask("vm.kick_all_running_vcpus", vm=vm, hold="mine", wait_ms=5000)
        assert await socket.call("rpc.cancel", id=kick) == {"cancelled": True}
        assert (await socket.answer(kick))["error"]["data"]["errno"] == "ECANCELED"


@pytest.mark.parametrize("body", [' {"jsonrpc":"2.0","method":"kvm.get_api_version","id":1}\n', "1 2", "{} {}"])
async def test_space_around_a_body_is_nothing_and_a_second_value_is_an_error(wire: Wire, body: str) -> None:
    answer = json.loads(await finished(wire.dispatcher.begin(body.encode(), Caller())) or b"")
    assert answer.get("result") == 12 if "method" in body else answer["error"]["code"] == -32700
