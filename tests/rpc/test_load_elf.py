"""vm.load_elf over the wire: the errors that name the file's part, the reply's room, and what a hold makes of them."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from tests.isa.elf_file import File, Load, Sym
from tests.rpc.wire import PAGE, REPLY_BYTES, Failed, Wire, generation, is_failed, request, set_region

CODE = b"\x13\0\0\0" * 4
HERE = File([Load(0x100, CODE, memsz=32)], entry=0x104, symbols=[Sym(b"_start", 0x104), Sym(b"top", (1 << 64) - 1)])


def data(file: File | bytes) -> str:
    return base64.b64encode(file if isinstance(file, bytes) else file.bytes()).decode()


def with_symbols(size_bytes: int) -> File:
    """A file whose symbols take a little more than so many bytes in the reply."""
    return File(HERE.loads, HERE.entry, [Sym(b"x" * 1000 + b"%d" % number) for number in range(size_bytes // 1000)])


async def contents(wire: Wire, vm: str) -> bytes:
    read = await wire.call("vm.read_guest_memory", vm=vm, guest_phys_addr=0, length=PAGE)
    return base64.b64decode(read["data"])


async def test_a_file_is_loaded_and_the_vcpu_stands_at_its_entry(wire: Wire, vm: str, memory: str) -> None:
    await wire.call("vm.create_vcpu", vm=vm, vcpu=1)
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=base64.b64encode(b"\xff" * PAGE).decode())
    result = await wire.call("vm.load_elf", vm=vm, data=data(HERE), vcpu=1)
    assert result == {"entry": "0x104", "symbols": {"_start": "0x104", "top": "0xffffffffffffffff"}}
    assert (await contents(wire, vm))[0x100:0x121] == CODE + bytes(16) + b"\xff"
    assert (await wire.call("vcpu.get_regs", vm=vm, vcpu=1))["pc"] == "0x104"


async def test_without_a_vcpu_every_pc_stays(wire: Wire, vm: str, memory: str) -> None:
    await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
    await wire.call("vm.load_elf", vm=vm, data=data(HERE))
    assert (await wire.call("vcpu.get_regs", vm=vm, vcpu=0))["pc"] == "0x0"


@pytest.mark.parametrize(
    ("params", "errno", "says"),
    [
        ({"data": data(b"#!/bin/sh")}, "EINVAL", "ELF header"),
        ({"data": data(File([Load(0x100, CODE, memsz=4)], 0x100))}, "EINVAL", "program header 0"),
        ({"data": data(File([Load(0x100, CODE)], 0x100, header={"flags": 1}))}, "EINVAL", "RVC"),
        ({"data": data(File([Load(3 * PAGE, CODE)], 3 * PAGE))}, "EFAULT", "0x3000"),
        ({"data": data(HERE), "vcpu": 3}, "EBADF", "no vCPU 3"),
        ({"data": data(HERE), "vm": "none"}, "EBADF", "none"),
        ({"data": data(HERE), "hold": "never opened"}, "EINVAL", "never opened"),
        ({"data": data(HERE), "if_generation": 99}, "ESTALE", "99"),
    ],
)
async def test_what_cannot_be_loaded_is_refused_and_nothing_is_written(
    wire: Wire, vm: str, memory: str, params: dict[str, Any], errno: str, says: str
) -> None:
    with pytest.raises(Failed) as failed:
        await wire.call("vm.load_elf", **({"vm": vm} | params))
    assert failed.value.data["errno"] == errno
    assert says in failed.value.message
    assert await contents(wire, vm) == bytes(PAGE)


async def test_an_error_of_the_file_names_its_part_in_the_data(wire: Wire, vm: str, memory: str) -> None:
    with pytest.raises(Failed) as failed:
        await wire.call("vm.load_elf", vm=vm, data=data(HERE.bytes()[:-100]))
    assert failed.value.data == {"errno": "EINVAL", "part": "section headers"}


async def test_symbols_that_the_reply_has_no_room_for_are_e2big_before_anything_is_written(
    wire: Wire, vm: str, memory: str
) -> None:
    with pytest.raises(Failed) as failed:
        await wire.call("vm.load_elf", vm=vm, data=data(with_symbols(REPLY_BYTES)))
    assert failed.value.data["errno"] == "E2BIG"
    assert "reply_bytes" in failed.value.message
    assert await contents(wire, vm) == bytes(PAGE)
    result = await wire.call("vm.load_elf", vm=vm, data=data(with_symbols(REPLY_BYTES - 3000)))
    assert len(result["symbols"]) == REPLY_BYTES // 1000 - 3


async def test_a_refused_file_fails_the_hold_that_it_names_and_a_batch_rolls_back(
    wire: Wire, vm: str, memory: str
) -> None:
    before = await generation(wire, vm)
    for file in (HERE.bytes()[:-1], with_symbols(REPLY_BYTES).bytes()):
        await wire.call("vm.kick_all_running_vcpus", vm=vm, hold=str(len(file)))
        with pytest.raises(Failed):
            await wire.call("vm.load_elf", vm=vm, data=data(file), hold=str(len(file)))
        with pytest.raises(Failed) as failed:
            await wire.call("vm.resume_all_kicked_vcpus", vm=vm, hold=str(len(file)))
        assert failed.value.data["rolled_back"]
    outcomes = await wire.batch(
        request("vm.kick_all_running_vcpus", vm=vm, hold="b"),
        set_region(vm, 1, 8 * PAGE, PAGE, memory, hold="b"),
        request("vm.load_elf", vm=vm, data=data(b"no file"), hold="b"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="b"),
    )
    assert is_failed(outcomes[2], "EINVAL")
    assert is_failed(outcomes[3], "EINVAL")
    assert set(await regions_of(wire, vm)) == {0}
    assert await generation(wire, vm) > before


async def regions_of(wire: Wire, vm: str) -> list[int]:
    return [region["slot"] for region in (await wire.call("vm.get_memory_regions", vm=vm))["regions"]]


async def test_memory_made_and_loaded_in_one_hold_is_one_update(wire: Wire, vm: str, memory: str) -> None:
    outcomes = await wire.batch(
        request("vm.kick_all_running_vcpus", vm=vm, hold="b"),
        set_region(vm, 1, 8 * PAGE, PAGE, memory, hold="b"),
        request("vm.load_elf", vm=vm, data=data(File([Load(8 * PAGE, CODE)], 8 * PAGE)), hold="b"),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="b"),
    )
    assert not any(isinstance(outcome, Failed) for outcome in outcomes)
    assert (await contents(wire, vm))[:16] == CODE


async def test_a_slot_table_that_moves_on_while_the_file_is_read_is_estale(wire: Wire, vm: str, memory: str) -> None:
    large = with_symbols(REPLY_BYTES - 3000)
    loading = asyncio.create_task(
        wire.call("vm.load_elf", vm=vm, data=data(large), if_generation=await generation(wire, vm))
    )
    await asyncio.sleep(0)
    await wire.send(set_region(vm, 1, 8 * PAGE, PAGE, memory))
    with pytest.raises(Failed) as failed:
        await loading
    assert failed.value.data["errno"] == "ESTALE"
    assert await contents(wire, vm) == bytes(PAGE)


async def test_a_vm_that_is_destroyed_while_the_file_is_read_is_ebadf(wire: Wire, vm: str, memory: str) -> None:
    loading = asyncio.create_task(wire.call("vm.load_elf", vm=vm, data=data(with_symbols(REPLY_BYTES - 3000))))
    await asyncio.sleep(0)
    await wire.call("kvm.destroy_vm", vm=vm)
    with pytest.raises(Failed) as failed:
        await loading
    assert failed.value.data["errno"] == "EBADF"
