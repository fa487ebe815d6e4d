"""The client library of vmmd: connection, VM, transaction.

`connect` is the way in; `sync` has the same names for threads; `errors` draws the tree of what can be raised; `testing`
has a daemon in memory for tests; `audit` reads recordings of real VMMs. The library asks a daemon and decides nothing
in its place, and of vmmd itself it knows the wire contract alone.
"""

from vmmd.api.events import GapEvent

from .address import Address
from .channel import Batch, Reply
from .connection import Client, connect, from_env
from .dirty import DirtyBitmap, DirtyPages
from .dirty_log import DirtyLog
from .draft import Draft
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
    HoldConflict,
    HoldFailed,
    HttpRefused,
    Interrupted,
    InvalidArgument,
    InvalidParams,
    KickTimeout,
    KvmError,
    LogsInRings,
    NeedsWebSocket,
    NoSuchSlot,
    OutOfMemory,
    PlanError,
    ProtocolError,
    RpcError,
    SlotOverlap,
    StaleGeneration,
    TooBig,
    TooManyCalls,
    TooManyVms,
    TransactionRefused,
    TransactionUnsettled,
    TransportError,
    UnknownMethod,
    UnsendableParam,
    Unsupported,
    VersionMismatch,
    VmmdError,
)
from .events import AnyEvent, Events, OtherEvent, Place
from .hold import Hold
from .http import HttpTransport
from .memslots import MemFlag, Memslot
from .order import TransactionResult
from .plan import Plan
from .plan_errors import Misaligned, OutOfRange, PlanTooLarge, RangeOverlap, SlotTaken, UnknownSlot
from .transaction import Transaction
from .transport import Link, MemoryTransport, Transport
from .vcpu import Vcpu
from .vm import SlotTable, Vm
from .websocket import WebSocketTransport

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
    "GapEvent",
    "Hold",
    "HoldConflict",
    "HoldFailed",
    "HttpRefused",
    "HttpTransport",
    "Interrupted",
    "InvalidArgument",
    "InvalidParams",
    "KickTimeout",
    "KvmError",
    "Link",
    "LogsInRings",
    "MemFlag",
    "MemoryTransport",
    "Memslot",
    "Misaligned",
    "NeedsWebSocket",
    "NoSuchSlot",
    "OtherEvent",
    "OutOfMemory",
    "OutOfRange",
    "Place",
    "Plan",
    "PlanError",
    "PlanTooLarge",
    "ProtocolError",
    "RangeOverlap",
    "Reply",
    "RpcError",
    "SlotOverlap",
    "SlotTable",
    "SlotTaken",
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
    "UnknownMethod",
    "UnknownSlot",
    "UnsendableParam",
    "Unsupported",
    "Vcpu",
    "VersionMismatch",
    "Vm",
    "VmmdError",
    "WebSocketTransport",
    "connect",
    "from_env",
]
