"""Wire to core and back: real calls on a real core, JSON in and JSON out."""

import asyncio
import base64
from typing import Any

import pytest

from tests.rpc.wire import PAGE, REPLY_BYTES, Failed, Wire, is_failed, regions, request, set_region
from vmmd.api.codes import INVALID_PARAMS
from vmmd.api.isa import MAX_SOURCE_CHARACTERS
from vmmd.api.methods import METHODS

# Writes "hi" to the console, loads from an address that has no memory, stores what it got to 0x1800, and waits.
PROGRAM = """
        li   t0, 0x3f8
        li   t1, 'h'
        outb t1, 0(t0)
        li   t2, 0x100000
        ld   a0, 0(t2)
        li   t3, 0x1800
        sd   a0, 0(t3)
        wfi
"""


async def ended(wire: Wire) -> None:
    """Wait until the run loop of the first VM's vCPU has ended by itself."""
    async with asyncio.timeout(10):
        while not (await wire.call("kvm.list_vms"))[0]["ended"]:
            await asyncio.sleep(0)


async def test_the_system_answers_as_kvm_does(wire: Wire) -> None:
    assert await wire.call("kvm.get_api_version") == 12
    assert await wire.call("kvm.check_extension", extension="KVM_CAP_NR_MEMSLOTS") == 32764
    assert await wire.call("kvm.check_extension", extension="KVM_CAP_OF_NOBODY") == 0


async def test_the_daemon_says_who_it_is(wire: Wire) -> None:
    info = await wire.call("daemon.get_info")
    assert (info["version"], info["engine"], info["limits"]) == ("1.2.3", "evaluated", {"vms": 3})


async def test_a_vm_is_listed_until_it_is_destroyed(wire: Wire, vm: str) -> None:
    await wire.call("vm.create_vcpu", vm=vm, vcpu=1)
    await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
    (info,) = await wire.call("kvm.list_vms")
    assert (info["vm"], info["name"], info["state"], info["vcpus"], info["ended"]) == (
        vm,
        "test",
        "created",
        [0, 1],
        [],
    )
    assert await wire.call("kvm.destroy_vm", vm=vm) is None
    assert await wire.call("kvm.list_vms") == []
    with pytest.raises(Failed) as gone:
        await wire.call("vm.get_stats", vm=vm)
    assert gone.value.data["errno"] == "EBADF"


async def test_an_unnamed_vm_has_the_name_null(wire: Wire) -> None:
    await wire.call("kvm.create_vm")
    (info,) = await wire.call("kvm.list_vms")
    assert info["name"] is None


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if "vm" in row.params.model_fields])
async def test_a_vm_that_does_not_exist_is_ebadf_for_every_method(wire: Wire, method: str) -> None:
    plain: dict[str, Any] = {
        "vm": "nobody",
        "vcpu": 0,
        "hold": "h",
        "data": "",
        "regs": {},
        "value": 0,
        "bitmap": "",
        "cap": "KVM_CAP_X",
        "size": 0,
        "instructions": 0,
        "length": 0,
        "slot": 0,
        "flags": 0,
        "mp_state": "KVM_MP_STATE_RUNNABLE",
        "control": 0,
        "regions": [
            {"slot": 0, "flags": 0, "guest_phys_addr": 0, "memory_size": 0, "userspace_addr": 0},
        ],
        "first_page": 0,
        "num_pages": 0,
        "memory_size": 0,
        "guest_phys_addr": 0,
        "userspace_addr": 0,
    }
    fields = METHODS[method].params.model_fields
    with pytest.raises(Failed) as failed:
        await wire.call(method, **{name: plain[name] for name in fields if name in plain})
    assert failed.value.data["errno"] == "EBADF"
    assert "nobody" in failed.value.message


async def test_memory_goes_in_and_out_and_addresses_are_hexadecimal(wire: Wire, vm: str, memory: str) -> None:
    assert memory.startswith("0x")
    data = base64.b64encode(b"\x01\x02").decode()
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr="0xfff", data=data)
    host = hex(int(memory, 16) + 0xFFF)
    assert await wire.call("vm.read_host_memory", vm=vm, userspace_addr=host, length=2) == {"data": data}
    assert (await regions(wire, vm))[0] == {
        "slot": 0,
        "flags": 0,
        "guest_phys_addr": "0x0",
        "memory_size": "0x2000",
        "userspace_addr": memory,
    }


async def test_a_refused_ioctl_names_errno_ioctl_and_rule_and_changes_nothing(wire: Wire, vm: str, memory: str) -> None:
    before = await wire.call("vm.get_memory_regions", vm=vm)
    with pytest.raises(Failed) as failed:
        Wire.result(await wire.send(set_region(vm, 1, PAGE, PAGE, memory)))
    assert failed.value.code == 17
    assert failed.value.data == {"errno": "EEXIST", "ioctl": "KVM_SET_USER_MEMORY_REGION"}
    assert await wire.call("vm.get_memory_regions", vm=vm) == before


