"""Models of kick and resume."""

from pydantic import Field

from vmmd.api.types import U32, ChangeOptions, Count, HoldName, Result, VmParams

_HOLD = "The hold's name, chosen by the caller. The name is the key: whoever knows it is inside."


class KickAllRunningVcpusParams(VmParams, ChangeOptions):
    """Which hold to open."""

    hold: HoldName = Field(description=_HOLD)
    wait_ms: U32 | None = Field(
        default=None,
        description="How long to wait, in milliseconds, for a turn and until vCPUs are out, before ETIMEDOUT; "
        "left out: limits.wait_ms.",
    )


class KickResult(Result):
    """The hold that is open now."""

    hold: str
    kicked: U32 = Field(description="vCPUs that were inside KVM_RUN.")
    kick_ns: Count = Field(description="Nanoseconds from the request until no vCPU was in guest mode.")
    generation: Count = Field(description="The slot table's generation.")


class ResumeAllKickedVcpusParams(VmParams, ChangeOptions):
    """Which hold to end."""

    hold: HoldName = Field(description=_HOLD)


class ResumeResult(Result):
    """The hold that has ended."""

    pause_ns: Count = Field(description="Nanoseconds for which the vCPUs were kept out of guest mode.")
    generation: Count = Field(description="The slot table's generation.")
