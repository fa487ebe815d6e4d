"""The methods of the wire as values: one function a method, which makes a typed `Call` and sends nothing.

Every front end is made of these: the resource objects send one at a time, a batch takes any number. Names and meanings
are the wire's; addresses and sizes are integers, bytes are bytes. What is legal is for the daemon to say.
"""

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, Unpack

from vmmd.api.events import SubscribeResult
from vmmd.api.holds import KickResult, ResumeResult
from vmmd.api.isa import AssembleResult, Line
from vmmd.api.machine import AdvanceResult, ConsoleResult, LoadElfResult
from vmmd.api.memslots import RegionListResult, RegionsResult
from vmmd.api.system import InfoResult, VmInfo
from vmmd.api.vcpus import RunResult, StatsResult

from ..errors import UnsendableParam
from ..slots.memslots import Memslot
from .call_options import BytesLike, ChangeOptions, GatedChangeOptions, GateOptions
from .protocol import Call, T


def raw(method: str, params: Mapping[str, Any]) -> Call[Any]:
    """Make a call of any method, also of one that this library does not know; its result is JSON as it came."""
    return Call(method, params, _whole, checked=False)


def get_api_version() -> Call[int]:
    """KVM_GET_API_VERSION: 12."""
    return _call("kvm.get_api_version", _whole)


def check_extension(extension: str) -> Call[int]:
    """KVM_CHECK_EXTENSION: what "KVM_CAP_…" amounts to; 0 where vmmd does not have it."""
    return _call("kvm.check_extension", _whole, extension=extension)


def create_vm(
    name: str | None, execution: Literal["parallel", "cooperative"] | None = None, seed: int | None = None
) -> Call[str]:
    """KVM_CREATE_VM: the new VM's id."""
    return _call("kvm.create_vm", attrgetter("vm"), name=name, execution=execution, seed=seed)


def destroy_vm(vm: str) -> Call[None]:
    """Destroy a VM."""
    return _call("kvm.destroy_vm", _whole, vm=vm)


def list_vms() -> Call[list[VmInfo]]:
    """List the VMs."""
    return _call("kvm.list_vms", _whole)


def map_host_memory(
    vm: str, size: int, name: str | None, sparse: bool | None = None, **options: Unpack[GatedChangeOptions]
) -> Call[int]:
    """Map `size` zeroed bytes; gives their userspace address."""
    unwrap = attrgetter("userspace_addr")
    return _call("vm.map_host_memory", unwrap, vm=vm, size=size, name=name, sparse=sparse, **options)


def unmap_host_memory(vm: str, userspace_addr: int, size: int, **options: Unpack[GatedChangeOptions]) -> Call[None]:
    """Unmap whole pages."""
    return _call("vm.unmap_host_memory", _whole, vm=vm, userspace_addr=userspace_addr, size=size, **options)


def read_host_memory(vm: str, userspace_addr: int, length: int, **options: Unpack[GateOptions]) -> Call[bytes]:
    """Read bytes by their userspace address."""
    return _call(
        "vm.read_host_memory", attrgetter("data"), vm=vm, userspace_addr=userspace_addr, length=length, **options
    )


def write_host_memory(
    vm: str, userspace_addr: int, data: BytesLike, **options: Unpack[GatedChangeOptions]
) -> Call[None]:
    """Write bytes by their userspace address."""
    return _call("vm.write_host_memory", _whole, vm=vm, userspace_addr=userspace_addr, data=_bytes(data), **options)


def read_guest_memory(vm: str, guest_phys_addr: int, length: int, **options: Unpack[GateOptions]) -> Call[bytes]:
    """Read bytes through the memslots."""
    return _call(
        "vm.read_guest_memory", attrgetter("data"), vm=vm, guest_phys_addr=guest_phys_addr, length=length, **options
    )


def write_guest_memory(
    vm: str, guest_phys_addr: int, data: BytesLike, **options: Unpack[GatedChangeOptions]
) -> Call[None]:
    """Write bytes through the memslots."""
    return _call("vm.write_guest_memory", _whole, vm=vm, guest_phys_addr=guest_phys_addr, data=_bytes(data), **options)


def set_user_memory_region(vm: str, region: Memslot, **options: Unpack[GatedChangeOptions]) -> Call[int]:
    """KVM_SET_USER_MEMORY_REGION: the table's new generation."""
    return _call(
        "vm.set_user_memory_region",
        attrgetter("generation"),
        vm=vm,
        slot=region.slot,
        flags=int(region.flags),
        guest_phys_addr=region.guest_phys_addr,
        memory_size=region.memory_size,
        userspace_addr=region.userspace_addr,
        **options,
    )


def set_user_memory_region_list(
    vm: str, regions: Iterable[Memslot], *, dry_run: bool = False, **options: Unpack[GatedChangeOptions]
) -> Call[RegionListResult]:
    """Several changes of memslots as one."""
    changes = [
        {
            "slot": region.slot,
            "flags": int(region.flags),
            "guest_phys_addr": region.guest_phys_addr,
            "memory_size": region.memory_size,
            "userspace_addr": region.userspace_addr,
        }
        for region in regions
    ]
    return _call("vm.set_user_memory_region_list", _whole, vm=vm, regions=changes, dry_run=dry_run, **options)


