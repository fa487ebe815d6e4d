"""Batches with holds over the wire: one update or none, and `if_generation`."""

import asyncio
import json
from typing import Any

import pytest

from tests.rpc.wire import PAGE, Failed, Wire, generation, is_failed, regions, request, set_region
from vmmd.rpc.caller import Caller


async def test_a_batch_of_kick_changes_and_resume_is_one_update(wire: Wire, vm: str, memory: str) -> None:
    outcomes = await wire.batch(
        request("vm.kick_all_running_vcpus", vm=vm, hold="h"),
        set_region(vm, 0, 0, 0, 0, hold="h"),
        set_region(vm, 1, 0, PAGE, memory, hold="h"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="h"),
    )
    kick, _, created, resume = outcomes
    assert (kick["hold"], kick["kicked"]) == ("h", 0)
    assert resume["generation"] >= created["generation"] > kick["generation"]
    assert resume["pause_ns"] > 0
    assert list(await regions(wire, vm)) == [1]


BROKEN = {
    "a call that the core refuses": set_region("VM", 1, PAGE, PAGE, 0, hold="h"),
    "a call with a wrong parameter": set_region("VM", -1, PAGE, PAGE, 0, hold="h"),
    "a method that does not exist": request("vm.no_such_method"),
    "what is no request": {"jsonrpc": "2.0"},
    "a notification that fails": {"jsonrpc": "2.0", "method": "vm.stop", "params": {"vm": "nobody"}},
    "a call on another vm": request("vm.get_stats", vm="nobody"),
}


@pytest.mark.parametrize("broken", list(BROKEN.values()), ids=list(BROKEN))
@pytest.mark.parametrize("place", [1, 2])
async def test_one_failed_entry_rolls_the_whole_batch_back(
    wire: Wire, vm: str, memory: str, broken: dict[str, Any], place: int
) -> None:
    before = await regions(wire, vm)
    entries = [
        request("vm.kick_all_running_vcpus", vm=vm, hold="h"),
        set_region(vm, 2, 8 * PAGE, PAGE, memory, hold="h"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="h"),
    ]
    entries.insert(place, json.loads(json.dumps(broken).replace('"VM"', json.dumps(vm))))
    outcomes = await wire.batch(*entries)
    assert isinstance(outcomes[-1], Failed)
    assert outcomes[-1].data["rolled_back"] is True
    assert await regions(wire, vm) == before
    Wire.result(await wire.send(set_region(vm, 2, 8 * PAGE, PAGE, memory)))


async def test_an_error_before_the_kick_fails_the_hold_too(wire: Wire, vm: str, memory: str) -> None:
    outcomes = await wire.batch(
        request("vm.get_stats", vm="nobody"),
        request("vm.kick_all_running_vcpus", vm=vm, hold="h"),
        set_region(vm, 2, 8 * PAGE, PAGE, memory, hold="h"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="h"),
    )
    assert is_failed(outcomes[2], "ECANCELED")
    assert isinstance(outcomes[3], Failed)
    assert (outcomes[3].data["errno"], outcomes[3].data["rolled_back"]) == ("EBADF", True)


async def test_a_second_hold_in_the_same_batch_is_a_deadlock_and_both_are_given_back(
    wire: Wire, vm: str, memory: str
) -> None:
    outcomes = await wire.batch(
        request("vm.kick_all_running_vcpus", vm=vm, hold="one"),
        request("vm.kick_all_running_vcpus", vm=vm, hold="two"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="one"),
        request("vm.kick_all_running_vcpus", vm=vm, hold="three"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="three"),
    )
    assert is_failed(outcomes[1], "EDEADLK")
    assert isinstance(outcomes[2], Failed)
    assert outcomes[2].data["rolled_back"] is True
    assert not isinstance(outcomes[4], Failed)
    await wire.call("vm.map_host_memory", vm=vm, size=PAGE)


async def test_a_failed_call_fails_its_own_hold_and_no_later_one(wire: Wire, vm: str, memory: str) -> None:
    outcomes = await wire.batch(
        request("vm.kick_all_running_vcpus", vm=vm, hold="one"),
        set_region(vm, 2, PAGE, PAGE, memory, hold="one"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="one"),
        request("vm.kick_all_running_vcpus", vm=vm, hold="two"),
        set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="two"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="two"),
    )
    assert [isinstance(outcome, Failed) for outcome in outcomes] == [False, True, True, False, False, False]
    assert list(await regions(wire, vm)) == [0, 3]


async def test_what_the_check_refuses_fails_every_hold_of_the_batch(wire: Wire, vm: str, memory: str) -> None:
    before = await regions(wire, vm)
    outcomes = await wire.batch(
        request("vm.kick_all_running_vcpus", vm=vm, hold="one"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="one"),
        request("vm.kick_all_running_vcpus", vm=vm, hold="two"),
        set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="two"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="two"),
        request("vm.no_such_method"),
    )
    assert is_failed(outcomes[1], "ENOTTY")
    assert is_failed(outcomes[4], "ENOTTY")
    assert await regions(wire, vm) == before


