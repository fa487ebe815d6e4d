"""What crosses between wire and core in more than one room: errors, exits, and the room that a reply has."""

import errno
from typing import Any

from vmmd.api import vcpus
from vmmd.api.errors import errno_name
from vmmd.api.methods import Method
from vmmd.kvm import exits
from vmmd.kvm.errors import KvmError
from vmmd.kvm.vm import Vm
from vmmd.rpc.dispatch import CallError
from vmmd.rpc.scope import BodyScope

# What a result has beside its bytes: its members' names, and JSON-RPC's envelope.
_AROUND_BYTES = 128


class EarlyError(KvmError):
    """A call was refused before the core was asked, so the core does not know that something in its hold has failed."""


def stale(vm: Vm, if_generation: int) -> EarlyError:
    """Give the error for a slot table that has moved on."""
    return EarlyError(
        errno.ESTALE,
        f"the slot table of VM {vm.id} has generation {vm.generation} and not {if_generation}; "
        "read it again with vm.get_memory_regions",
        generation=vm.generation,
    )


def call_error(error: KvmError, method: Method) -> CallError:
    """Give the wire's form of a core's error; the ioctl is the method's where the core names none."""
    data: dict[str, Any] = {"errno": errno_name(error.errno) or error.name}
    ioctl = error.ioctl or method.ioctl
    if ioctl is not None:
        data["ioctl"] = ioctl
    return CallError(error.errno, error.message, data | error.data)


def exit_result(reason: exits.Exit) -> vcpus.RunResult:
    """Give the wire's form of an exit: its reason, and the member that belongs to it."""
    match reason:
        case exits.MmioExit():
            mmio = vcpus.MmioExit(
                phys_addr=reason.phys_addr, len=reason.len, is_write=reason.is_write, data=reason.data
            )
            return vcpus.RunResult(exit_reason=reason.reason, mmio=mmio)
        case exits.IoExit():
            io = vcpus.IoExit(
                direction=reason.direction, size=reason.size, port=reason.port, count=reason.count, data=reason.data
            )
            return vcpus.RunResult(exit_reason=reason.reason, io=io)
        case exits.HypercallExit():
            call = vcpus.HypercallExit(nr=reason.nr, args=reason.args)
            return vcpus.RunResult(exit_reason=reason.reason, hypercall=call)
        case exits.InternalErrorExit():
            internal = vcpus.InternalExit(suberror=reason.suberror, phys_addr=reason.phys_addr)
            return vcpus.RunResult(exit_reason=reason.reason, internal=internal)
        case exits.ShutdownExit():
            shutdown = vcpus.ShutdownExit(cause=reason.cause, value=reason.value)
            return vcpus.RunResult(exit_reason=reason.reason, shutdown=shutdown)
        case exits.HltExit() | exits.DirtyRingFullExit():
            return vcpus.RunResult(exit_reason=reason.reason)


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