def get_memory_regions(vm: str, first: int = 0, count: int | None = None) -> Call[RegionsResult]:
    """The slot table, or a part of it."""
    return _call("vm.get_memory_regions", _whole, vm=vm, first=first, count=count)


def get_dirty_log(
    vm: str,
    slot: int,
    first_page: int | None = None,
    num_pages: int | None = None,
    **options: Unpack[GatedChangeOptions],
) -> Call[bytes]:
    """KVM_GET_DIRTY_LOG: the bitmap, in KVM's layout."""
    return _call(
        "vm.get_dirty_log",
        attrgetter("bitmap"),
        vm=vm,
        slot=slot,
        first_page=first_page,
        num_pages=num_pages,
        **options,
    )


def clear_dirty_log(
    vm: str, slot: int, first_page: int, num_pages: int, bitmap: BytesLike, **options: Unpack[GatedChangeOptions]
) -> Call[None]:
    """KVM_CLEAR_DIRTY_LOG."""
    return _call(
        "vm.clear_dirty_log",
        _whole,
        vm=vm,
        slot=slot,
        first_page=first_page,
        num_pages=num_pages,
        bitmap=_bytes(bitmap),
        **options,
    )


def enable_cap(vm: str, cap: str, args: Iterable[int], **options: Unpack[ChangeOptions]) -> Call[None]:
    """KVM_ENABLE_CAP."""
    return _call("vm.enable_cap", _whole, vm=vm, cap=cap, args=list(args), **options)


def reset_dirty_rings(vm: str, **options: Unpack[ChangeOptions]) -> Call[int]:
    """KVM_RESET_DIRTY_RINGS; gives how many entries are free again."""
    return _call("vm.reset_dirty_rings", attrgetter("count"), vm=vm, **options)


def harvest_dirty_ring(
    vm: str, vcpu: int, count: int | None = None, **options: Unpack[ChangeOptions]
) -> Call[list[tuple[int, int]]]:
    """Read published entries of a dirty ring; gives (slot, page in the slot)."""
    return _call("vcpu.harvest_dirty_ring", _ring_entries, vm=vm, vcpu=vcpu, count=count, **options)


def kick_all_running_vcpus(
    vm: str,
    hold: str | None = None,
    wait_ms: int | None = None,
    lease_ms: int | None = None,
    **options: Unpack[ChangeOptions],
) -> Call[KickResult]:
    """KVM_KICK_ALL_RUNNING_VCPUS, raw where no hold is named."""
    return _call("vm.kick_all_running_vcpus", _whole, vm=vm, hold=hold, wait_ms=wait_ms, lease_ms=lease_ms, **options)


def resume_all_kicked_vcpus(vm: str, hold: str | None = None, **options: Unpack[ChangeOptions]) -> Call[ResumeResult]:
    """KVM_RESUME_ALL_KICKED_VCPUS: end the hold."""
    return _call("vm.resume_all_kicked_vcpus", _whole, vm=vm, hold=hold, **options)


def create_vcpu(vm: str, vcpu: int, **options: Unpack[ChangeOptions]) -> Call[int]:
    """KVM_CREATE_VCPU: the vCPU's id."""
    return _call("vm.create_vcpu", attrgetter("vcpu"), vm=vm, vcpu=vcpu, **options)


def run(
    vm: str, vcpu: int, data: BytesLike | None = None, timeout_ms: int | None = None, **options: Unpack[ChangeOptions]
) -> Call[RunResult]:
    """One KVM_RUN."""
    return _call("vcpu.run", _whole, vm=vm, vcpu=vcpu, data=_bytes(data), timeout_ms=timeout_ms, **options)


def get_regs(vm: str, vcpu: int) -> Call[dict[str, int]]:
    """KVM_GET_REGS."""
    return _call("vcpu.get_regs", _whole, vm=vm, vcpu=vcpu)


def set_regs(vm: str, vcpu: int, regs: Mapping[str, int], **options: Unpack[ChangeOptions]) -> Call[None]:
    """KVM_SET_REGS, of the registers that are named."""
    return _call("vcpu.set_regs", _whole, vm=vm, vcpu=vcpu, regs=dict(regs), **options)


def set_immediate_exit(vm: str, vcpu: int, value: int, **options: Unpack[ChangeOptions]) -> Call[None]:
    """Set kvm_run's immediate_exit."""
    return _call("vcpu.set_immediate_exit", _whole, vm=vm, vcpu=vcpu, value=value, **options)


def create_irqchip(vm: str, **options: Unpack[ChangeOptions]) -> Call[None]:
    """KVM_CREATE_IRQCHIP."""
    return _call("vm.create_irqchip", _whole, vm=vm, **options)


def interrupt(vm: str, vcpu: int, **options: Unpack[ChangeOptions]) -> Call[None]:
    """KVM_INTERRUPT."""
    return _call("vcpu.interrupt", _whole, vm=vm, vcpu=vcpu, **options)


