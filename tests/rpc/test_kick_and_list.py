"""Raw kicks, leases and lists of regions over the wire."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from tests.rpc.wire import PAGE, Failed, Wire, regions, request, set_region
from vmmd.api.codes import INVALID_PARAMS


def region(slot: int, gpa: int, size: int, hva: Any, flags: Any = 0) -> dict[str, Any]:
    return {"slot": slot, "flags": flags, "guest_phys_addr": gpa, "memory_size": size, "userspace_addr": hva}


async def spinning(wire: Wire, vm: str) -> str:
    """Start a vCPU that runs for good; return the userspace address of its memory."""
    base: str = (await wire.call("vm.map_host_memory", vm=vm, size=4 * PAGE))["userspace_addr"]
    await wire.send(set_region(vm, 0, 0, PAGE, base))
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=base64.b64encode(b"o\0\0\0").decode())
    await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
    return base


async def test_a_raw_kick_ends_runs_until_the_raw_resume(wire: Wire, vm: str) -> None:
    await spinning(wire, vm)
    run = asyncio.create_task(wire.send(request("vcpu.run", vm=vm, vcpu=0)))
    while not (await wire.call("vm.get_stats", vm=vm))["instructions"]:
        await asyncio.sleep(0)
    kick = await wire.call("vm.kick_all_running_vcpus", vm=vm)
    assert (kick["hold"], kick["kicked"], kick["lease_ms"]) == (None, 1, None)
    answer = (await run)["error"]
    assert answer["data"] == {
        "errno": "EINTR",
        "ioctl": "KVM_RUN",
        "exit_reason": "KVM_EXIT_UNKNOWN",
        "kicked": True,
    }
    with pytest.raises(Failed, match="kicked"):
        await wire.call("vcpu.run", vm=vm, vcpu=0)
    assert (await wire.call("vm.resume_all_kicked_vcpus", vm=vm))["pause_ns"] is None
    with pytest.raises(Failed, match="interrupted"):
        await wire.call("vcpu.run", vm=vm, vcpu=0, timeout_ms=1)


async def test_a_lease_is_told_and_when_it_has_run_out_the_resume_tells_that(wire: Wire, vm: str) -> None:
    await spinning(wire, vm)
    kick = await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="h", lease_ms=1)
    assert kick["lease_ms"] == 1
    await wire.call("vm.read_guest_memory", vm=vm, guest_phys_addr=0, length=1, wait_ms=10_000)
    with pytest.raises(Failed) as ended:
        await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold="h")
    assert ended.value.data["became"] == "was rolled back when its lease ran out"


async def test_a_list_of_regions_is_one_change(wire: Wire, vm: str) -> None:
    base = await spinning(wire, vm)
    logged = region(1, 0x10000, PAGE, base, ["KVM_MEM_LOG_DIRTY_PAGES"])
    first = await wire.call("vm.set_user_memory_region_list", vm=vm, regions=[logged])
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0x10000, data="eA==")
    both = [region(1, 0, 0, 0), region(2, 0x10000, 2 * PAGE, base)]
    dry = await wire.call("vm.set_user_memory_region_list", vm=vm, regions=both, dry_run=True)
    assert dry == {"generation": first["generation"], "pause_ns": None, "dirty": []}
    done = await wire.call("vm.set_user_memory_region_list", vm=vm, regions=both)
    assert done["generation"] == first["generation"] + 1
    assert done["pause_ns"] > 0
    assert done["dirty"] == [
        {"slot": 1, "guest_phys_addr": "0x10000", "bitmap": base64.b64encode(b"\1" + bytes(7)).decode()}
    ]
    assert list(await regions(wire, vm)) == [0, 2]


async def test_a_refused_list_names_the_change_and_changes_nothing(wire: Wire, vm: str) -> None:
    base = await spinning(wire, vm)
    before = await regions(wire, vm)
    with pytest.raises(Failed) as refused:
        await wire.call(
            "vm.set_user_memory_region_list", vm=vm, regions=[region(0, 0, 0, 0), region(3, 0x1234, PAGE, base)]
        )
    assert refused.value.data == {"errno": "EINVAL", "ioctl": "KVM_SET_USER_MEMORY_REGION_LIST", "index": 1}
    assert await regions(wire, vm) == before
    with pytest.raises(Failed) as empty:
        await wire.call("vm.set_user_memory_region_list", vm=vm, regions=[])
    assert empty.value.code == INVALID_PARAMS


async def test_a_list_in_a_batch_that_has_a_hold_open_has_to_name_it(wire: Wire, vm: str) -> None:
    base = await spinning(wire, vm)
    regions_ = [region(3, 0x40000, PAGE, base)]
    kick = request("vm.kick_all_running_vcpus", vm=vm, hold="h")
    resume = request("vm.resume_all_kicked_vcpus", vm=vm, hold="h")
    change = request("vm.set_user_memory_region_list", vm=vm, regions=regions_)
    answers = await wire.send([kick, change, resume])
    assert answers[1]["error"]["data"]["errno"] == "EDEADLK"
    assert answers[2]["error"]["data"]["rolled_back"] is True
    named = request("vm.set_user_memory_region_list", vm=vm, regions=regions_, hold="g")
    kick["params"]["hold"] = resume["params"]["hold"] = "g"
    assert not any("error" in answer for answer in await wire.send([kick, named, resume]))


async def test_a_lease_of_no_time_is_refused(wire: Wire, vm: str) -> None:
    with pytest.raises(Failed) as refused:
        await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="h", lease_ms=0)
    assert refused.value.code == INVALID_PARAMS
