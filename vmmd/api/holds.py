"""Kick and resume: models and methods."""

from pydantic import Field

from vmmd.api.method import Method
from vmmd.api.types import U32, ChangeOptions, Count, HoldName, Result, VmParams

_HOLD = "The hold's name, chosen by the caller. The name is the key: whoever knows it is inside."


class KickAllRunningVcpusParams(VmParams, ChangeOptions):
    """Which hold to open, or none: then KVM_RUN gives EINTR until the resume, as it was proposed."""

    hold: HoldName | None = Field(default=None, description=_HOLD + " Left out: a raw kick, which belongs to nobody.")
    lease_ms: U32 | None = Field(
        default=None,
        ge=1,
        description="For how long, in milliseconds, the hold stays open without a renewal, the same kick again; then "
        "it is rolled back. At most limits.max_lease_ms: more is cut to it, and the result tells. "
        "Left out: limits.lease_ms.",
    )
    wait_ms: U32 | None = Field(
        default=None,
        description="How long to wait, in milliseconds, for a turn and until vCPUs are out, before ETIMEDOUT; "
        "at most limits.max_wait_ms: more is cut to it. Left out: limits.wait_ms.",
    )


class KickResult(Result):
    """The hold that is open now, or what a raw kick did."""

    hold: str | None = Field(description="Its name; null for a raw kick.")
    kicked: U32 = Field(description="vCPUs that were inside KVM_RUN.")
    kick_ns: Count = Field(description="Nanoseconds from the request until no vCPU was in guest mode.")
    generation: Count = Field(description="The slot table's generation.")
    lease_ms: U32 | None = Field(
        default=None, description="For how long it stays open, in milliseconds; null for a raw kick."
    )
    number: Count | None = Field(default=None, description="What events call the hold; null for a raw kick.")


class ResumeAllKickedVcpusParams(VmParams, ChangeOptions):
    """Which hold to end; without one, every raw kick."""

    hold: HoldName | None = Field(default=None, description=_HOLD + " Left out: the raw resume.")


class ResumeResult(Result):
    """The hold that has ended."""

    pause_ns: Count | None = Field(
        description="Nanoseconds for which the vCPUs were kept out of guest mode; null for a raw resume."
    )
    generation: Count = Field(description="The slot table's generation.")


ROWS = (
    Method(
        "vm.kick_all_running_vcpus",
        KickAllRunningVcpusParams,
        KickResult,
        "Open a hold: answers when no vCPU is in guest mode or reads slots.",
        changes=True,
        ioctl="KVM_KICK_ALL_RUNNING_VCPUS",
        errors={
            "EDEADLK": "The same batch has another hold open, and would wait for itself.",
            "ETIMEDOUT": "Another hold, a call or a vCPU took longer than `wait_ms`; nothing is left behind.",
            "ECANCELED": "The hold of that name has failed or ended, the caller has gone, or the VM was destroyed.",
            "EBUSY": "The hold of that name is being opened already, or an advance is under way.",
            "EINVAL": "A raw kick is given `wait_ms` or `lease_ms`.",
        },
    ),
    Method(
        "vm.resume_all_kicked_vcpus",
        ResumeAllKickedVcpusParams,
        ResumeResult,
        "End a hold: publish what was done inside it, or roll it back where a call inside has failed.",
        changes=True,
        ioctl="KVM_RESUME_ALL_KICKED_VCPUS",
        errors={
            "ECANCELED": "The hold has ended, by its lease or otherwise, or the VM is destroyed.",
            "EINVAL": "No hold of that name was opened.",
            "EBUSY": "The hold is still being opened, or an advance is under way.",
        },
    ),
)