async def test_a_guest_runs_and_its_exits_come_out_with_their_data(wire: Wire, vm: str, memory: str) -> None:
    code = (await wire.call("isa.assemble", source=PROGRAM))["code"]
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=code)
    await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
    port = await wire.call("vcpu.run", vm=vm, vcpu=0)
    assert port == {
        "exit_reason": "KVM_EXIT_IO",
        "io": {"direction": 1, "size": 1, "port": 0x3F8, "count": 1, "data": base64.b64encode(b"h").decode()},
    }
    load = await wire.call("vcpu.run", vm=vm, vcpu=0)
    assert load == {
        "exit_reason": "KVM_EXIT_MMIO",
        "mmio": {"phys_addr": "0x100000", "len": 8, "is_write": False, "data": None},
    }
    answer = base64.b64encode(bytes(range(8))).decode()
    assert await wire.call("vcpu.run", vm=vm, vcpu=0, data=answer) == {"exit_reason": "KVM_EXIT_HLT"}
    assert await wire.call("vm.read_guest_memory", vm=vm, guest_phys_addr=0x1800, length=8) == {"data": answer}
    regs = await wire.call("vcpu.get_regs", vm=vm, vcpu=0)
    assert regs["x10"] == "0x706050403020100"
    stats = await wire.call("vm.get_stats", vm=vm)
    assert stats["exits"] == {"KVM_EXIT_IO": 1, "KVM_EXIT_MMIO": 1, "KVM_EXIT_HLT": 1}
    assert stats == await wire.call("vcpu.get_stats", vm=vm, vcpu=0)


async def test_a_fetch_without_memory_is_an_internal_error(wire: Wire, vm: str, memory: str) -> None:
    await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
    await wire.call("vcpu.set_regs", vm=vm, vcpu=0, regs={"pc": "0x8000"})
    result = await wire.call("vcpu.run", vm=vm, vcpu=0)
    assert result["exit_reason"] == "KVM_EXIT_INTERNAL_ERROR"
    assert result["internal"]["suberror"] == 1


async def test_an_interrupted_run_is_an_error_that_holds_the_exit_reason(wire: Wire, vm: str, memory: str) -> None:
    loop = (await wire.call("isa.assemble", source="1: j 1b"))["code"]
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=loop)
    await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
    with pytest.raises(Failed) as failed:
        await wire.call("vcpu.run", vm=vm, vcpu=0, timeout_ms=1)
    assert failed.value.data == {"errno": "EINTR", "ioctl": "KVM_RUN", "exit_reason": "KVM_EXIT_INTR"}
    await wire.call("vcpu.set_immediate_exit", vm=vm, vcpu=0, value=1)
    with pytest.raises(Failed) as failed:
        await wire.call("vcpu.run", vm=vm, vcpu=0)
    assert failed.value.data["errno"] == "EINTR"


async def test_assembly_errors_give_line_and_column(wire: Wire) -> None:
    with pytest.raises(Failed) as failed:
        await wire.call("isa.assemble", source="nop\n  bogus x1")
    assert failed.value.data["errno"] == "EINVAL"
    assert (failed.value.data["line"], failed.value.data["column"]) == (2, 3)


async def test_symbols_are_addresses(wire: Wire) -> None:
    assembly = await wire.call("isa.assemble", source="start: nop\nend:", origin="0x1000")
    assert assembly["symbols"] == {"start": "0x1000", "end": "0x1004"}


