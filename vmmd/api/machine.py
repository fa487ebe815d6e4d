"""Models of the run loop that a VMM has in userspace, and of the console that it serves."""

from typing import Literal

from pydantic import Field

from vmmd.api.types import Base64, ChangeOptions, Count, GateOptions, Hex64, Result, VcpuId, VmParams


class StartParams(VmParams, ChangeOptions):
    """How the run loops treat what nobody answers for."""

    mmio: Literal["stop", "ones"] = Field(
        default="stop",
        description='An MMIO exit nobody owns is counted as stray, and then: "stop" the vCPU, or read all "ones".',
    )


class StopParams(VmParams, ChangeOptions):
    """Which VM's run loops end."""


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
