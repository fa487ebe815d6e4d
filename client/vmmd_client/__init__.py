"""The client library of vmmd: connection, VM, transaction.

`connect` is the way in; `sync` has the same names for threads; `errors` draws the tree of what can be raised; `calls`
has the calls of a `Batch`. What is imported from modules of their own: `address_space` keeps a tree of regions, as
QEMU's, in a VM's slots; `testing` has a daemon in memory and `local_daemon` a real one for tests; `audit` and `replay`
read recordings of real VMMs. Behind the objects (`connection`, `vm`, `vm_memory`, `vcpu`, `events`) are the rooms
`slots`, `changes` and `wire`. The library asks a daemon and decides nothing in its place, and of vmmd itself it knows
the wire contract alone.
"""

from typing import TYPE_CHECKING

from .lazy import getter

if TYPE_CHECKING:
    from vmmd.api.events import (
        GapEvent,
        HoldExpiredEvent,
        HoldFailedEvent,
        HoldOpenedEvent,
        HoldResumedEvent,
        HoldRolledBackEvent,
        KickedEvent,
        ResumedEvent,
        SlotsChangedEvent,
        VcpuEndedEvent,
        VcpuExitEvent,
        VmCreatedEvent,
        VmDestroyedEvent,
        VmStartedEvent,
        VmStoppedEvent,
    )

    from .changes.dirty import DirtyBitmap, DirtyPages
    from .changes.dirty_log import DirtyLog
    from .changes.hold import Hold
    from .changes.order import TransactionResult
    from .changes.transaction import Transaction
    from .connection import Client, connect, from_env
    from .errors import (
        AlreadyExists,
        BadAddress,
        BadVm,
        CallTimeout,
        ClientClosed,
        ConnectError,
        ConnectTimeout,
        Deadlock,
        Disconnected,
        ForeignEventLoop,
        HoldConflict,
        HoldFailed,
        HttpRefused,
        Interrupted,
        InvalidArgument,
        InvalidParams,
        KickTimeout,
        KvmError,
        LogsInRings,
        Misaligned,
        NeedsWebSocket,
        NestedTurn,
        NoSuchSlot,
        Outcome,
        OutOfMemory,
        OutOfRange,
        PlanError,
        PlanTooLarge,
        ProtocolError,
        RangeOverlap,
        RpcError,
        ShuttingDown,
        SlotOverlap,
        SlotTaken,
        StaleGeneration,
        TooBig,
        TooManyCalls,
        TooManyVms,
        TransactionRefused,
        TransactionUnsettled,
        TransportError,
        TurnTimeout,
        UnknownMethod,
        UnknownSlot,
        UnsendableParam,
        Unsupported,
        UnusableArgument,
        UnusableToken,
        VersionMismatch,
        VmmdError,
    )
    from .events import AnyEvent, Events, OtherEvent, Place
    from .slots.draft import Draft
    from .slots.memslots import MemFlag, Memslot, SlotTable
    from .slots.plan import Plan
    from .vcpu import Vcpu
    from .vm import Vm
    from .wire import calls
    from .wire.address import Address
    from .wire.channel import Batch, Reply
    from .wire.http import HttpTransport
    from .wire.transport import Link, MemoryTransport, Transport
    from .wire.websocket import WebSocketTransport

