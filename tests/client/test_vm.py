import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from vmmd.api.isa import Line
from vmmd.api.methods import METHODS
from vmmd_client import Client, MemFlag, Memslot, SlotTable, Vm, calls
from vmmd_client.wire import protocol

from .fake_daemon import FakeDaemon

STATS = {"instructions": 5, "exits": {}, "stray_exits": 1, "kicks": 0}
REGION = {"guest_phys_addr": 0x1000, "memory_size": 0x2000, "userspace_addr": 0x7000_0000}
HOLD = {"hold": "h"}

Ask = Callable[[Client, Vm], Awaitable[Any]]
CASES: list[tuple[str, Ask, dict[str, Any], Any, Any]] = [
    ("kvm.check_extension", lambda c, vm: c.kvm.check_extension("KVM_CAP_X"), {"extension": "KVM_CAP_X"}, 3, 3),
    ("kvm.destroy_vm", lambda c, vm: c.kvm.destroy_vm("1"), {"vm": "1"}, None, None),
    ("kvm.list_vms", lambda c, vm: c.kvm.list_vms(), {}, [], []),
    (
        "isa.assemble",
        lambda c, vm: _code(c.isa.assemble("nop", 0x1000)),
        {"source": "nop", "origin": 0x1000},
        {"code": "EwAAAA==", "symbols": {}},
        b"\x13\0\0\0",
    ),
    (
        "isa.disassemble",
        lambda c, vm: c.isa.disassemble(b"\x13\0\0\0", 0x1000),
        {"code": "EwAAAA==", "origin": 0x1000},
        [{"address": "0x1000", "word": "0x13", "text": "nop"}],
        [Line(address=0x1000, word=0x13, text="nop")],
    ),
    (
        "vm.map_host_memory",
        lambda c, vm: vm.map_host_memory(8192, "ram", hold="h"),
        {"vm": "1", "size": 8192, "name": "ram", **HOLD},
        {"userspace_addr": "0x7f0000000000"},
        0x7F00_0000_0000,
    ),
    (
        "vm.unmap_host_memory",
        lambda c, vm: vm.unmap_host_memory(0x1000, 4096, wait_ms=5),
        {"vm": "1", "userspace_addr": 0x1000, "size": 4096, "wait_ms": 5},
        None,
        None,
    ),
    (
        "vm.read_host_memory",
        lambda c, vm: vm.read_host_memory(0x1000, 2),
        {"vm": "1", "userspace_addr": 0x1000, "length": 2},
        {"data": "AAE="},
        b"\x00\x01",
    ),
    (
        "vm.write_host_memory",
        lambda c, vm: vm.write_host_memory(0x1000, b"\x00\x01"),
        {"vm": "1", "userspace_addr": 0x1000, "data": "AAE="},
        None,
        None,
    ),
    (
        "vm.read_guest_memory",
        lambda c, vm: vm.read_guest_memory(0x1000, 2),
        {"vm": "1", "guest_phys_addr": 0x1000, "length": 2},
        {"data": "AAE="},
        b"\x00\x01",
    ),
    (
        "vm.write_guest_memory",
        lambda c, vm: vm.write_guest_memory(0x1000, b"\x00\x01", if_generation=9),
        {"vm": "1", "guest_phys_addr": 0x1000, "data": "AAE=", "if_generation": 9},
        None,
        None,
    ),
    (
        "vm.set_user_memory_region",
        lambda c, vm: vm.set_user_memory_region(4, **REGION, flags=MemFlag.READONLY, hold="h"),
        {"vm": "1", "slot": 4, "flags": 2, **REGION, **HOLD},
        {"generation": 8},
        8,
    ),
    (
        "vm.get_dirty_log",
        lambda c, vm: vm.get_dirty_log(4, first_page=64, num_pages=64, hold="h"),
        {"vm": "1", "slot": 4, "first_page": 64, "num_pages": 64, **HOLD},
        {"bitmap": "AQAAAAAAAAA="},
        b"\x01" + bytes(7),
    ),
    (
        "vm.clear_dirty_log",
        lambda c, vm: vm.clear_dirty_log(4, 0, 64, b"\xff" * 8),
        {"vm": "1", "slot": 4, "first_page": 0, "num_pages": 64, "bitmap": "//////////8="},
        None,
        None,
    ),
    (
        "vm.enable_cap",
        lambda c, vm: vm.enable_cap("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", [1]),
        {"vm": "1", "cap": "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", "args": [1]},
        None,
        None,
    ),
    ("vm.start", lambda c, vm: vm.start("ones"), {"vm": "1", "mmio": "ones"}, None, None),
    ("vm.stop", lambda c, vm: vm.stop(), {"vm": "1"}, None, None),
    (
        "vm.load_elf",
        lambda c, vm: _entry_and_symbols(vm.load_elf(b"\x7fELF", 2, hold="h")),
        {"vm": "1", "data": "f0VMRg==", "vcpu": 2, **HOLD},
        {"entry": "0x1000", "symbols": {"main": "0xffffffffffffffff"}},
        (0x1000, {"main": (1 << 64) - 1}),
    ),
    (
        "vcpu.set_regs",
        lambda c, vm: vm.vcpu(2).set_regs({"pc": 4}),
        {"vm": "1", "vcpu": 2, "regs": {"pc": 4}},
        None,
        None,
    ),
    ("vcpu.get_regs", lambda c, vm: vm.vcpu(2).get_regs(), {"vm": "1", "vcpu": 2}, {"pc": "0x4"}, {"pc": 4}),
    (
        "vcpu.set_immediate_exit",
        lambda c, vm: vm.vcpu(2).set_immediate_exit(1),
        {"vm": "1", "vcpu": 2, "value": 1},
        None,
        None,
    ),
]


