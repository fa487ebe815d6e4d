"""The one table of methods: what can be asked, with which parameters, and what can come back.

Dispatcher, handlers, client and documents read this table; a method that is not in it does not exist. The gate is a
column of it because the parameters of a gated method carry the gate's options.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from vmmd.api import holds, isa, machine, memory, memslots, system, vcpus
from vmmd.api.types import GateOptions, Params

# What a gated call answers with while somebody else's hold is open (EBUSY), and inside a hold that has failed or ended.
_GATE = ("EBUSY", "ECANCELED")


@dataclass(frozen=True)
class Method:
    """One row: a method and all that is known of it.

    Attributes:
        name: Its name on the wire, "vm.set_user_memory_region".
        params: The model of its parameters.
        result: The type of its result; None where it answers null.
        changes: Whether it changes anything; such a call is logged, and takes `if_generation` where it names a VM.
        summary: One line for people.
        ioctl: The ioctl of KVM (or of the proposal) that it is; None where it is none.
        errors: The errno names that are its own. Beside these: EBADF for a VM or vCPU that does not exist, ESTALE for
            `if_generation`, and a gated method's own.
    """

    name: str
    params: type[Params]
    result: Any
    summary: str
    changes: bool = False
    ioctl: str | None = None
    errors: tuple[str, ...] = ()

    @property
    def gated(self) -> bool:
        """Whether the call uses memslots, and so stays out while somebody else holds the VM."""
        return issubclass(self.params, GateOptions)

    @cached_property
    def result_adapter(self) -> TypeAdapter[Any]:
        """What checks a result, and turns it into JSON and back."""
        return TypeAdapter(self.result)

    @cached_property
    def all_errors(self) -> tuple[str, ...]:
        """Every errno name that the method can answer with, each once."""
        fields = self.params.model_fields
        common = (
            *(("EBADF",) if "vm" in fields else ()),
            *(("ESTALE",) if "if_generation" in fields else ()),
            *(_GATE if self.gated else ()),
        )
        return tuple(dict.fromkeys((*self.errors, *common)))


_SYSTEM = (
    Method(
        "kvm.get_api_version",
        system.GetApiVersionParams,
        int,
        "Give KVM's API version: 12, for good.",
        ioctl="KVM_GET_API_VERSION",
    ),
    Method(
        "kvm.check_extension",
        system.CheckExtensionParams,
        int,
        "Give what a capability amounts to: 0 where vmmd does not have it, else 1 or the capability's own number.",
        ioctl="KVM_CHECK_EXTENSION",
    ),
    Method(
        "kvm.create_vm",
        system.CreateVmParams,
        system.CreateVmResult,
        "Create a VM with no memory and no vCPU.",
        changes=True,
        ioctl="KVM_CREATE_VM",
        errors=("EMFILE", "EINVAL"),
    ),
    Method(
        "kvm.destroy_vm",
        system.DestroyVmParams,
        None,
        "Destroy a VM; always works, and whoever waits for anything in it gets ECANCELED.",
        changes=True,
    ),
    Method("kvm.list_vms", system.ListVmsParams, list[system.VmInfo], "List the VMs, with what ended their run loops."),
)

_MEMORY = (
    Method(
        "vm.map_host_memory",
        memory.MapHostMemoryParams,
        memory.MapHostMemoryResult,
        "Map zeroed host memory for memslots to point into; the daemon chooses the address.",
        changes=True,
        errors=("EINVAL", "ENOMEM"),
    ),
    Method(
        "vm.unmap_host_memory",
        memory.UnmapHostMemoryParams,
        None,
        "Unmap whole pages; once it has returned, no vCPU reaches them.",
        changes=True,
        errors=("EINVAL",),
    ),
    Method(
        "vm.read_host_memory",
        memory.ReadHostMemoryParams,
        memory.MemoryResult,
        "Read host memory by its userspace address.",
        errors=("EFAULT", "E2BIG"),
    ),
    Method(
        "vm.write_host_memory",
        memory.WriteHostMemoryParams,
        None,
        "Write host memory by its userspace address; never marks a page dirty.",
        changes=True,
        errors=("EFAULT",),
    ),
    Method(
        "vm.read_guest_memory",
        memory.ReadGuestMemoryParams,
        memory.MemoryResult,
        "Read guest memory through the memslots; the whole range is checked first.",
        errors=("EFAULT", "E2BIG"),
    ),
    Method(
        "vm.write_guest_memory",
        memory.WriteGuestMemoryParams,
        None,
        "Write guest memory through the memslots; the whole range is checked first, and pages are marked dirty.",
        changes=True,
        errors=("EFAULT",),
    ),
)

_MEMSLOTS = (
    Method(
        "vm.set_user_memory_region",
        memslots.SetUserMemoryRegionParams,
        memslots.GenerationResult,
        "Create, move, delete or re-flag one memslot.",
        changes=True,
        ioctl="KVM_SET_USER_MEMORY_REGION",
        errors=("EINVAL", "EEXIST"),
    ),
    Method(
        "vm.set_user_memory_region_list",
        memslots.SetUserMemoryRegionListParams,
        memslots.RegionListResult,
        "Make several changes of memslots one, all or nothing, in a hold of its own unless it is given one.",
        changes=True,
        ioctl="KVM_SET_USER_MEMORY_REGION_LIST",
        errors=("EINVAL", "EEXIST", "E2BIG", "ETIMEDOUT", "ENOMEM"),
    ),
    Method(
        "vm.get_memory_regions",
        memslots.GetMemoryRegionsParams,
        memslots.RegionsResult,
        "Give the slot table, or a part of it, in order of slot ids.",
        errors=("E2BIG",),
    ),
    Method(
        "vm.get_dirty_log",
        memslots.GetDirtyLogParams,
        memslots.DirtyLogResult,
        "Fetch a slot's dirty bitmap, whole or a part, and clear what was fetched.",
        changes=True,
        ioctl="KVM_GET_DIRTY_LOG",
        errors=("ENXIO", "EINVAL", "ENOENT", "E2BIG"),
    ),
    Method(
        "vm.clear_dirty_log",
        memslots.ClearDirtyLogParams,
        None,
        "Clear dirty bits of a slot.",
        changes=True,
        ioctl="KVM_CLEAR_DIRTY_LOG",
        errors=("ENXIO", "EINVAL", "ENOENT", "EFAULT"),
    ),
    Method(
        "vm.enable_cap",
        memslots.EnableCapParams,
        None,
        "Switch a capability of the VM on.",
        changes=True,
        ioctl="KVM_ENABLE_CAP",
        errors=("EINVAL", "E2BIG", "EBUSY", "ENOMEM"),
    ),
    Method(
        "vm.reset_dirty_rings",
        memslots.ResetDirtyRingsParams,
        memslots.ResetDirtyRingsResult,
        "Free every harvested entry of the dirty rings; the next store to its page is logged again.",
        changes=True,
        ioctl="KVM_RESET_DIRTY_RINGS",
        errors=("EINVAL", "EBUSY"),
    ),
)

_HOLDS = (
    Method(
        "vm.kick_all_running_vcpus",
        holds.KickAllRunningVcpusParams,
        holds.KickResult,
        "Open a hold: answers when no vCPU is in guest mode or reads slots.",
        changes=True,
        ioctl="KVM_KICK_ALL_RUNNING_VCPUS",
        errors=("EDEADLK", "ETIMEDOUT", "ECANCELED", "EBUSY"),
    ),
    Method(
        "vm.resume_all_kicked_vcpus",
        holds.ResumeAllKickedVcpusParams,
        holds.ResumeResult,
        "End a hold: publish what was done inside it, or roll it back where a call inside has failed.",
        changes=True,
        ioctl="KVM_RESUME_ALL_KICKED_VCPUS",
        errors=("ECANCELED", "EINVAL", "EBUSY"),
    ),
)

_VCPUS = (
    Method(
        "vm.create_vcpu",
        vcpus.CreateVcpuParams,
        vcpus.CreateVcpuResult,
        "Create a vCPU; it starts KVM_MP_STATE_RUNNABLE, and held where the VM is held.",
        changes=True,
        ioctl="KVM_CREATE_VCPU",
        errors=("EINVAL", "EEXIST", "EBUSY"),
    ),
    Method(
        "vcpu.run",
        vcpus.RunParams,
        vcpus.RunResult,
        "One KVM_RUN: the guest runs until userspace must see something.",
        changes=True,
        ioctl="KVM_RUN",
        errors=("EINTR", "EFAULT", "EBUSY", "ECANCELED", "EINVAL"),
    ),
    Method(
        "vcpu.harvest_dirty_ring",
        vcpus.HarvestDirtyRingParams,
        vcpus.HarvestDirtyRingResult,
        "Read published entries of a vCPU's dirty ring, and mark them for vm.reset_dirty_rings.",
        changes=True,
        errors=("EINVAL",),
    ),
    Method(
        "vcpu.get_regs",
        vcpus.GetRegsParams,
        vcpus.Regs,
        "Give the registers; a running vCPU leaves guest mode for the call and goes on.",
        ioctl="KVM_GET_REGS",
    ),
    Method(
        "vcpu.set_regs",
        vcpus.SetRegsParams,
        None,
        "Set the registers that are named; a running vCPU leaves guest mode for the call and goes on.",
        changes=True,
        ioctl="KVM_SET_REGS",
        errors=("EINVAL", "EBUSY"),
    ),
    Method(
        "vcpu.set_immediate_exit",
        vcpus.SetImmediateExitParams,
        None,
        "Set kvm_run's immediate_exit, which makes KVM_RUN end pending work and return EINTR.",
        changes=True,
        errors=("EBUSY",),
    ),
    Method(
        "vm.create_irqchip",
        vcpus.CreateIrqchipParams,
        None,
        "Add the in-kernel interrupt controller: CLINT's registers at 0x2000000, and a wfi that sleeps inside KVM_RUN.",
        changes=True,
        ioctl="KVM_CREATE_IRQCHIP",
        errors=("EEXIST", "EINVAL", "EBUSY"),
    ),
    Method(
        "vcpu.interrupt",
        vcpus.InterruptParams,
        None,
        "Make the external interrupt pending, until the guest takes it.",
        changes=True,
        ioctl="KVM_INTERRUPT",
        errors=("EBUSY",),
    ),
    Method(
        "vcpu.get_mp_state",
        vcpus.GetMpStateParams,
        str,
        "Tell whether a vCPU is runnable, or halted until an interrupt.",
        ioctl="KVM_GET_MP_STATE",
    ),
    Method(
        "vcpu.set_mp_state",
        vcpus.SetMpStateParams,
        None,
        "Make a vCPU runnable, or halt it until an interrupt.",
        changes=True,
        ioctl="KVM_SET_MP_STATE",
        errors=("EINVAL", "EBUSY"),
    ),
    Method(
        "vcpu.set_guest_debug",
        vcpus.SetGuestDebugParams,
        None,
        "Leave the guest at every ebreak, or after every instruction, with KVM_EXIT_DEBUG.",
        changes=True,
        ioctl="KVM_SET_GUEST_DEBUG",
        errors=("EINVAL", "EBUSY"),
    ),
    Method("vcpu.get_stats", vcpus.GetVcpuStatsParams, vcpus.StatsResult, "Give a vCPU's counters."),
    Method("vm.get_stats", vcpus.GetVmStatsParams, vcpus.StatsResult, "Give the counters, summed over the VM's vCPUs."),
)

_MACHINE = (
    Method(
        "vm.start",
        machine.StartParams,
        None,
        "Start a run loop a vCPU, which calls KVM_RUN for good and serves the console.",
        changes=True,
        errors=("EBUSY", "EINVAL"),
    ),
    Method(
        "vm.advance",
        machine.AdvanceParams,
        machine.AdvanceResult,
        "Let a cooperative VM's run loops go on for so many retired instructions, in the order that its seed decides.",
        changes=True,
        errors=("EINVAL", "EBUSY", "ECANCELED"),
    ),
    Method("vm.stop", machine.StopParams, None, "End all run loops, held ones too; idempotent.", changes=True),
    Method(
        "vm.load_elf",
        machine.LoadElfParams,
        machine.LoadElfResult,
        "Load an ELF executable into memory that slots give, all or nothing; zeroes and dirty marks included.",
        changes=True,
        errors=("EINVAL", "EFAULT", "ENOMEM", "E2BIG"),
    ),
    Method(
        "vm.read_console", machine.ReadConsoleParams, machine.ConsoleResult, "Read what the guest wrote to port 0x3f8."
    ),
)

_REST = (
    Method(
        "isa.assemble",
        isa.AssembleParams,
        isa.AssembleResult,
        "Assemble T64 source; an error names line and column.",
        errors=("EINVAL", "E2BIG"),
    ),
    Method(
        "isa.disassemble",
        isa.DisassembleParams,
        list[isa.Line],
        "Write code as T64 source, a word a line; assembled again it is the same code.",
        errors=("EINVAL", "E2BIG"),
    ),
    Method("daemon.get_info", system.GetInfoParams, system.InfoResult, "Give the daemon's version, limits and uptime."),
)

METHODS: Mapping[str, Method] = {
    method.name: method for method in (*_SYSTEM, *_MEMORY, *_MEMSLOTS, *_HOLDS, *_VCPUS, *_MACHINE, *_REST)
}
"""Every method by its name on the wire."""