async def test_what_does_not_fit_in_the_reply_is_refused_before_it_is_done(wire: Wire, vm: str, memory: str) -> None:
    size = REPLY_BYTES
    with pytest.raises(Failed) as failed:
        await wire.call("vm.read_host_memory", vm=vm, userspace_addr=memory, length=size)
    assert failed.value.data["errno"] == "E2BIG"
    assert "limits.reply_bytes" in failed.value.message
    outcomes = await wire.batch(
        request("vm.read_host_memory", vm=vm, userspace_addr=memory, length=size // 2),
        request("vm.read_host_memory", vm=vm, userspace_addr=memory, length=size // 2),
        request("vm.read_host_memory", vm=vm, userspace_addr=memory, length=16),
    )
    assert is_failed(outcomes[1], "E2BIG")
    assert not isinstance(outcomes[0], Failed)
    assert not isinstance(outcomes[2], Failed)


async def test_a_dirty_log_that_does_not_fit_in_the_reply_keeps_its_bits(wire: Wire, vm: str, memory: str) -> None:
    pages = REPLY_BYTES * 8
    huge = {"flags": ["KVM_MEM_LOG_DIRTY_PAGES"]}
    Wire.result(await wire.send(set_region(vm, 5, 1 << 30, pages * PAGE, memory, **huge)))
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=(1 << 30) + PAGE, data="AA==")
    with pytest.raises(Failed) as failed:
        await wire.call("vm.get_dirty_log", vm=vm, slot=5)
    assert failed.value.data["errno"] == "E2BIG"
    part = await wire.call("vm.get_dirty_log", vm=vm, slot=5, first_page=0, num_pages=64)
    assert base64.b64decode(part["bitmap"]) == b"\x02" + bytes(7)


async def test_the_kernels_refusal_of_a_log_comes_before_that_of_a_large_reply(
    wire: Wire, vm: str, memory: str
) -> None:
    pages = REPLY_BYTES * 8
    logged = {"flags": ["KVM_MEM_LOG_DIRTY_PAGES"]}
    Wire.result(await wire.send(set_region(vm, 5, 1 << 30, pages * PAGE, memory)))
    Wire.result(await wire.send(set_region(vm, 6, 1 << 40, pages * PAGE, memory, **logged)))
    refusals = [
        ({"slot": 5}, "ENOENT"),
        ({"slot": 5, "first_page": 0, "num_pages": pages}, "ENOENT"),
        ({"slot": 7, "first_page": 0, "num_pages": pages}, "ENOENT"),
        ({"slot": 1 << 16, "first_page": 0, "num_pages": pages}, "EINVAL"),
        ({"slot": 6, "first_page": 0, "num_pages": pages + 64}, "EINVAL"),
        ({"slot": 6, "first_page": 1, "num_pages": pages}, "EINVAL"),
        ({"slot": 6}, "E2BIG"),
        ({"slot": 6, "first_page": 0, "num_pages": pages}, "E2BIG"),
    ]
    for params, error in refusals:
        with pytest.raises(Failed) as failed:
            await wire.call("vm.get_dirty_log", vm=vm, **params)
        assert failed.value.data["errno"] == error, params
    await wire.call("vm.enable_cap", vm=vm, cap="KVM_CAP_DIRTY_LOG_RING", args=[16384])
    for params, _ in refusals:
        with pytest.raises(Failed) as failed:
            await wire.call("vm.get_dirty_log", vm=vm, **params)
        assert failed.value.data["errno"] == "ENXIO", params


async def test_the_console_is_read_on_from_where_the_last_read_ended(wire: Wire, vm: str, memory: str) -> None:
    source = "li t0, 0x3f8\nli t1, 'h'\noutb t1, 0(t0)\nli t1, 'i'\noutb t1, 0(t0)\nli t2, 0x100000\nld a0, 0(t2)"
    code = (await wire.call("isa.assemble", source=source))["code"]
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=code)
    await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
    await wire.call("vm.start", vm=vm)
    with pytest.raises(Failed) as failed:
        await wire.call("vm.start", vm=vm)
    assert failed.value.data["errno"] == "EBUSY"
    await ended(wire)
    assert await wire.call("vm.stop", vm=vm) is None
    (info,) = await wire.call("kvm.list_vms")
    assert info["ended"][0]["exit"]["exit_reason"] == "KVM_EXIT_MMIO"
    whole = await wire.call("vm.read_console", vm=vm)
    assert (base64.b64decode(whole["data"]), whole["next"]) == (b"hi", 2)
    rest = await wire.call("vm.read_console", vm=vm, since=1)
    assert (base64.b64decode(rest["data"]), rest["next"]) == (b"i", 2)


async def test_limits_are_named_in_what_they_refuse(wire: Wire) -> None:
    for _ in range(3):
        await wire.call("kvm.create_vm")
    with pytest.raises(Failed) as failed:
        await wire.call("kvm.create_vm")
    assert failed.value.data["errno"] in METHODS["kvm.create_vm"].errors


async def test_others_are_answered_while_a_long_source_is_assembled(wire: Wire) -> None:
    source = "nop\n" * 4096
    assembling = asyncio.create_task(wire.call("isa.assemble", source=source))
    await asyncio.sleep(0)
    assert await wire.call("kvm.get_api_version") == 12
    assert not assembling.done()
    assert len(base64.b64decode((await assembling)["code"])) == 4 * 4096


@pytest.mark.parametrize(
    ("method", "params", "sentence"),
    [
        (
            "isa.assemble",
            {"source": "x" * (MAX_SOURCE_CHARACTERS + 1)},
            f"source: has more than {MAX_SOURCE_CHARACTERS} characters: 'xxx",
        ),
        ("vm.enable_cap", {"vm": "1", "cap": "K", "args": [9] * 5}, "args: has more than 4 entries: [9, 9, 9, 9, 9]"),
        ("vcpu.run", {"vm": "1", "vcpu": 0, "data": "AAAAAAAAAAAA"}, "data: has more than 8 bytes: 'AAAAAAAAAAAA'"),
        ("vm.enable_cap", {"vm": "1", "cap": ""}, "cap: has fewer than 1 characters: ''"),
    ],
)
async def test_a_parameter_of_the_wrong_length_is_refused_with_the_limit(
    wire: Wire, method: str, params: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Failed) as failed:
        await wire.call(method, **params)
    assert failed.value.code == INVALID_PARAMS
    assert sentence in failed.value.message
