"""vCPUs: KVM_RUN and its exits, registers, interrupts, debugging, statistics; models and methods."""

from typing import Annotated

from pydantic import AfterValidator, Field

from vmmd.api.method import Method
from vmmd.api.types import (
    U32,
    Base64,
    ChangeOptions,
    Count,
    GuestDebug,
    Hex64,
    Result,
    U64In,
    VcpuParams,
    VmParams,
    entries,
)


class CreateVcpuParams(VcpuParams, ChangeOptions):
    """The new vCPU's id."""


class CreateVcpuResult(Result):
    """The new vCPU."""

    vcpu: int


class RunParams(VcpuParams, ChangeOptions):
    """One KVM_RUN."""

    data: Base64 | None = Field(
        default=None,
        max_length=8,
        description="The bytes that end a pending MMIO or port read, or a hypercall, base64; left out: zeros.",
    )
    timeout_ms: U32 | None = Field(
        default=None,
        description="After so many milliseconds the run is interrupted as by a signal (EINTR); left out: never.",
    )


class MmioExit(Result):
    """KVM_EXIT_MMIO: an access that no memslot backs, or a store to a read-only one."""

    phys_addr: Hex64
    len: int = Field(description="Bytes: 1, 2, 4 or 8.")
    is_write: bool
    data: Base64 | None = Field(description="What the guest stores; null for a read.")


class IoExit(Result):
    """KVM_EXIT_IO: a port access."""

    direction: int = Field(description="0 in, 1 out.")
    size: int = Field(description="Bytes of one item: 1, 2 or 4.")
    port: int
    count: int = Field(description="Items.")
    data: Base64 | None = Field(description="What the guest puts out; null for an in.")


class HypercallExit(Result):
    """KVM_EXIT_HYPERCALL: the guest asks the VMM for something."""

    nr: Hex64
    args: tuple[Hex64, ...]


class InternalExit(Result):
    """KVM_EXIT_INTERNAL_ERROR: the guest is beyond what can be executed."""

    suberror: int = Field(description="1: KVM_INTERNAL_ERROR_EMULATION, there is no memory where an instruction is.")
    phys_addr: Hex64 = Field(description="The guest physical address where memory is missing.")


class ShutdownExit(Result):
    """KVM_EXIT_SHUTDOWN: an exception that the guest does not take, by RISC-V's numbers."""

    cause: Hex64 = Field(description="mcause: 2 is an illegal instruction, 3 an ebreak.")
    value: Hex64 = Field(description="mtval: the instruction, or the address.")


class DebugExit(Result):
    """KVM_EXIT_DEBUG: what vcpu.set_guest_debug asked for."""

    pc: Hex64 = Field(description="The address of the ebreak, or of what comes next after a single step.")
    exception: int | None = Field(description="RISC-V's cause: 3 for an ebreak; null for a single step.")


class RunResult(Result):
    """How a KVM_RUN ended: the reason, and the member that belongs to it."""

    exit_reason: str = Field(description='"KVM_EXIT_MMIO", "KVM_EXIT_HLT", …')
    mmio: MmioExit | None = None
    io: IoExit | None = None
    hypercall: HypercallExit | None = None
    internal: InternalExit | None = None
    debug: DebugExit | None = None
    shutdown: ShutdownExit | None = None


class HarvestDirtyRingParams(VcpuParams, ChangeOptions):
    """Whose dirty ring to read."""

    count: int = Field(
        default=4096,
        strict=True,
        ge=1,
        le=65536,
        description="How many entries at most; what does not fit in the reply stays for the next call.",
    )


class DirtyGfn(Result):
    """One entry: struct kvm_dirty_gfn."""

    slot: int = Field(description="The slot's id, with its address space in bits 16 to 31.")
    offset: int = Field(description="The page's number in the slot.")


class HarvestDirtyRingResult(Result):
    """Entries that the vCPU had published; they are free again after vm.reset_dirty_rings."""

    entries: tuple[DirtyGfn, ...]


class GetRegsParams(VcpuParams):
    """Whose registers to give."""


# More than there are names for registers.
_MOST_REGISTERS = 128


