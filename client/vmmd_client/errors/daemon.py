"""What the daemon answers: the branch of `RpcError`, with a class for each errno that a user would handle."""

import errno
from collections.abc import Mapping
from typing import Any, TypeVar

from vmmd.api.codes import INVALID_PARAMS, METHOD_NOT_FOUND

from .root import VmmdError

_T = TypeVar("_T")

_RESERVED_CODES = range(-32768, -31999)


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
