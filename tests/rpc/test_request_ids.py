"""request_id: a repeat gets the first success again, and nothing is done twice."""

import asyncio
from typing import Any

import pytest

from tests.rpc.wire import PAGE, Failed, Wire, generation, is_failed, regions, request, set_region
from vmmd.api.methods import METHODS
from vmmd.api.types import RequestOptions
from vmmd.rpc.requests import RequestLimits, Requests


def test_every_call_that_changes_something_of_a_vm_or_makes_one_takes_a_request_id() -> None:
    for method in METHODS.values():
        assert issubclass(method.params, RequestOptions) == method.changes, method.name


async def test_a_repeat_gets_the_first_success_and_does_nothing_twice(wire: Wire) -> None:
    first = await wire.call("kvm.create_vm", name="one", request_id="r1")
    assert await wire.call("kvm.create_vm", name="one", request_id="r1") == first
    assert len(await wire.call("kvm.list_vms")) == 1


async def test_how_parameters_are_written_and_how_long_a_caller_waits_make_no_other_request(
    wire: Wire, vm: str
) -> None:
    first = await wire.call("vm.map_host_memory", vm=vm, size=PAGE, request_id="r1")
    written = request("vm.map_host_memory", vm=vm, size=hex(PAGE), request_id="r1", deadline_ms=10_000)
    assert await wire.batch(written) == [first]


@pytest.mark.parametrize(
    "other",
    [
        request("vm.map_host_memory", vm="vm1", size=2 * PAGE, request_id="r1"),
        request("vm.map_host_memory", vm="vm2", size=PAGE, request_id="r1"),
        request("vm.create_vcpu", vm="vm1", vcpu=0, request_id="r1"),
    ],
)
async def test_the_same_id_for_anything_else_is_einval_and_does_nothing(
    wire: Wire, vm: str, other: dict[str, Any]
) -> None:
    await wire.call("vm.map_host_memory", vm=vm, size=PAGE, request_id="r1")
    (failed,) = await wire.batch(other)
    assert is_failed(failed, "EINVAL")
    assert "'r1'" in failed.message
    assert (await wire.call("kvm.list_vms"))[0]["vcpus"] == []


async def test_a_failure_is_not_remembered(wire: Wire, vm: str, memory: str) -> None:
    await wire.send(set_region(vm, 3, 8 * PAGE, PAGE, memory))
    create = set_region(vm, 4, 8 * PAGE, PAGE, memory, request_id="r1")
    assert is_failed((await wire.batch(create))[0], "EEXIST")
    await wire.send(set_region(vm, 3, 8 * PAGE, 0, 0))
    assert (await wire.batch(create))[0]["generation"] == await generation(wire, vm)


async def test_a_repeat_waits_for_the_first_and_is_a_try_of_its_own_where_that_fails(wire: Wire, vm: str) -> None:
    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="h")
    asked = request("vm.map_host_memory", vm=vm, size=PAGE, wait_ms=1000, request_id="r1")
    first, second = (asyncio.create_task(wire.send(asked)) for _ in range(2))
    await asyncio.sleep(0)
    await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="h")
    assert Wire.result(await first) == Wire.result(await second)

    await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="i")
    asked = request("vm.map_host_memory", vm=vm, size=PAGE, wait_ms=1000, request_id="r2")
    first = asyncio.create_task(wire.send(request("vm.map_host_memory", **asked["params"], deadline_ms=1)))
    await asyncio.sleep(0)
    second = asyncio.create_task(wire.send(asked))
    with pytest.raises(Failed, match="deadline_ms"):
        Wire.result(await first)
    await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="i")
    assert Wire.result(await second)["userspace_addr"]


async def test_a_whole_batch_can_be_repeated(wire: Wire, vm: str, memory: str) -> None:
    update = [
        request("vm.kick_all_running_vcpus", vm=vm, hold="h", request_id="1"),
        set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h", request_id="2"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="h", request_id="3"),
    ]
    first = await wire.batch(*update)
    before = await generation(wire, vm)
    assert await wire.batch(*update) == first
    assert await generation(wire, vm) == before


async def test_what_was_rolled_back_with_its_hold_is_no_success_any_more(wire: Wire, vm: str, memory: str) -> None:
    update = [
        request("vm.kick_all_running_vcpus", vm=vm, hold="h", request_id="1"),
        set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="h", request_id="2"),
        set_region(vm, 4, 8 * PAGE, PAGE, memory, hold="h", request_id="3"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="h", request_id="4"),
    ]
    assert [isinstance(outcome, Failed) for outcome in await wire.batch(*update)] == [False, False, True, True]
    outcomes = await wire.batch(*update)
    assert all(is_failed(outcome, "ECANCELED") for outcome in outcomes)
    assert 3 not in await regions(wire, vm)


async def test_what_is_kept_is_bounded_in_number_and_the_oldest_goes_first(wire: Wire, vm: str) -> None:
    first = await wire.call("vm.map_host_memory", vm=vm, size=PAGE, request_id="0")
    for number in range(1, 4):
        await wire.call("vm.map_host_memory", vm=vm, size=PAGE, request_id=str(number))
    assert await wire.call("vm.map_host_memory", vm=vm, size=PAGE, request_id="0") != first


async def once(requests: Requests, name: str, result: bytes) -> bytes:
    method = METHODS["kvm.create_vm"]
    params = method.params.model_validate({"request_id": name})
    assert isinstance(params, RequestOptions)

    async def carry_out() -> bytes:
        return result

    return await requests.once(method, params, lambda: True, carry_out)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (RequestLimits(request_ids=9, request_id_bytes=100, request_id_ms=60_000), b"1" * 60),
        (RequestLimits(request_ids=9, request_id_bytes=99, request_id_ms=60_000), b"new"),
        (RequestLimits(request_ids=9, request_id_bytes=100, request_id_ms=0), b"new"),
    ],
)
async def test_what_is_kept_is_bounded_in_bytes_and_in_time(limits: RequestLimits, kept: bytes) -> None:
    requests = Requests(limits)
    await once(requests, "a", b"1" * 60)
    await once(requests, "b", b"2" * 40)
    assert await once(requests, "a", b"new") == kept
