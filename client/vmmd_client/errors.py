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

# ruff: noqa: N818 -- the names say what happened; "Error" behind each of them would say it twice.

import errno
from collections.abc import Mapping
from typing import Any, TypeVar

from vmmd.api.errors import INVALID_PARAMS, METHOD_NOT_FOUND

from .outcome import Outcome

_T = TypeVar("_T")

_RESERVED_CODES = range(-32768, -31999)


class VmmdError(Exception):
    """Whatever goes wrong in the client library, or in the daemon that it talks to.

    Attributes:
        outcome: what became of the transaction that ended with it; None where it was another call, or the VM is gone.
    """

    outcome: Outcome | None = None


class TransportError(VmmdError):
    """The daemon was not reached, or its answer did not come."""


class ConnectError(TransportError):
    """No connection could be made: nothing was sent."""


class ConnectTimeout(TransportError):
    """No connection was made within its time: nothing was sent."""


class Disconnected(TransportError):
    """The connection ended before the answer was whole. Whether the call was executed is not known.

    Attributes:
        close_code: the code with which the daemon closed a WebSocket, as 1009 for a message that is too large; or None.
    """

    def __init__(self, message: str, close_code: int | None = None) -> None:
        super().__init__(message)
        self.close_code = close_code


class ClientClosed(Disconnected):
    """This client was closed: connect anew. A call that was under way then may have been executed."""


class CallTimeout(TransportError):
    """No answer came within its time, and the connection was dropped. Whether the call was executed is not known."""


class HttpRefused(TransportError):
    """The HTTP server refused the request before it became a call.

    Attributes:
        status: the HTTP status, 401 for a missing token.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ForeignEventLoop(TransportError):
    """The client's connections belong to another event loop, that of an earlier `asyncio.run`: nothing was sent."""


class UnusableArgument(VmmdError, ValueError):
    """An argument of the library itself that cannot be meant, as a time of no length. Nothing was sent.

    Attributes:
        argument: the argument's name.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument


class UnusableToken(UnusableArgument):
    """A token that no HTTP header can hold: empty, or with a control character as a newline at its end."""

    def __init__(self, problem: str) -> None:
        super().__init__("token", problem)


class ProtocolError(VmmdError):
    """What came back is no answer to what was asked: another protocol, or another version of it."""


class VersionMismatch(ProtocolError):
    """The daemon speaks another version of the KVM API: install the library and the daemon of one release.

    Attributes:
        daemon_version: what the daemon gave for KVM_GET_API_VERSION.
        library_version: what this library speaks.
    """

    def __init__(self, daemon_version: int, library_version: int) -> None:
        super().__init__(
            f"the daemon's KVM API version is {daemon_version} and this library speaks {library_version}; "
            "install vmmd of one release on both sides"
        )
        self.daemon_version = daemon_version
        self.library_version = library_version


class PlanError(VmmdError):
    """A transaction that cannot be meant: an unknown slot, a merge of slots that do not touch. Nothing was sent."""


class UnsendableParam(PlanError):
    """A parameter of a call that cannot be sent: text where bytes are wanted, bytes for text, NaN. Nothing was sent.

    Attributes:
        method: the method.
        parameter: the parameter's name.
    """

    def __init__(self, method: str, parameter: str, problem: str) -> None:
        super().__init__(f"{method}: the parameter {parameter} cannot be sent: {problem}")
        self.method = method
        self.parameter = parameter


class RpcError(VmmdError):
    """The daemon answered with an error.

    Attributes:
        code: an errno's number, or one of JSON-RPC's codes (-32768 to -32000).
        message: one sentence that names the rule and the numbers that broke it.
        data: what the daemon gave beside it, as JSON.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class UnknownMethod(RpcError):
    """The daemon has no such method: it is of an older version than this library, or the name is misspelt."""

    def __str__(self) -> str:
        return f"{self.message} (a daemon of another version than this library? daemon.get_info tells; update it)"


class InvalidParams(RpcError):
    """The daemon refused the parameters before it looked at their meaning: a wrong type, an unknown name."""


class KvmError(RpcError):
    """An ioctl failed. Nothing changed by it, except where `data` says so.

    Attributes:
        errno: the errno's name, "EEXIST".
        ioctl: the ioctl that failed, or None where the method is none.
        rolled_back: whether a hold was undone by this answer.
        index: which region of a list was refused, or None where the call has no list.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(code, message, data)
        self.errno: str = self._field("errno", str) or errno.errorcode.get(code, f"errno {code}")
        self.ioctl = self._field("ioctl", str)
        self.rolled_back = self._field("rolled_back", bool) or False
        self.index = self._field("index", int)

    def _field(self, name: str, kind: type[_T]) -> _T | None:
        """Read a field of the error's data; None where it is not there, or of another type."""
        value = self.data.get(name) if isinstance(self.data, Mapping) else None
        return value if isinstance(value, kind) else None

    def __str__(self) -> str:
        return f"{self.errno}: {self.message}"


class AlreadyExists(KvmError):
    """EEXIST: it is there already."""


class SlotOverlap(AlreadyExists):
    """EEXIST of KVM_SET_USER_MEMORY_REGION: the range overlaps another slot's."""


class BadAddress(KvmError):
    """EFAULT: a page is not mapped, or a guest-physical range has no (writable) memory."""