class SetRegsParams(VcpuParams, ChangeOptions):
    """Which registers to set; those that are not named keep their value."""

    regs: Annotated[dict[str, U64In], entries(0, _MOST_REGISTERS)] = Field(
        max_length=_MOST_REGISTERS,
        description="Register name to value: pc, x1 to x31 or the ABI's names (ra, sp, a0, …), mstatus, mie, mip, "
        "mtvec, mscratch, mepc, mcause, mtval.",
    )


class GetMpStateParams(VcpuParams):
    """Whose state to give."""


def _mp_state(name: str) -> str:
    if name not in MP_STATES:
        raise ValueError(f"{name!r:.60} is no mp_state; there are {', '.join(MP_STATES)}")
    return name


MP_STATES = {
    "KVM_MP_STATE_RUNNABLE": 0,
    "KVM_MP_STATE_UNINITIALIZED": 1,
    "KVM_MP_STATE_INIT_RECEIVED": 2,
    "KVM_MP_STATE_HALTED": 3,
    "KVM_MP_STATE_SIPI_RECEIVED": 4,
    "KVM_MP_STATE_STOPPED": 5,
    "KVM_MP_STATE_CHECK_STOP": 6,
    "KVM_MP_STATE_OPERATING": 7,
    "KVM_MP_STATE_LOAD": 8,
    "KVM_MP_STATE_AP_RESET_HOLD": 9,
    "KVM_MP_STATE_SUSPENDED": 10,
}
"""KVM's names for what a vCPU can be doing; a T64 is runnable or halted."""

MpState = Annotated[str, AfterValidator(_mp_state)]


class SetMpStateParams(VcpuParams, ChangeOptions):
    """What the vCPU is to be doing."""

    mp_state: MpState = Field(
        description='"KVM_MP_STATE_RUNNABLE", with an irqchip also "KVM_MP_STATE_HALTED": it waits for an interrupt.'
    )


class InterruptParams(VcpuParams, ChangeOptions):
    """Whom to interrupt."""


class SetGuestDebugParams(VcpuParams, ChangeOptions):
    """What a debugger wants to see."""

    control: GuestDebug = Field(
        description='Bits, or their names: ["KVM_GUESTDBG_ENABLE", "KVM_GUESTDBG_SINGLESTEP"] leaves after every '
        "instruction, KVM_GUESTDBG_USE_SW_BP at every ebreak; without KVM_GUESTDBG_ENABLE nothing does."
    )


class CreateIrqchipParams(VmParams, ChangeOptions):
    """Which VM gets the in-kernel interrupt controller."""


class SetImmediateExitParams(VcpuParams, ChangeOptions):
    """kvm_run's immediate_exit."""

    value: int = Field(
        strict=True, ge=0, le=255, description="A byte: unless it is 0, KVM_RUN ends pending work and gives EINTR."
    )


class GetVcpuStatsParams(VcpuParams):
    """Whose statistics to give."""


class GetVmStatsParams(VmParams):
    """Whose statistics to give, summed over the VM's vCPUs."""


class StatsResult(Result):
    """Counters since the vCPU, or the VM, was created."""

    instructions: Count = Field(description="Instructions retired.")
    exits: dict[str, Count] = Field(description='Returns of KVM_RUN by exit reason, {"KVM_EXIT_MMIO": 3}.')
    stray_exits: Count = Field(description="MMIO exits that no device of the run loop answers for.")
    kicks: Count = Field(description="How often the vCPU was kicked out of KVM_RUN.")


Regs = dict[str, Hex64]
"""A vCPU's registers by name: pc, x0 to x31, and the control and status registers."""


_ADVANCING = "An advance is under way."
_DESTROYED = "The VM was destroyed meanwhile."

