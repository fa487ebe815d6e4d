"""The client library of vmmd: connection, VM, transaction.

`connect` is the way in; `errors` draws the tree of what can be raised; `traces` reads recordings of real VMMs. The
library asks a daemon and decides nothing in its place, and of vmmd itself it knows the wire contract alone.
"""

from .address import Address
from .channel import Batch, Reply
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
    HoldConflict,
    HoldFailed,
    HttpRefused,
    Interrupted,
    InvalidArgument,
    InvalidParams,
    KickTimeout,
    KvmError,
    LogsInRings,
    NoSuchSlot,
    OutOfMemory,
    PlanError,
    ProtocolError,
    RpcError,
    SlotOverlap,
    StaleGeneration,
    TooBig,
    TooManyVms,
    TransactionRefused,
    TransportError,
    UnknownMethod,
    UnsendableParam,
    Unsupported,
    VersionMismatch,
    VmmdError,
)
from .events import Event, Events
from .http import HttpTransport
from .memslots import MemFlag, Memslot
from .transaction import DirtyBitmap, Hold, Transaction, TransactionResult
from .transport import Link, MemoryTransport, Transport
from .vcpu import Vcpu
from .vm import SlotTable, Vm
from .websocket import WebSocketTransport

__all__ = [
    "Address",
    "AlreadyExists",
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
    "Disconnected",
    "Event",
    "Events",
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
    "NoSuchSlot",
    "OutOfMemory",
    "PlanError",
    "ProtocolError",
    "Reply",
    "RpcError",
    "SlotOverlap",
    "SlotTable",
    "StaleGeneration",
    "TooBig",
    "TooManyVms",
    "Transaction",
    "TransactionRefused",
    "TransactionResult",
    "Transport",
    "TransportError",
    "UnknownMethod",
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
