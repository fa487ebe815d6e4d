"""Events (`events.`), and the ends of calls (`rpc.`): methods, and the models of each notification.

Events are numbered over the whole daemon, in one order. A reader that knows the last number it has seen goes on from
there with `since`; what the daemon has forgotten meanwhile, or could not send to a slow reader, is one `gap` event.
Nothing here has the name of a hold, which is the key to it: holds have numbers, a VM's own, which the kick tells too.
"""

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, TypeAdapter, WithJsonSchema

from vmmd.api.memslots import RegionInfo
from vmmd.api.method import Method
from vmmd.api.types import U32, Count, Params, Result, VmId
from vmmd.api.vcpus import RunResult


class SubscribeParams(Params):
    """Which events, and from where on."""

    vm: VmId | None = Field(default=None, description="Only events of this VM, and gaps; left out: all.")
    since: Count | None = Field(
        default=None,
        description="The seq of the last event that was seen; events behind it are sent first. Left out: what comes.",
    )
    epoch: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Whose seq `since` is, as the earlier answer told. Where the daemon has started anew since, all of "
        "its events are sent, behind a gap.",
    )


class SubscribeResult(Result):
    """Where the daemon's events stand; a later subscription of the same WebSocket takes the place of this one."""

    seq: Count = Field(description="The last event's number; 0 before the first.")
    oldest: Count = Field(description="The number of the oldest event that is kept (limits.events).")
    epoch: str = Field(description="What tells this start of the daemon from others, since each counts from 1.")


def _call_id(value: object) -> object:
    """Let an id pass as it is: a number may have come as text that a plain float would not give back."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("the id of a call that can be cancelled is a string or a number")
    return value


CallId = Annotated[
    int | float | str,
    PlainValidator(_call_id),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]}),
]
"""A request's id."""


class CancelParams(Params):
    """Which call of this WebSocket to end."""

    id: CallId = Field(description="The id of the call, or of a call in a batch, to the digit.")


class CancelResult(Result):
    """Whether there was one."""

    cancelled: bool = Field(description="False where no such call is under way, or it has been answered.")


class _Event(Result):
    """What all events have."""

    seq: Count = Field(description="Its number, one more than that of the event before it.")
    time: str = Field(description='When, by the clock of the machine: "2026-01-02T03:04:05.678901Z".')
    vm: str | None = Field(description="The VM's id; null for a gap.")


class GapEvent(_Event):
    """Events that cannot be given any more; `seq` is the last one's number."""

    type: Literal["gap"] = "gap"
    missed: Count | None = Field(
        description="How many, whatever VM they were of; null where the daemon has started anew, and nobody knows."
    )


class VmCreatedEvent(_Event):
    """A VM is there."""

    type: Literal["vm.created"] = "vm.created"
    name: str | None
    execution: str = Field(description='"parallel" or "cooperative".')


class VmDestroyedEvent(_Event):
    """A VM is gone."""

    type: Literal["vm.destroyed"] = "vm.destroyed"


class VmStartedEvent(_Event):
    """The run loops of a VM were started."""

    type: Literal["vm.started"] = "vm.started"


class VmStoppedEvent(_Event):
    """The run loops of a VM were stopped."""

    type: Literal["vm.stopped"] = "vm.stopped"


class VcpuEndedEvent(_Event):
    """A run loop has ended by itself: by `exit`, or by the error with `errno`."""

    type: Literal["vcpu.ended"] = "vcpu.ended"
    vcpu: U32
    exit: RunResult | None = None
    errno: str | None = None
    message: str | None = None


class VcpuExitEvent(_Event):
    """KVM_RUN has returned an exit. Sampled: the first of each reason of a VM in a tenth of a second."""

    type: Literal["vcpu.exit"] = "vcpu.exit"
    vcpu: U32
    exit: RunResult
    left_out: Count = Field(description="Exits of that reason since the last one that was sent.")


