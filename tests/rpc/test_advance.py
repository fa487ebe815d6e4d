"""Cooperative VMs on the wire."""

import asyncio
import base64
from typing import Any

import pytest

from tests.rpc.wire import PAGE, Failed, Wire
from vmmd.isa.assembler import assemble

SPIN = base64.b64encode(assemble("1: addi a1, a1, 1\n sd a1, 0x100(zero)\n j 1b", 0).code).decode()


async def cooperative(wire: Wire, **how: Any) -> str:
    """Make a cooperative VM with a guest that counts."""
    vm: str = (await wire.call("kvm.create_vm", execution="cooperative", **how))["vm"]
    hva = (await wire.call("vm.map_host_memory", vm=vm, size=PAGE))["userspace_addr"]
    await wire.call(
        "vm.set_user_memory_region",
        vm=vm,
        slot=0,
        flags=0,
        guest_phys_addr=0,
        memory_size=PAGE,
        userspace_addr=hva,
    )
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=SPIN)
    for vcpu in range(2):
        await wire.call("vm.create_vcpu", vm=vm, vcpu=vcpu)
    return vm


async def test_a_cooperative_vm_advances_by_what_is_asked_and_tells_its_digest(wire: Wire) -> None:
    found = []
    for seed in (7, "0x7", 8):
        vm = await cooperative(wire, seed=seed)
        found.append(await wire.call("vm.advance", vm=vm, instructions=500))
        assert (await wire.call("vm.get_stats", vm=vm))["instructions"] == 500
        await wire.call("kvm.destroy_vm", vm=vm)
    assert [(result["instructions"], result["ended_by"], len(result["digest"])) for result in found] == [
        (500, "instructions", 64)
    ] * 3
    assert found[0] == found[1] != found[2]


async def test_the_seed_left_out_is_0(wire: Wire) -> None:
    first, second = await cooperative(wire), await cooperative(wire, seed=0)
    assert await wire.call("vm.advance", vm=first, instructions=999) == await wire.call(
        "vm.advance", vm=second, instructions=999
    )


async def test_a_list_tells_which_vms_are_cooperative(wire: Wire) -> None:
    vm = await cooperative(wire)
    await wire.call("kvm.create_vm")
    infos = await wire.call("kvm.list_vms")
    assert [(info["execution"], info["state"]) for info in infos] == [
        ("cooperative", "created"),
        ("parallel", "created"),
    ]
    await wire.call("vm.advance", vm=vm, instructions=1)
    assert (await wire.call("kvm.list_vms"))[0]["state"] == "running"


async def test_what_is_for_the_other_kind_of_vm_is_einval(wire: Wire, vm: str) -> None:
    other = await cooperative(wire)
    for method, params in (
        ("vm.advance", {"vm": vm, "instructions": 1}),
        ("vm.start", {"vm": other}),
        ("vcpu.run", {"vm": other, "vcpu": 0}),
        ("kvm.create_vm", {"seed": 1}),
    ):
        with pytest.raises(Failed) as failed:
            await wire.call(method, **params)
        assert failed.value.data["errno"] == "EINVAL", method


async def test_calls_beside_an_advance_are_ebusy_until_it_is_stopped(wire: Wire) -> None:
    vm = await cooperative(wire)
    advance = asyncio.create_task(wire.call("vm.advance", vm=vm, instructions=1 << 60))
    while not (await wire.call("vm.get_stats", vm=vm))["instructions"]:
        await asyncio.sleep(0)
    for method, params in (
        ("vm.advance", {"instructions": 1}),
        ("vm.read_guest_memory", {"guest_phys_addr": 0, "length": 1}),
        ("vcpu.interrupt", {"vcpu": 0}),
    ):
        with pytest.raises(Failed) as failed:
            await wire.call(method, vm=vm, **params)
        assert failed.value.data["errno"] == "EBUSY", method
    assert int((await wire.call("vcpu.get_regs", vm=vm, vcpu=0))["pc"], 16) < 12
    await wire.call("vm.stop", vm=vm)
    result = await advance
    assert result["ended_by"] == "stop"
    assert result["instructions"] == (await wire.call("vm.get_stats", vm=vm))["instructions"]