ROWS = (
    Method(
        "vm.create_vcpu",
        CreateVcpuParams,
        CreateVcpuResult,
        "Create a vCPU; it starts KVM_MP_STATE_RUNNABLE, and held where the VM is held.",
        changes=True,
        ioctl="KVM_CREATE_VCPU",
        errors={
            "EINVAL": "The id is not below limits.vcpus_per_vm.",
            "EEXIST": "The VM has a vCPU of that id.",
            "EBUSY": _ADVANCING,
            "ECANCELED": _DESTROYED,
        },
    ),
    Method(
        "vcpu.run",
        RunParams,
        RunResult,
        "One KVM_RUN: the guest runs until userspace must see something.",
        changes=True,
        ioctl="KVM_RUN",
        errors={
            "EINTR": "The run was interrupted: timeout_ms, a raw kick, immediate_exit, vm.stop, or its caller went.",
            "EFAULT": "The guest touched a slot's page that is not mapped.",
            "EBUSY": "Another run has the vCPU, or the run loop.",
            "ECANCELED": _DESTROYED,
            "EINVAL": "`data` does not fit what is pending, or the VM is cooperative.",
        },
    ),
    Method(
        "vcpu.harvest_dirty_ring",
        HarvestDirtyRingParams,
        HarvestDirtyRingResult,
        "Read published entries of a vCPU's dirty ring, and mark them for vm.reset_dirty_rings.",
        changes=True,
        errors={"EINVAL": "The VM has no dirty rings."},
    ),
    Method(
        "vcpu.get_regs",
        GetRegsParams,
        Regs,
        "Give the registers; a running vCPU leaves guest mode for the call and goes on.",
        ioctl="KVM_GET_REGS",
        errors={"E2BIG": "The registers have no room in the reply."},
    ),
    Method(
        "vcpu.set_regs",
        SetRegsParams,
        None,
        "Set the registers that are named; a running vCPU leaves guest mode for the call and goes on.",
        changes=True,
        ioctl="KVM_SET_REGS",
        errors={
            "EINVAL": "There is no register of a name, it is given twice, or cannot have that value.",
            "EBUSY": _ADVANCING,
        },
    ),
    Method(
        "vcpu.set_immediate_exit",
        SetImmediateExitParams,
        None,
        "Set kvm_run's immediate_exit, which makes KVM_RUN end pending work and return EINTR.",
        changes=True,
        errors={"EBUSY": _ADVANCING},
    ),
    Method(
        "vm.create_irqchip",
        CreateIrqchipParams,
        None,
        "Add the in-kernel interrupt controller: CLINT's registers at 0x2000000, and a wfi that sleeps inside KVM_RUN.",
        changes=True,
        ioctl="KVM_CREATE_IRQCHIP",
        errors={
            "EEXIST": "The VM has an interrupt controller.",
            "EINVAL": "The VM has a vCPU already.",
            "EBUSY": _ADVANCING,
            "ECANCELED": _DESTROYED,
        },
    ),
    Method(
        "vcpu.interrupt",
        InterruptParams,
        None,
        "Make the external interrupt pending, until the guest takes it.",
        changes=True,
        ioctl="KVM_INTERRUPT",
        errors={"EBUSY": _ADVANCING},
    ),
    Method(
        "vcpu.get_mp_state",
        GetMpStateParams,
        str,
        "Tell whether a vCPU is runnable, or halted until an interrupt.",
        ioctl="KVM_GET_MP_STATE",
    ),
    Method(
        "vcpu.set_mp_state",
        SetMpStateParams,
        None,
        "Make a vCPU runnable, or halt it until an interrupt.",
        changes=True,
        ioctl="KVM_SET_MP_STATE",
        errors={
            "EINVAL": "A T64 has no such state, or none without vm.create_irqchip.",
            "EBUSY": _ADVANCING,
        },
    ),
    Method(
        "vcpu.set_guest_debug",
        SetGuestDebugParams,
        None,
        "Leave the guest at every ebreak, or after every instruction, with KVM_EXIT_DEBUG.",
        changes=True,
        ioctl="KVM_SET_GUEST_DEBUG",
        errors={"EINVAL": "`control` has bits that T64 does not know.", "EBUSY": _ADVANCING},
    ),
    Method("vcpu.get_stats", GetVcpuStatsParams, StatsResult, "Give a vCPU's counters."),
    Method("vm.get_stats", GetVmStatsParams, StatsResult, "Give the counters, summed over the VM's vCPUs."),
)
