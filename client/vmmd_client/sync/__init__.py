"""The synchronous twin: `from vmmd_client.sync import connect`, and the same names without `await`.

Objects, parameters, results and errors are those of `vmmd_client`; `aclose` is `close`. Its modules are made of the
asynchronous ones (each says so in its first lines), but for `http`, `websocket`, `waiting`
and `local_daemon`, which block.

A client, and every handle on a VM or a vCPU, may be used by any number of threads at once: by HTTP each call under way
has a connection of its own, by WebSocket all share one. A `Batch`, a `Transaction`, a `Hold` and an iterator of events
belong to the thread that made them. A call cannot be cancelled; its time (`timeout_s`) ends it.
"""

from ..channel import Reply
from .channel import Batch
from .connection import Client, connect, from_env
from .dirty_log import DirtyLog
from .events import Events
from .hold import Hold
from .http import HttpTransport
from .transaction import Transaction
from .transport import Link, MemoryTransport, Transport
from .vcpu import Vcpu
from .vm import Vm
from .websocket import WebSocketTransport

__all__ = [
    "Batch",
    "Client",
    "DirtyLog",
    "Events",
    "Hold",
    "HttpTransport",
    "Link",
    "MemoryTransport",
    "Reply",
    "Transaction",
    "Transport",
    "Vcpu",
    "Vm",
    "WebSocketTransport",
    "connect",
    "from_env",
]