class BadVm(KvmError):
    """EBADF: there is no such VM or vCPU."""


class Deadlock(KvmError):
    """EDEADLK: a second hold was asked for from inside a first."""


class HoldConflict(KvmError):
    """EBUSY: somebody else's hold is open, or another run has the vCPU."""


class HoldFailed(KvmError):
    """ECANCELED: the hold has failed or ended, or the VM was destroyed.

    Attributes:
        became: what became of a hold that has ended, in words; None where it is open and has failed.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(code, message, data)
        self.became = self._field("became", str)


class Interrupted(KvmError):
    """EINTR: KVM_RUN was interrupted.

    Attributes:
        exit_reason: the exit reason that KVM_RUN left beside the errno, as "KVM_EXIT_INTR".
        kicked: whether a raw kick did it: the vCPU runs again after the raw resume.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(code, message, data)
        self.exit_reason = self._field("exit_reason", str)
        self.kicked = self._field("kicked", bool) or False


class InvalidArgument(KvmError):
    """EINVAL: an argument breaks a rule that the message names.

    Attributes:
        line: the line of assembly source that is wrong, from 1; None where the call takes no source.
        column: the column in it, from 1.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(code, message, data)
        self.line = self._field("line", int)
        self.column = self._field("column", int)


class KickTimeout(KvmError):
    """ETIMEDOUT: the turn or the last vCPU did not come within `wait_ms`, or `deadline_ms` passed; nothing is held."""


class LogsInRings(KvmError):
    """ENXIO: the VM logs dirty pages in rings alone, so it has no bitmaps: harvest the rings."""


class NeedsWebSocket(KvmError):
    """EOPNOTSUPP: the method is one of a WebSocket, and was called by HTTP; `Client.events` opens one by itself."""


class NoSuchSlot(KvmError):
    """ENOENT: there is no such slot, or it has no dirty log."""


class OutOfMemory(KvmError):
    """ENOMEM: a limit on memory is reached."""


class StaleGeneration(KvmError):
    """ESTALE: the slot table has moved on since the generation that the call named.

    Attributes:
        generation: the one that it has now.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(code, message, data)
        self.generation = self._field("generation", int)


class ShuttingDown(KvmError):
    """ESHUTDOWN: the daemon is shutting down, and nothing was done; go on with another, or with its next start."""


class TooBig(KvmError):
    """E2BIG: an argument or an answer is over a limit that the message names."""


class TooManyCalls(KvmError):
    """EAGAIN: as many calls of one WebSocket are under way as the daemon allows; wait for an answer."""


class TooManyVms(KvmError):
    """EMFILE: the daemon has as many VMs as its configuration allows; destroy one."""


class Unsupported(KvmError):
    """ENOTTY: an ioctl that vmmd does not have."""


class TransactionRefused(VmmdError):
    """The daemon refused a step of a transaction. `__cause__` is the RpcError of that step, mostly a KvmError.

    Attributes:
        step: the index of the step in the transaction's plan.
        what: the step in words.
        rolled_back: True where a hold undid all steps; False where there was no hold: the steps before this one stand,
            those behind it were not done.
    """

    def __init__(self, step: int, what: str, outcome: str, *, rolled_back: bool) -> None:
        super().__init__(f"step {step} of the transaction ({what}) was refused; {outcome}")
        self.step = step
        self.what = what
        self.rolled_back = rolled_back


class TransactionUnsettled(VmmdError):
    """What became of a transaction could not be learned. `__cause__` says why.

    In a hold it was done whole, or not at all; without one the steps before the last stand. The next use of the VM's
    dirty view asks again, and the next transaction reads the map anew.
    """


_BY_ERRNO: Mapping[int, type[KvmError]] = {
    errno.E2BIG: TooBig,
    errno.EAGAIN: TooManyCalls,
    errno.EBADF: BadVm,
    errno.EBUSY: HoldConflict,
    errno.ECANCELED: HoldFailed,
    errno.EDEADLK: Deadlock,
    errno.EEXIST: AlreadyExists,
    errno.EFAULT: BadAddress,
    errno.EINTR: Interrupted,
    errno.EINVAL: InvalidArgument,
    errno.EMFILE: TooManyVms,
    errno.ENOENT: NoSuchSlot,
    errno.ENOMEM: OutOfMemory,
    errno.ENOTTY: Unsupported,
    errno.ESHUTDOWN: ShuttingDown,
    errno.ENXIO: LogsInRings,
    errno.EOPNOTSUPP: NeedsWebSocket,
    errno.ESTALE: StaleGeneration,
    errno.ETIMEDOUT: KickTimeout,
}


_BY_RESERVED_CODE: Mapping[int, type[RpcError]] = {METHOD_NOT_FOUND: UnknownMethod, INVALID_PARAMS: InvalidParams}


def rpc_error(code: int, message: str, data: Any = None) -> RpcError:
    """Make the exception for a JSON-RPC error object: the class that its code has in the tree."""
    if code in _RESERVED_CODES or code <= 0:
        return _BY_RESERVED_CODE.get(code, RpcError)(code, message, data)
    kind = _BY_ERRNO.get(code, KvmError)
    error = kind(code, message, data)
    if kind is AlreadyExists and error.ioctl is not None and error.ioctl.startswith("KVM_SET_USER_MEMORY_REGION"):
        return SlotOverlap(code, message, data)
    return error
