"""Examples for the OpenRPC document: calls that work, what has to come before them, and what they answer.

The tests make every one of them against a daemon, which has to answer as it says. "vm1" stands for whatever id the
daemon gives the example's VM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Step = tuple[str, Mapping[str, Any]]
"""A call that comes before an example: a method and its parameters by name."""


@dataclass(frozen=True)
class Example:
    """A call and its answer.

    Attributes:
        name: What it is an example of, in a few words.
        params: The parameters, by name.
        result: The result, in JSON's types.
        before: The calls that come before it, for a daemon without VMs.
        varies: Members of the result, at its top, that are others each time: a duration, a process id.
    """

    name: str
    params: Mapping[str, Any]
    result: Any
    before: Sequence[Step] = ()
    varies: Sequence[str] = ()


_ONE_VM = {"vm": "vm1"}
_ONE_VCPU = {"vm": "vm1", "vcpu": 0}

# Where the daemon maps a VM's first host memory.
_HVA = "0x1000000000"

_SLOT = _ONE_VM | {
    "slot": 0,
    "flags": ["KVM_MEM_LOG_DIRTY_PAGES"],
    "guest_phys_addr": "0x0",
    "memory_size": "0x4000",
    "userspace_addr": _HVA,
}

_VM: tuple[Step, ...] = (("kvm.create_vm", {}),)
_HELD = (*_VM, ("vm.kick_all_running_vcpus", _ONE_VM | {"hold": "mine"}))
_IDLE = (*_VM, ("vm.create_vcpu", _ONE_VCPU))
_MAPPED = (*_VM, ("vm.map_host_memory", _ONE_VM | {"size": "0x10000"}))
_MEMORY = (*_MAPPED, ("vm.set_user_memory_region", _SLOT))
_WRITTEN = (*_MEMORY, ("vm.write_guest_memory", _ONE_VM | {"guest_phys_addr": "0x1000", "data": "aGk="}))
_RINGS = (*_MEMORY, ("vm.enable_cap", _ONE_VM | {"cap": "KVM_CAP_DIRTY_LOG_RING", "args": [65536]}))
_COOPERATIVE: tuple[Step, ...] = (("kvm.create_vm", {"execution": "cooperative", "seed": 1}), *_MEMORY[1:])
_RUN: Step = ("vcpu.run", _ONE_VCPU)

# Code at address 0, and the assembly that it was made of.
_ADD = "EwUVAHMAUBA="  # addi a0, a0, 1; wfi
_DIRTY = "NxUAACMwpQBzAFAQ"  # li a0, 0x1000; sd a0, 0(a0); wfi
_LOAD_MMIO = "N5UAAIM1BQBzAFAQ"  # li a0, 0x9000; ld a1, 0(a0); wfi
_PRINT_HI = (
    "EwWAP5MFgAaLRQUAkwWQBotFBQBzAFAQ"  # li a0, 0x3f8; li a1, 104; outb a1, 0(a0); li a1, 105; outb a1, 0(a0); wfi
)

# The smallest ELF executable: two nops at 0x100.
_ELF = (
    "f0VMRgIBAQAAAAAAAAAAAAIA8wABAAAAAAEAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAAAAEAAOAABAEAAAAACAAEAAAAHAAAAeAAA"
    "AAAAAAAAAQAAAAAAAAABAAAAAAAACAAAAAAAAAAIAAAAAAAAAAQAAAAAAAAAEwAAABMAAAA="
)


def _vcpu(code: str) -> tuple[Step, ...]:
    """Give the calls that put code into memory, and a vCPU on it."""
    write = ("vm.write_guest_memory", _ONE_VM | {"guest_phys_addr": "0x0", "data": code})
    return (write, ("vm.create_vcpu", _ONE_VCPU))


EXAMPLES: Mapping[str, Example] = {
    "kvm.get_api_version": Example("the version", {}, 12),
    "kvm.check_extension": Example("how many memslots", {"extension": "KVM_CAP_NR_MEMSLOTS"}, 32764),
    "kvm.create_vm": Example(
        "a cooperative VM", {"name": "first", "execution": "cooperative", "seed": 7}, {"vm": "vm1"}
    ),
    "kvm.destroy_vm": Example("a VM goes", _ONE_VM, None, before=_VM),
    "kvm.list_vms": Example(
        "one VM",
        {},
        [
            {
                "vm": "vm1",
                "name": None,
                "execution": "parallel",
                "state": "created",
                "vcpus": [],
                "generation": 0,
                "dirty_log": "bitmap",
                "ended": [],
            }
        ],
        before=_VM,
    ),
    "vm.map_host_memory": Example(
        "64 KiB", _ONE_VM | {"size": "0x10000", "name": "ram"}, {"userspace_addr": _HVA}, before=_VM
    ),
    "vm.unmap_host_memory": Example(
        "a page of a mapping", _ONE_VM | {"userspace_addr": _HVA, "size": 4096}, None, before=_MAPPED
    ),
    "vm.read_host_memory": Example(
        "eight bytes", _ONE_VM | {"userspace_addr": _HVA, "length": 8}, {"data": "AAAAAAAAAAA="}, before=_MAPPED
    ),
    "vm.write_host_memory": Example(
        "two bytes", _ONE_VM | {"userspace_addr": _HVA, "data": "aGk="}, None, before=_MAPPED
    ),
    "vm.read_guest_memory": Example(
        "two bytes", _ONE_VM | {"guest_phys_addr": "0x1000", "length": 2}, {"data": "aGk="}, before=_WRITTEN
    ),
    "vm.write_guest_memory": Example(
        "two bytes", _ONE_VM | {"guest_phys_addr": "0x1000", "data": "aGk="}, None, before=_MEMORY
    ),
    "vm.set_user_memory_region": Example("a slot with a dirty log", _SLOT, {"generation": 1}, before=_MAPPED),
    "vm.set_user_memory_region_list": Example(
        "a slot shrinks and another takes its end",
        _ONE_VM
        | {
            "regions": [
                {"slot": 0, "flags": 0, "guest_phys_addr": "0x0", "memory_size": 0, "userspace_addr": 0},
                {"slot": 0, "flags": 0, "guest_phys_addr": "0x0", "memory_size": "0x2000", "userspace_addr": _HVA},
                {
                    "slot": 1,
                    "flags": ["KVM_MEM_READONLY"],
                    "guest_phys_addr": "0x2000",
                    "memory_size": "0x2000",
                    "userspace_addr": _HVA,
                },
            ]
        },
        {
            "generation": 2,
            "pause_ns": 52000,
            "dirty": [{"slot": 0, "guest_phys_addr": "0x0", "bitmap": "AAAAAAAAAAA="}],
        },
        before=_MEMORY,
        varies=("pause_ns",),
    ),
    "vm.get_memory_regions": Example(
        "the first slot",
        _ONE_VM | {"count": 1},
        {
            "generation": 1,
            "regions": [
                {"slot": 0, "flags": 1, "guest_phys_addr": "0x0", "memory_size": "0x4000", "userspace_addr": _HVA}
            ],
        },
        before=_MEMORY,
    ),
    "vm.get_dirty_log": Example(
        "a page was written", _ONE_VM | {"slot": 0}, {"bitmap": "AgAAAAAAAAA="}, before=_WRITTEN
    ),
    "vm.clear_dirty_log": Example(
        "page 1", _ONE_VM | {"slot": 0, "first_page": 0, "num_pages": 4, "bitmap": "AgAAAAAAAAA="}, None, before=_MEMORY
    ),
    "vm.enable_cap": Example(
        "dirty rings of 4,096 entries", _ONE_VM | {"cap": "KVM_CAP_DIRTY_LOG_RING", "args": [65536]}, None, before=_VM
    ),
    "vm.reset_dirty_rings": Example(
        "one entry was harvested",
        _ONE_VM,
        {"count": 1},
        before=(*_RINGS, *_vcpu(_DIRTY), _RUN, ("vcpu.harvest_dirty_ring", _ONE_VCPU)),
    ),
    "vm.kick_all_running_vcpus": Example(
        "a hold for a second",
        _ONE_VM | {"hold": "mine", "lease_ms": 1000},
        {"hold": "mine", "kicked": 0, "kick_ns": 31000, "generation": 0, "lease_ms": 1000, "number": 1},
        before=_VM,
        varies=("kick_ns",),
    ),
    "vm.resume_all_kicked_vcpus": Example(
        "a hold ends",
        _ONE_VM | {"hold": "mine"},
        {"pause_ns": 48000, "generation": 0},
        before=_HELD,
        varies=("pause_ns",),
    ),
    "vm.create_vcpu": Example("the first vCPU", _ONE_VCPU, {"vcpu": 0}, before=_VM),
    "vcpu.run": Example(
        "a load that no slot backs",
        _ONE_VCPU | {"timeout_ms": 10000},
        {"exit_reason": "KVM_EXIT_MMIO", "mmio": {"phys_addr": "0x9000", "len": 8, "is_write": False, "data": None}},
        before=(*_MEMORY, *_vcpu(_LOAD_MMIO)),
    ),
    "vcpu.harvest_dirty_ring": Example(
        "one page was written",
        _ONE_VCPU | {"count": 16},
        {"entries": [{"slot": 0, "offset": 1}]},
        before=(*_RINGS, *_vcpu(_DIRTY), _RUN),
    ),
    "vcpu.get_regs": Example(
        "a new vCPU",
        _ONE_VCPU,
        {
            "pc": "0x0",
            **{f"x{number}": "0x0" for number in range(32)},
            "mstatus": "0x0",
            "mie": "0x0",
            "mtvec": "0x0",
            "mscratch": "0x0",
            "mepc": "0x0",
            "mcause": "0x0",
            "mtval": "0x0",
            "mip": "0x0",
            "cycle": "0x0",
            "time": "0x339281",
            "instret": "0x0",
            "mhartid": "0x0",
        },
        before=_IDLE,
        varies=("time",),
    ),
    "vcpu.set_regs": Example("pc and an argument", _ONE_VCPU | {"regs": {"pc": "0x100", "a0": 1}}, None, before=_IDLE),
    "vcpu.set_immediate_exit": Example("the next run ends at once", _ONE_VCPU | {"value": 1}, None, before=_IDLE),
    "vm.create_irqchip": Example("before the first vCPU", _ONE_VM, None, before=_VM),
    "vcpu.interrupt": Example("a vCPU", _ONE_VCPU, None, before=_IDLE),
    "vcpu.get_mp_state": Example("a new vCPU", _ONE_VCPU, "KVM_MP_STATE_RUNNABLE", before=_IDLE),
    "vcpu.set_mp_state": Example(
        "halted",
        _ONE_VCPU | {"mp_state": "KVM_MP_STATE_HALTED"},
        None,
        before=(*_VM, ("vm.create_irqchip", _ONE_VM), ("vm.create_vcpu", _ONE_VCPU)),
    ),
    "vcpu.set_guest_debug": Example(
        "single steps", _ONE_VCPU | {"control": ["KVM_GUESTDBG_ENABLE", "KVM_GUESTDBG_SINGLESTEP"]}, None, before=_IDLE
    ),
    "vcpu.get_stats": Example(
        "a run to wfi",
        _ONE_VCPU,
        {"instructions": 2, "exits": {"KVM_EXIT_HLT": 1}, "stray_exits": 0, "kicks": 0},
        before=(*_MEMORY, *_vcpu(_ADD), _RUN),
    ),
    "vm.get_stats": Example(
        "a run to wfi",
        _ONE_VM,
        {"instructions": 2, "exits": {"KVM_EXIT_HLT": 1}, "stray_exits": 0, "kicks": 0},
        before=(*_MEMORY, *_vcpu(_ADD), _RUN),
    ),
    "vm.start": Example("stray reads give ones", _ONE_VM | {"mmio": "ones"}, None, before=_VM),
    "vm.advance": Example(
        "at most 100 instructions",
        _ONE_VM | {"instructions": 100},
        {
            "instructions": 6,
            "ended_by": "idle",
            "digest": "66bd663987e81efad65ad780cfa2d635c390fd73fc92ac08e0c9c890bcb8dae9",
        },
        before=(*_COOPERATIVE, *_vcpu(_PRINT_HI)),
    ),
    "vm.stop": Example("nothing runs", _ONE_VM, None, before=_VM),
    "vm.load_elf": Example(
        "two instructions at 0x100",
        _ONE_VM
        | {
            "data": _ELF,
            "vcpu": 0,
        },
        {"entry": "0x100", "symbols": {}},
        before=(*_MEMORY, ("vm.create_vcpu", _ONE_VCPU)),
    ),
    "vm.read_console": Example(
        "what the guest has written",
        _ONE_VM | {"since": 0},
        {"data": "aGk=", "next": 2},
        before=(*_COOPERATIVE, *_vcpu(_PRINT_HI), ("vm.advance", _ONE_VM | {"instructions": 100})),
    ),
    "isa.assemble": Example(
        "a loop",
        {"source": "loop:\n  addi a0, a0, 1\n  j loop", "origin": "0x1000"},
        {"code": "EwUVAG/w3/8=", "symbols": {"loop": "0x1000"}},
    ),
    "isa.disassemble": Example(
        "a loop",
        {"code": "EwUVAG/w3/8=", "origin": "0x1000"},
        [
            {"address": "0x1000", "word": "0x150513", "text": "addi a0,a0,1"},
            {"address": "0x1004", "word": "0xffdff06f", "text": "j 0x1000"},
        ],
    ),
    "rpc.discover": Example(
        "the frame of this document",
        {},
        {"openrpc": "1.3.2", "info": {"title": "vmmd", "version": "0.1.0"}, "methods": [], "components": {}},
        varies=("info", "methods", "components"),
    ),
    "daemon.get_info": Example(
        "this daemon",
        {},
        {"version": "0.1.0", "engine": "translated", "pid": 4711, "uptime_ms": 227, "limits": {"vms": 64}},
        varies=("version", "engine", "pid", "uptime_ms", "limits"),
    ),
    "events.subscribe": Example(
        "what comes from now on, of all VMs",
        {},
        {"seq": 0, "oldest": 1, "epoch": "5f2c"},
        varies=("seq", "oldest", "epoch"),
    ),
    "rpc.cancel": Example("a call that is over already", {"id": 1}, {"cancelled": False}),
}
"""An example by its method; each method has one."""
