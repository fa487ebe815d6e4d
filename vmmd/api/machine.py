"""Models of the run loop that a VMM has in userspace, and of the console that it serves."""

from typing import Literal

from pydantic import Field

from vmmd.api.types import Base64, ChangeOptions, Count, Result, VmParams


class StartParams(VmParams, ChangeOptions):
    """How the run loops treat what nobody answers for."""

    mmio: Literal["stop", "ones"] = Field(
        default="stop",
        description='An MMIO exit nobody owns is counted as stray, and then: "stop" the vCPU, or read all "ones".',
    )


class StopParams(VmParams, ChangeOptions):
    """Which VM's run loops end."""


class ReadConsoleParams(VmParams):
    """From where to read what the guest wrote to port 0x3f8."""

    since: Count = Field(
        default=0, description="The position to read from, as `next` of the last read gave it; 0: the start."
    )


class ConsoleResult(Result):
    """A part of what the guest wrote."""

    data: Base64 = Field(description="The bytes, base64.")
    next: Count = Field(description="The position behind the last byte: the next read's `since`.")