async def test_one_batch_may_hold_twice_one_after_the_other(wire: Wire, vm: str, memory: str) -> None:
    outcomes = await wire.batch(
        request("vm.kick_all_running_vcpus", vm=vm, hold="one"),
        request("vm.kick_all_running_vcpus", vm=vm, hold="one"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="one"),
        request("vm.kick_all_running_vcpus", vm=vm, hold="two"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="two"),
    )
    assert not [outcome for outcome in outcomes if isinstance(outcome, Failed)]


async def test_a_hold_spans_bodies_and_keeps_others_out(wire: Wire, vm: str, memory: str) -> None:
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="h")
    with pytest.raises(Failed) as failed:
        await wire.call("vm.map_host_memory", vm=vm, size=PAGE)
    assert failed.value.data["errno"] == "EBUSY"
    Wire.result(await wire.send(set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h")))
    await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="h")
    assert 3 in await regions(wire, vm)


async def test_a_table_that_moved_on_is_estale_for_every_method_that_changes_it(
    wire: Wire, vm: str, memory: str
) -> None:
    now = await generation(wire, vm)
    for stale in (now - 1, now + 1, hex(now + 1)):
        with pytest.raises(Failed) as failed:
            Wire.result(await wire.send(set_region(vm, 3, 8 * PAGE, PAGE, memory, if_generation=stale)))
        assert (failed.value.data["errno"], failed.value.data["generation"]) == ("ESTALE", now)
    assert await generation(wire, vm) == now
    Wire.result(await wire.send(set_region(vm, 3, 8 * PAGE, PAGE, memory, if_generation=now)))


async def test_a_stale_kick_opens_nothing_and_cancels_its_batch(wire: Wire, vm: str, memory: str) -> None:
    now = await generation(wire, vm)
    outcomes = await wire.batch(
        request("vm.kick_all_running_vcpus", vm=vm, hold="h", if_generation=now + 1),
        set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="h"),
    )
    assert is_failed(outcomes[0], "ESTALE")
    assert all(isinstance(outcome, Failed) for outcome in outcomes)
    assert await generation(wire, vm) == now


async def test_a_stale_call_inside_a_hold_fails_the_hold(wire: Wire, vm: str, memory: str) -> None:
    now = await generation(wire, vm)
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="h")
    with pytest.raises(Failed):
        Wire.result(await wire.send(set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h", if_generation=now + 1)))
    with pytest.raises(Failed) as failed:
        await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="h")
    assert (failed.value.data["errno"], failed.value.data["rolled_back"]) == ("ESTALE", True)


async def test_a_kick_whose_table_moved_on_while_it_waited_gives_its_hold_back(
    wire: Wire, vm: str, memory: str
) -> None:
    now = await generation(wire, vm)
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="first")
    waiting = asyncio.create_task(
        wire.send(request("vm.kick_all_running_vcpus", vm=vm, hold="second", if_generation=now, wait_ms=10_000))
    )
    await asyncio.sleep(0)
    Wire.result(await wire.send(set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="first")))
    await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="first")
    with pytest.raises(Failed) as failed:
        Wire.result(await waiting)
    assert failed.value.data["errno"] == "ESTALE"
    await wire.call("vm.map_host_memory", vm=vm, size=PAGE)
    # Its name was not used up.
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="second")
    await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="second")


async def test_a_kick_whose_caller_goes_while_it_waits_leaves_nothing_behind(wire: Wire, vm: str) -> None:
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="first")
    caller = Caller()
    kick = request("vm.kick_all_running_vcpus", vm=vm, hold="second", wait_ms=10_000)
    waiting = asyncio.create_task(wire.send(kick, caller))
    await asyncio.sleep(0)
    caller.leave()
    with pytest.raises(Failed, match="the caller has gone"):
        Wire.result(await waiting)
    await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="first")
    # Its name was not used up.
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="second")
    await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="second")


async def test_a_hold_that_was_opened_for_a_caller_who_has_gone_is_rolled_back_and_its_name_tells(
    wire: Wire, vm: str
) -> None:
    wire.caller_is_gone = True
    await wire.send(request("vm.kick_all_running_vcpus", vm=vm, hold="h"))
    wire.caller_is_gone = False
    await wire.call("vm.map_host_memory", vm=vm, size=PAGE)
    with pytest.raises(Failed, match="rolled back when its caller went"):
        await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="h")


async def test_a_kick_that_is_asked_again_by_a_caller_who_goes_leaves_the_hold_open(wire: Wire, vm: str) -> None:
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="h")
    wire.caller_is_gone = True
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="h")
    assert (await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="h"))["pause_ns"] > 0


async def test_a_batch_is_carried_out_as_it_stands_though_its_caller_has_gone(wire: Wire, vm: str, memory: str) -> None:
    wire.caller_is_gone = True
    outcomes = await wire.batch(
        request("vm.kick_all_running_vcpus", vm=vm, hold="h"),
        set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="h"),
    )
    assert not [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    wire.caller_is_gone = False
    assert 3 in await regions(wire, vm)
