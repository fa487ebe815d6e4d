"""The client library of vmmd: connection, VM, transaction.

`connect` is the way in; `errors` draws the tree of what can be raised; `traces` reads recordings of real VMMs. The
library asks a daemon and decides nothing in its place, and of vmmd itself it knows the wire contract alone.
"""

from .channel import Batch, Reply
from .connection import Client, connect, from_env
from .errors import (
    AlreadyExists,
    BadAddress,
    BadVm,
    CallTimeout,
    ConnectError,
    ConnectTimeout,
    Deadlock,
    Disconnected,
    HoldConflict,
    HoldFailed,
    HttpRefused,
    Interrupted,
    InvalidArgument,
    KickTimeout,
    KvmError,
    NoSuchSlot,
    OutOfMemory,
    PlanError,
    ProtocolError,
    RpcError,
    SlotOverlap,
    StaleGeneration,
    TooBig,
    TransactionRefused,
    TransportError,
    UnsendableParam,
    Unsupported,
    VmmdError,
)
from .memslots import MemFlag, Memslot
from .transaction import DirtyBitmap, Hold, Transaction, TransactionResult
from .transport import HttpTransport, MemoryTransport, Transport
from .vcpu import Vcpu
from .vm import SlotTable, Vm

__all__ = [
    "AlreadyExists",
    "BadAddress",
    "BadVm",
    "Batch",
    "CallTimeout",
    "Client",
    "ConnectError",
    "ConnectTimeout",
    "Deadlock",
    "DirtyBitmap",
    "Disconnected",
    "Hold",
    "HoldConflict",
    "HoldFailed",
    "HttpRefused",
    "HttpTransport",
    "Interrupted",
    "InvalidArgument",
    "KickTimeout",
    "KvmError",
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
    "Transaction",
    "TransactionRefused",
    "TransactionResult",
    "Transport",
    "TransportError",
    "UnsendableParam",
    "Unsupported",
    "Vcpu",
    "Vm",
    "VmmdError",
    "connect",
    "from_env",
]
