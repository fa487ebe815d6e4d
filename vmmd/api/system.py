"""The system level (`kvm.`), and the daemon itself (`daemon.`, `rpc.`): models and methods."""

from typing import Any, Literal

from pydantic import Field

from vmmd.api.errors import RpcError
from vmmd.api.method import Method
from vmmd.api.types import ChangeOptions, Count, Params, RequestOptions, Result, U64In, VmParams
from vmmd.api.vcpus import RunResult


class GetApiVersionParams(Params):
    """No parameters."""


class CheckExtensionParams(Params):
    """Which capability is asked for."""

    extension: str = Field(min_length=1, max_length=128, description='The capability\'s name, "KVM_CAP_NR_MEMSLOTS".')


class CreateVmParams(RequestOptions):
    """What the new VM is called, and how its vCPUs run."""

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="A name for people, in lists and logs; it need not be unique.",
    )
    execution: Literal["parallel", "cooperative"] = Field(
        default="parallel",
        description='"parallel": vCPUs run by themselves, on all cores. "cooperative": by vm.advance alone, '
        "one at a time, and the same calls give the same run.",
    )
    seed: U64In | None = Field(
        default=None, description="What decides the order in a cooperative VM, 64 bits; left out: 0. None else has one."
    )


class CreateVmResult(Result):
    """The new VM."""

    vm: str = Field(description="The VM's id, which every other call names it by.")


class DestroyVmParams(VmParams, ChangeOptions):
    """Which VM goes."""


class ListVmsParams(Params):
    """No parameters."""


class EndedVcpu(Result):
    """What ended a vCPU's run loop: an exit that nobody handles, or an error of KVM_RUN."""

    vcpu: int
    exit: RunResult | None = None
    error: RpcError | None = None


class VmInfo(Result):
    """One VM in a list."""

    vm: str
    name: str | None
    execution: str = Field(description='"parallel" or "cooperative".')
    state: str = Field(
        description='"created", "running" (its run loops were started, or it was advanced) or "stopped".'
    )
    vcpus: tuple[int, ...] = Field(description="The vCPUs' ids, in order.")
    generation: Count = Field(description="The slot table's generation.")
    dirty_log: str = Field(
        default="bitmap",
        description='How logged slots are logged: "bitmap", "ring" (there is no bitmap), or "ring_with_bitmap".',
    )
    ended: tuple[EndedVcpu, ...] = Field(description="The vCPUs whose run loop has ended by itself, and by what.")


class DiscoverParams(Params):
    """No parameters."""


class GetInfoParams(Params):
    """No parameters."""


class InfoResult(Result):
    """What the daemon says about itself."""

    version: str = Field(description="The daemon's version.")
    engine: str = Field(description='"translated", "compiled" or "evaluated": what executes guest instructions.')
    pid: int = Field(description="The daemon's process id.")
    uptime_ms: Count = Field(description="Milliseconds since the daemon was ready.")
    limits: dict[str, int] = Field(
        description="Every limit by its name in the configuration, with the unit in the name."
    )


ROWS = (
    Method(
        "kvm.get_api_version",
        GetApiVersionParams,
        int,
        "Give KVM's API version: 12, for good.",
        ioctl="KVM_GET_API_VERSION",
    ),
    Method(
        "kvm.check_extension",
        CheckExtensionParams,
        int,
        "Give what a capability amounts to: 0 where vmmd does not have it, else 1 or the capability's own number.",
        ioctl="KVM_CHECK_EXTENSION",
    ),
    Method(
        "kvm.create_vm",
        CreateVmParams,
        CreateVmResult,
        "Create a VM with no memory and no vCPU.",
        changes=True,
        ioctl="KVM_CREATE_VM",
        errors={
            "EMFILE": "There are limits.vms VMs already.",
            "EINVAL": "`seed` is given, and the VM is to be parallel.",
        },
    ),
    Method(
        "kvm.destroy_vm",
        DestroyVmParams,
        None,
        "Destroy a VM; always works, and whoever waits for anything in it gets ECANCELED.",
        changes=True,
        carried_through=True,
    ),
    Method(
        "kvm.list_vms",
        ListVmsParams,
        list[VmInfo],
        "List the VMs, with what ended their run loops.",
        errors={"E2BIG": "The list has no room in the reply."},
    ),
    Method(
        "rpc.discover",
        DiscoverParams,
        dict[str, Any],
        "Give the OpenRPC document of this table: every method with its parameters, results, errors and an example.",
        errors={"E2BIG": "The document has no room in the reply."},
    ),
    Method(
        "daemon.get_info",
        GetInfoParams,
        InfoResult,
        "Give the daemon's version, limits and uptime.",
        errors={"E2BIG": "The result has no room in the reply."},
    ),
)