async def _entry_and_symbols(loaded: Awaitable[Any]) -> tuple[int, dict[str, int]]:
    result = await loaded
    return result.entry, result.symbols


async def _code(assembled: Awaitable[Any]) -> bytes:
    return (await assembled).code


@pytest.mark.parametrize(("method", "ask", "params", "result", "value"), CASES, ids=[case[0] for case in CASES])
async def test_a_typed_method_sends_the_wires_parameters_and_gives_pythons_values(
    daemon: FakeDaemon, vmmd: Client, method: str, ask: Ask, params: dict[str, Any], result: Any, value: Any
):
    daemon.answers[method] = lambda params: result
    assert await ask(vmmd, vmmd.vm("1")) == value
    asked = daemon.requests[-1]
    METHODS[method].params.model_validate(asked["params"])
    assert ("request_id" in asked["params"]) == METHODS[method].changes
    asked["params"].pop("request_id", None)
    assert (asked["method"], asked["params"]) == (method, params)


async def test_every_change_has_a_request_id_of_its_own(daemon: FakeDaemon, vmmd: Client):
    daemon.answers["vm.start"] = lambda params: None
    for _ in range(3):
        await vmmd.vm("1").start()
    await vmmd.vm("1").start(request_id="mine")
    named = [asked["params"]["request_id"] for asked in daemon.requests[-4:]]
    assert len(set(named)) == 4
    assert named[-1] == "mine"


def test_every_method_of_the_wire_has_a_typed_call():
    # What tells the daemon that nobody waits any more is said by the transports, and not by users.
    source = inspect.getsource(calls) + inspect.getsource(protocol)
    assert [name for name in METHODS if f'"{name}"' not in source] == []


async def test_creating_a_vm_and_a_vcpu_gives_handles_on_them(daemon: FakeDaemon, vmmd: Client):
    daemon.answers["kvm.create_vm"] = lambda params: {"vm": "7"}
    daemon.answers["vm.create_vcpu"] = lambda params: {"vcpu": params["vcpu"]}
    vm = await vmmd.kvm.create_vm("test")
    vcpu = await vm.create_vcpu(3)
    assert (vm.id, vcpu.vm_id, vcpu.id) == ("7", "7", 3)


async def test_an_exit_comes_with_its_data(daemon: FakeDaemon, vmmd: Client):
    mmio = {"phys_addr": "0xfee00000", "len": 4, "is_write": True, "data": "AQIDBA=="}
    daemon.answers["vcpu.run"] = lambda params: {"exit_reason": "KVM_EXIT_MMIO", "mmio": mmio}
    ended = await vmmd.vm("1").vcpu(0).run(timeout_ms=100)
    assert ended.mmio is not None
    assert (ended.exit_reason, ended.mmio.phys_addr, ended.mmio.data) == ("KVM_EXIT_MMIO", 0xFEE0_0000, b"\1\2\3\4")


async def test_statistics_console_and_hold_answers_are_typed(daemon: FakeDaemon, vmmd: Client):
    daemon.answers["vm.get_stats"] = daemon.answers["vcpu.get_stats"] = lambda params: STATS
    daemon.answers["vm.read_console"] = lambda params: {"data": "aGk=", "next": params["since"] + 2}
    vm = vmmd.vm("1")
    assert (await vm.get_stats()).stray_exits == (await vm.vcpu(0).get_stats()).stray_exits == 1
    console = await vm.read_console(40)
    assert (console.data, console.next) == (b"hi", 42)
    assert (await vm.kick_all_running_vcpus("name", wait_ms=10)).kicked == 4
    assert (await vm.resume_all_kicked_vcpus("name")).pause_ns == 42_000


async def test_the_slot_table_is_fetched_once_and_follows_the_handles_own_changes(daemon: FakeDaemon, vmmd: Client):
    daemon.give_slot(1, 0, 0x1000, 0x7000_0000)
    vm = vmmd.vm("1")
    await vm.slot_table()
    await vm.set_user_memory_region(2, guest_phys_addr=0x1000, memory_size=0x1000, userspace_addr=0x7000_1000)
    await vm.set_user_memory_region(1, guest_phys_addr=0, memory_size=0, userspace_addr=0)
    round_trips = len(daemon.requests)
    slot = Memslot(2, 0, 0x1000, 0x1000, 0x7000_1000)
    assert await vm.slot_table() == SlotTable(daemon.generation, {2: slot})
    assert len(daemon.requests) == round_trips


async def test_a_change_that_shows_another_clients_change_has_the_table_fetched_anew(daemon: FakeDaemon, vmmd: Client):
    vm = vmmd.vm("1")
    await vm.slot_table()
    daemon.give_slot(9, 0x8000, 0x1000, 0x7000_8000)
    await vm.set_user_memory_region(2, guest_phys_addr=0x1000, memory_size=0x1000, userspace_addr=0x7000_1000)
    assert sorted((await vm.slot_table()).slots) == [2, 9]
