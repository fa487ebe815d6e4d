"""The run loop that a VMM has in userspace, and the console that it serves: models and methods."""

from typing import Literal

from pydantic import Field

from vmmd.api.method import Method
from vmmd.api.types import U32, Base64, ChangeOptions, Count, GateOptions, Hex64, Result, VcpuId, VmParams


class StartParams(VmParams, ChangeOptions):
    """How the run loops treat what nobody answers for."""

    mmio: Literal["stop", "ones"] = Field(
        default="stop",
        description='An MMIO exit nobody owns is counted as stray, and then: "stop" the vCPU, or read all "ones".',
    )


class StopParams(VmParams, ChangeOptions):
    """Which VM's run loops end."""


class AdvanceParams(VmParams, ChangeOptions):
    """How far a cooperative VM goes on."""

    instructions: Count = Field(description="How many instructions its vCPUs are to retire, all together.")
    mmio: Literal["stop", "ones"] = Field(
        default="stop", description='What becomes of an MMIO exit nobody owns in this advance, as of "vm.start".'
    )
    wait_ms: U32 = Field(
        default=0,
        description="How long to wait, in milliseconds, while the VM is held or advanced, before EBUSY; 0: no time.",
    )


class AdvanceResult(Result):
    """How far it went, and what it has come to."""

    instructions: Count = Field(description="How many instructions retired: those asked for, where nothing ended it.")
    ended_by: str = Field(
        description='"instructions": all that were asked for; "idle": no vCPU can run before a call from outside; '
        '"traps": the guest did nothing but trap; "stop": vm.stop.'
    )
    digest: str = Field(
        description="sha256 in hex over all exits since the VM was created, registers, slots and memory."
    )


class LoadElfParams(VmParams, GateOptions, ChangeOptions):
    """Which executable to load, and which vCPU is to begin it."""

    data: Base64 = Field(
        description="The file, base64: a static ELF64 executable for RISC-V (-march=rv64ima_zicsr_zifencei -mabi=lp64)."
    )
    vcpu: VcpuId | None = Field(
        default=None, description="The id of the vCPU whose pc becomes the entry; left out: none's."
    )


class LoadElfResult(Result):
    """Where things lie."""

    entry: Hex64 = Field(description="The guest physical address of the first instruction.")
    symbols: dict[str, Hex64] = Field(description="Function, object or label to address.")


class ReadConsoleParams(VmParams):
    """From where to read what the guest wrote to port 0x3f8."""

    since: Count = Field(
        default=0, description="The position to read from, as `next` of the last read gave it; 0: the start."
    )


class ConsoleResult(Result):
    """A part of what the guest wrote."""

    data: Base64 = Field(description="The bytes, base64.")
    next: Count = Field(description="The position behind the last byte: the next read's `since`.")


ROWS = (
    Method(
        "vm.start",
        StartParams,
        None,
        "Start a run loop a vCPU, which calls KVM_RUN for good and serves the console.",
        changes=True,
        errors={
            "EBUSY": "The run loops are started, or a vCPU is in KVM_RUN.",
            "EINVAL": "The VM is cooperative: it goes on by vm.advance.",
        },
    ),
    Method(
        "vm.advance",
        AdvanceParams,
        AdvanceResult,
        "Let a cooperative VM's run loops go on for so many retired instructions, in the order that its seed decides.",
        changes=True,
        errors={
            "EINVAL": "The VM is parallel: it runs by vm.start.",
            "EBUSY": "The VM is held, or advanced, and `wait_ms` has passed.",
            "ETIMEDOUT": "Calls under way took longer than limits.max_wait_ms.",
            "ECANCELED": "The VM was destroyed meanwhile.",
        },
    ),
    Method(
        "vm.stop", StopParams, None, "End all run loops, held ones too; idempotent.", changes=True, carried_through=True
    ),
    Method(
        "vm.load_elf",
        LoadElfParams,
        LoadElfResult,
        "Load an ELF executable into memory that slots give, all or nothing; zeroes and dirty marks included.",
        changes=True,
        errors={
            "EINVAL": "`data` is no static ELF64 executable for RISC-V.",
            "EFAULT": "A page of a segment has no memslot or a read-only one, or its memslot no mapping.",
            "ENOMEM": "A sparse mapping's page would exceed the limit of memory.",
            "E2BIG": "The symbols have no room in the reply.",
            "EBADF": "The VM has no such vCPU.",
        },
    ),
    Method("vm.read_console", ReadConsoleParams, ConsoleResult, "Read what the guest wrote to port 0x3f8."),
)