_HOMES = {
    "vmmd.api.events": (
        "GapEvent HoldExpiredEvent HoldFailedEvent HoldOpenedEvent HoldResumedEvent HoldRolledBackEvent "
        "KickedEvent ResumedEvent SlotsChangedEvent VcpuEndedEvent VcpuExitEvent VmCreatedEvent "
        "VmDestroyedEvent VmStartedEvent VmStoppedEvent"
    ),
    ".changes.dirty": "DirtyBitmap DirtyPages",
    ".changes.dirty_log": "DirtyLog",
    ".changes.hold": "Hold",
    ".changes.order": "TransactionResult",
    ".changes.transaction": "Transaction",
    ".connection": "Client connect from_env",
    ".errors": (
        "AlreadyExists BadAddress BadVm CallTimeout ClientClosed ConnectError ConnectTimeout Deadlock "
        "Disconnected ForeignEventLoop HoldConflict HoldFailed HttpRefused Interrupted InvalidArgument "
        "InvalidParams KickTimeout KvmError LogsInRings Misaligned NeedsWebSocket NestedTurn NoSuchSlot "
        "Outcome OutOfMemory OutOfRange PlanError PlanTooLarge ProtocolError RangeOverlap RpcError "
        "ShuttingDown SlotOverlap SlotTaken StaleGeneration TooBig TooManyCalls TooManyVms TransactionRefused "
        "TransactionUnsettled TransportError TurnTimeout UnknownMethod UnknownSlot UnsendableParam "
        "Unsupported UnusableArgument UnusableToken VersionMismatch VmmdError"
    ),
    ".events": "AnyEvent Events OtherEvent Place",
    ".slots.draft": "Draft",
    ".slots.memslots": "MemFlag Memslot SlotTable",
    ".slots.plan": "Plan",
    ".vcpu": "Vcpu",
    ".vm": "Vm",
    ".wire": "calls",
    ".wire.address": "Address",
    ".wire.channel": "Batch Reply",
    ".wire.http": "HttpTransport",
    ".wire.transport": "Link MemoryTransport Transport",
    ".wire.websocket": "WebSocketTransport",
}

__all__ = [
    "Address",
    "AlreadyExists",
    "AnyEvent",
    "BadAddress",
    "BadVm",
    "Batch",
    "CallTimeout",
    "Client",
    "ClientClosed",
    "ConnectError",
    "ConnectTimeout",
    "Deadlock",
    "DirtyBitmap",
    "DirtyLog",
    "DirtyPages",
    "Disconnected",
    "Draft",
    "Events",
    "ForeignEventLoop",
    "GapEvent",
    "Hold",
    "HoldConflict",
    "HoldExpiredEvent",
    "HoldFailed",
    "HoldFailedEvent",
    "HoldOpenedEvent",
    "HoldResumedEvent",
    "HoldRolledBackEvent",
    "HttpRefused",
    "HttpTransport",
    "Interrupted",
    "InvalidArgument",
    "InvalidParams",
    "KickTimeout",
    "KickedEvent",
    "KvmError",
    "Link",
    "LogsInRings",
    "MemFlag",
    "MemoryTransport",
    "Memslot",
    "Misaligned",
    "NeedsWebSocket",
    "NestedTurn",
    "NoSuchSlot",
    "OtherEvent",
    "OutOfMemory",
    "OutOfRange",
    "Outcome",
    "Place",
    "Plan",
    "PlanError",
    "PlanTooLarge",
    "ProtocolError",
    "RangeOverlap",
    "Reply",
    "ResumedEvent",
    "RpcError",
    "ShuttingDown",
    "SlotOverlap",
    "SlotTable",
    "SlotTaken",
    "SlotsChangedEvent",
    "StaleGeneration",
    "TooBig",
    "TooManyCalls",
    "TooManyVms",
    "Transaction",
    "TransactionRefused",
    "TransactionResult",
    "TransactionUnsettled",
    "Transport",
    "TransportError",
    "TurnTimeout",
    "UnknownMethod",
    "UnknownSlot",
    "UnsendableParam",
    "Unsupported",
    "UnusableArgument",
    "UnusableToken",
    "Vcpu",
    "VcpuEndedEvent",
    "VcpuExitEvent",
    "VersionMismatch",
    "Vm",
    "VmCreatedEvent",
    "VmDestroyedEvent",
    "VmStartedEvent",
    "VmStoppedEvent",
    "VmmdError",
    "WebSocketTransport",
    "calls",
    "connect",
    "from_env",
]

if not TYPE_CHECKING:
    __getattr__ = getter(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
