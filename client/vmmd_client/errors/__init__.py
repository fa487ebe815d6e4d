"""Everything that the client library raises, as one tree.

::

    VmmdError
    ├── TransportError          the daemon was not reached, or its answer did not come
    │   ├── ConnectError            nobody listens there, or the connection is refused
    │   ├── ConnectTimeout          no connection within its time
    │   ├── Disconnected            the connection ended before the answer was whole: close_code; perhaps executed
    │   │   └── ClientClosed            … because this client was closed
    │   ├── CallTimeout             no answer within its time; the call may have been executed
    │   ├── HttpRefused             an HTTP status instead of an answer: status, as 401 for a missing token
    │   └── ForeignEventLoop        the client belongs to another event loop; nothing was sent
    ├── UnusableArgument        an argument of the library's own that cannot be meant, also a ValueError: argument
    │   └── UnusableToken           … a token that no HTTP header can hold
    ├── ProtocolError           what came back is no answer to what was asked
    │   └── VersionMismatch         … of a KVM API that this library does not speak: daemon_version, library_version
    ├── PlanError               a transaction that cannot be meant; nothing was sent
    │   ├── UnknownSlot             … there is no slot of that id: slot
    │   ├── SlotTaken               … the id is taken, or all are: slot
    │   ├── RangeOverlap            … two slots would share a guest-physical page: slots
    │   ├── Misaligned              … an address or a size is not of whole pages: field, value
    │   ├── OutOfRange              … an address, a size, an id or flags that no memslot can have: field, value
    │   ├── PlanTooLarge            … it goes into no body that the daemon takes
    │   ├── NestedTurn              … it is inside another block of the same VM
    │   ├── TurnTimeout             … other tasks of this client had the VM for too long: wait_s
    │   └── UnsendableParam         … a parameter of a call that cannot be sent, as text for bytes: method, parameter
    ├── TransactionRefused      the daemon refused a step: step, what, rolled_back; its cause is that step's RpcError
    ├── TransactionUnsettled    what became of a transaction could not be learned; its cause says why
    └── RpcError                the daemon answered with an error: code, message, data
        ├── UnknownMethod           -32601: the daemon is older than this library
        ├── InvalidParams           -32602: it takes no such parameters
        └── KvmError                an errno: errno, ioctl, rolled_back, index
            ├── AlreadyExists           EEXIST
            │   └── SlotOverlap             … of KVM_SET_USER_MEMORY_REGION
            ├── BadAddress              EFAULT
            ├── BadVm                   EBADF: no such VM or vCPU
            ├── Deadlock                EDEADLK
            ├── HoldConflict            EBUSY
            ├── HoldFailed              ECANCELED: became
            ├── Interrupted             EINTR: exit_reason, kicked
            ├── InvalidArgument         EINVAL: line, column
            ├── KickTimeout             ETIMEDOUT
            ├── LogsInRings             ENXIO
            ├── NeedsWebSocket          EOPNOTSUPP
            ├── NoSuchSlot              ENOENT
            ├── OutOfMemory             ENOMEM
            ├── ShuttingDown            ESHUTDOWN
            ├── StaleGeneration         ESTALE: generation
            ├── TooBig                  E2BIG
            ├── TooManyCalls            EAGAIN
            ├── TooManyVms              EMFILE
            └── Unsupported             ENOTTY

What a field cannot be read from (an older daemon, a call without one) is None, or False.
No exception of asyncio, aiohttp or pydantic leaves the library; only a cancellation passes through as it is.
"""

from .daemon import (
    AlreadyExists,
    BadAddress,
    BadVm,
    Deadlock,
    HoldConflict,
    HoldFailed,
    Interrupted,
    InvalidArgument,
    InvalidParams,
    KickTimeout,
    KvmError,
    LogsInRings,
    NeedsWebSocket,
    NoSuchSlot,
    OutOfMemory,
    RpcError,
    ShuttingDown,
    SlotOverlap,
    StaleGeneration,
    TooBig,
    TooManyCalls,
    TooManyVms,
    UnknownMethod,
    Unsupported,
    rpc_error,
)
from .plan import (
    Misaligned,
    NestedTurn,
    OutOfRange,
    PlanError,
    PlanTooLarge,
    RangeOverlap,
    SlotTaken,
    TurnTimeout,
    UnknownSlot,
    UnsendableParam,
)
from .root import Outcome, UnusableArgument, UnusableToken, VmmdError
from .transaction import TransactionRefused, TransactionUnsettled
from .transport import (
    CallTimeout,
    ClientClosed,
    ConnectError,
    ConnectTimeout,
    Disconnected,
    ForeignEventLoop,
    HttpRefused,
    ProtocolError,
    TransportError,
    VersionMismatch,
)

__all__ = [
    "AlreadyExists",
    "BadAddress",
    "BadVm",
    "CallTimeout",
    "ClientClosed",
    "ConnectError",
    "ConnectTimeout",
    "Deadlock",
    "Disconnected",
    "ForeignEventLoop",
    "HoldConflict",
    "HoldFailed",
    "HttpRefused",
    "Interrupted",
    "InvalidArgument",
    "InvalidParams",
    "KickTimeout",
    "KvmError",
    "LogsInRings",
    "Misaligned",
    "NeedsWebSocket",
    "NestedTurn",
    "NoSuchSlot",
    "OutOfMemory",
    "OutOfRange",
    "Outcome",
    "PlanError",
    "PlanTooLarge",
    "ProtocolError",
    "RangeOverlap",
    "RpcError",
    "ShuttingDown",
    "SlotOverlap",
    "SlotTaken",
    "StaleGeneration",
    "TooBig",
    "TooManyCalls",
    "TooManyVms",
    "TransactionRefused",
    "TransactionUnsettled",
    "TransportError",
    "TurnTimeout",
    "UnknownMethod",
    "UnknownSlot",
    "UnsendableParam",
    "Unsupported",
    "UnusableArgument",
    "UnusableToken",
    "VersionMismatch",
    "VmmdError",
    "rpc_error",
]