def get_mp_state(vm: str, vcpu: int) -> Call[str]:
    """KVM_GET_MP_STATE."""
    return _call("vcpu.get_mp_state", _whole, vm=vm, vcpu=vcpu)


def set_mp_state(vm: str, vcpu: int, mp_state: str, **options: Unpack[ChangeOptions]) -> Call[None]:
    """KVM_SET_MP_STATE."""
    return _call("vcpu.set_mp_state", _whole, vm=vm, vcpu=vcpu, mp_state=mp_state, **options)


def set_guest_debug(vm: str, vcpu: int, control: int, **options: Unpack[ChangeOptions]) -> Call[None]:
    """KVM_SET_GUEST_DEBUG."""
    return _call("vcpu.set_guest_debug", _whole, vm=vm, vcpu=vcpu, control=control, **options)


def get_vcpu_stats(vm: str, vcpu: int) -> Call[StatsResult]:
    """A vCPU's counters."""
    return _call("vcpu.get_stats", _whole, vm=vm, vcpu=vcpu)


def get_vm_stats(vm: str) -> Call[StatsResult]:
    """The counters, summed over the VM's vCPUs."""
    return _call("vm.get_stats", _whole, vm=vm)


def start(vm: str, mmio: Literal["stop", "ones"], **options: Unpack[ChangeOptions]) -> Call[None]:
    """Start a run loop a vCPU."""
    return _call("vm.start", _whole, vm=vm, mmio=mmio, **options)


def advance(
    vm: str,
    instructions: int,
    mmio: Literal["stop", "ones"] | None = None,
    wait_ms: int | None = None,
    **options: Unpack[ChangeOptions],
) -> Call[AdvanceResult]:
    """Let a cooperative VM go on for so many retired instructions."""
    return _call("vm.advance", _whole, vm=vm, instructions=instructions, mmio=mmio, wait_ms=wait_ms, **options)


def stop(vm: str, **options: Unpack[ChangeOptions]) -> Call[None]:
    """End all run loops."""
    return _call("vm.stop", _whole, vm=vm, **options)


def load_elf(
    vm: str, data: BytesLike, vcpu: int | None = None, **options: Unpack[GatedChangeOptions]
) -> Call[LoadElfResult]:
    """Load an ELF executable through the memslots."""
    return _call("vm.load_elf", _whole, vm=vm, data=_bytes(data), vcpu=vcpu, **options)


def read_console(vm: str, since: int) -> Call[ConsoleResult]:
    """Read what the guest wrote to the console."""
    return _call("vm.read_console", _whole, vm=vm, since=since)


def assemble(source: str, origin: int) -> Call[AssembleResult]:
    """Assemble T64 source."""
    return _call("isa.assemble", _whole, source=source, origin=origin)


def disassemble(code: BytesLike, origin: int) -> Call[list[Line]]:
    """Write code as T64 source."""
    return _call("isa.disassemble", _whole, code=_bytes(code), origin=origin)


def subscribe(vm: str | None, since: int | None, epoch: str | None) -> Call[SubscribeResult]:
    """Have events come over the same WebSocket, those behind the number `since` of a daemon's `epoch` first."""
    return _call("events.subscribe", _whole, vm=vm, since=since, epoch=epoch)


def get_info() -> Call[InfoResult]:
    """What the daemon says about itself."""
    return _call("daemon.get_info", _whole)


def discover() -> Call[dict[str, Any]]:
    """The OpenRPC document: every method with its parameters, results, errors and an example."""
    return _call("rpc.discover", _whole)


def _call(method: str, unwrap: Callable[[Any], T], **params: Any) -> Call[T]:
    """Make a call; parameters that are None are left out.

    Raises:
        UnsendableParam: bytes where text is wanted, or the other way round.
    """
    given = {name: value for name, value in params.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, _Bytes):
            given[name] = value.base64(method, name)
        elif isinstance(value, bytes | bytearray | memoryview):
            raise UnsendableParam(method, name, f"it is {type(value).__name__}, and text is wanted: decode it")
    return Call(method, given, unwrap)


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A parameter that is bytes, as it was given; a text in its place would go as somebody's base64."""

    value: object

    def base64(self, method: str, name: str) -> str:
        try:
            # Whatever has a buffer, as an array of numpy's, and also one with gaps.
            view = memoryview(self.value)  # type: ignore[arg-type]
        except TypeError:
            problem = f"it is {type(self.value).__name__}, and bytes are wanted"
            raise UnsendableParam(method, name, problem + (": encode it" * isinstance(self.value, str))) from None
        return base64.b64encode(view if view.c_contiguous else view.tobytes()).decode("ascii")


def _bytes(value: BytesLike | None) -> _Bytes | None:
    return None if value is None else _Bytes(value)


def _whole(result: Any) -> Any:
    return result


def _ring_entries(result: Any) -> list[tuple[int, int]]:
    return [(entry.slot, entry.offset) for entry in result.entries]
