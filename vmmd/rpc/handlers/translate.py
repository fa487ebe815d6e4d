"""What crosses between wire and core in more than one room: errors, exits, and the room that a reply has."""

import errno
from dataclasses import asdict
from typing import Any

from vmmd.api import vcpus
from vmmd.api.errors import errno_name
from vmmd.api.methods import Method
from vmmd.api.types import GateOptions, Result
from vmmd.kvm import exits
from vmmd.kvm.errors import KvmError
from vmmd.kvm.gate import Entry
from vmmd.rpc.errors import CallError
from vmmd.rpc.scope import BodyScope

# What a result has beside its bytes: its members' names, and JSON-RPC's envelope.
_AROUND_BYTES = 128


class EarlyError(KvmError):
    """A call was refused before the core was asked, so the core does not know that something in its hold has failed."""


def entry(params: GateOptions) -> Entry:
    """Give what a call asks for at the gate."""
    asked: Entry = {}
    if params.hold is not None:
        asked["hold"] = params.hold
    if "wait_ms" in params.model_fields_set:
        asked["wait_ms"] = params.wait_ms
    if_generation: int | None = getattr(params, "if_generation", None)  # a call that only reads has none
    if if_generation is not None:
        asked["if_generation"] = if_generation
    return asked


def call_error(error: KvmError, method: Method) -> CallError:
    """Give the wire's form of a core's error; the ioctl is the method's where the core names none."""
    data: dict[str, Any] = {"errno": errno_name(error.errno) or error.name}
    ioctl = error.ioctl or method.ioctl
    if ioctl is not None:
        data["ioctl"] = ioctl
    return CallError(error.errno, error.message, data | error.data)


_MEMBERS: dict[type, tuple[str, type[Result]]] = {
    exits.MmioExit: ("mmio", vcpus.MmioExit),
    exits.IoExit: ("io", vcpus.IoExit),
    exits.HypercallExit: ("hypercall", vcpus.HypercallExit),
    exits.InternalErrorExit: ("internal", vcpus.InternalExit),
    exits.DebugExit: ("debug", vcpus.DebugExit),
    exits.ShutdownExit: ("shutdown", vcpus.ShutdownExit),
}
"""Of exits that have data: the member of the result, and its model, whose fields are the exit's."""


def exit_result(reason: exits.Exit) -> vcpus.RunResult:
    """Give the wire's form of an exit: its reason, and the member that belongs to it."""
    found = _MEMBERS.get(type(reason))
    if found is None:
        return vcpus.RunResult(exit_reason=reason.reason)
    member, model = found
    data: dict[str, Any] = {member: model(**asdict(reason))}
    return vcpus.RunResult(exit_reason=reason.reason, **data)


def room_bytes(scope: BodyScope) -> int:
    """Give how many bytes, once in base64, still have room in the reply."""
    return max(0, (scope.reply_left - _AROUND_BYTES) // 4 * 3)


def check_reply_has_room(size_bytes: int, scope: BodyScope, parameter: str) -> None:
    """Refuse what would not fit in the reply, before it is done.

    Raises:
        EarlyError: E2BIG; `parameter` is what the caller can ask for less with.
    """
    if size_bytes > room_bytes(scope):
        raise EarlyError(
            errno.E2BIG,
            f"{size_bytes} bytes do not fit in the reply, which has room for {room_bytes(scope)} (limits.reply_bytes); "
            f"ask for less at a time with {parameter}",
        )