class KickedEvent(_Event):
    """A raw kick is done."""

    type: Literal["kicked"] = "kicked"
    kicked: U32 = Field(description="vCPUs that were inside KVM_RUN.")
    kick_ns: Count = Field(description="Nanoseconds until every KVM_RUN had returned.")


class ResumedEvent(_Event):
    """A raw resume is done."""

    type: Literal["resumed"] = "resumed"


class HoldOpenedEvent(_Event):
    """A hold is open."""

    type: Literal["hold.opened"] = "hold.opened"
    hold: Count = Field(description="The hold's number.")
    kicked: U32 = Field(description="vCPUs that were inside KVM_RUN.")
    kick_ns: Count = Field(description="Nanoseconds from the request until no vCPU was in guest mode.")
    lease_ms: U32 | None = Field(description="For how long it stays open without a renewal, in milliseconds.")
    generation: Count


class HoldFailedEvent(_Event):
    """Something inside a hold has failed; its end will be a rollback."""

    type: Literal["hold.failed"] = "hold.failed"
    hold: Count
    errno: str = Field(description="The errno's name of what failed first.")


class _HoldEndedEvent(_Event):
    hold: Count
    became: str = Field(description="One sentence: what became of it.")
    pause_ns: Count = Field(description="Nanoseconds for which the vCPUs were kept out of guest mode.")
    generation: Count


class HoldResumedEvent(_HoldEndedEvent):
    """A hold was resumed: what was done inside stands."""

    type: Literal["hold.resumed"] = "hold.resumed"


class HoldRolledBackEvent(_HoldEndedEvent):
    """A hold had failed, and its resume has put everything back."""

    type: Literal["hold.rolled_back"] = "hold.rolled_back"


class HoldExpiredEvent(_HoldEndedEvent):
    """A hold's owner left it, by its lease or with its connection, and everything was put back."""

    type: Literal["hold.expired"] = "hold.expired"


class SlotsChangedEvent(_Event):
    """The slot table has changed, and the change stands."""

    type: Literal["slots.changed"] = "slots.changed"
    generation: Count
    hold: Count | None = Field(description="The number of the hold that it was made in; null without one.")
    regions: tuple[RegionInfo, ...] = Field(
        description="What was set, in order; memory_size 0 deletes. At most 16 of a change."
    )
    left_out: Count = Field(description="How many of the change are not in regions.")


Event = Annotated[
    GapEvent
    | VmCreatedEvent
    | VmDestroyedEvent
    | VmStartedEvent
    | VmStoppedEvent
    | VcpuEndedEvent
    | VcpuExitEvent
    | KickedEvent
    | ResumedEvent
    | HoldOpenedEvent
    | HoldFailedEvent
    | HoldResumedEvent
    | HoldRolledBackEvent
    | HoldExpiredEvent
    | SlotsChangedEvent,
    Field(discriminator="type"),
]
"""Any event, told by its `type`. A later daemon may send types that are not here."""

EVENT_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)
"""What checks the parameters of an `event` notification."""


class ProgressNotification(Result):
    """The parameters of a `progress` notification: how far a call of this WebSocket is that takes long."""

    id: int | str | float | None = Field(description="The call's id.")
    done: Count = Field(description="How much is done, in the call's own unit: instructions for vm.advance.")
    total: Count = Field(description="How much there is to do.")


_NO_WEBSOCKET = "The call came over HTTP."

ROWS = (
    Method(
        "events.subscribe",
        SubscribeParams,
        SubscribeResult,
        "Send this WebSocket the daemon's events, as notifications, from now on or from a number on.",
        errors={
            "EOPNOTSUPP": _NO_WEBSOCKET,
            "EINVAL": "No event has the number `since` yet, and no `epoch` says that it is of an earlier start.",
        },
    ),
    Method(
        "rpc.cancel",
        CancelParams,
        CancelResult,
        "End a call of this WebSocket before its time: it answers ECANCELED, or is not begun.",
        errors={"EOPNOTSUPP": _NO_WEBSOCKET},
    ),
)
