"""What the calls of one body share: the room that is left in the answer, and the hold that the body has opened.

A batch [kick, changes, resume] is one update, so it must not be half an update: when any entry of the batch that opened
a hold fails, or is known to fail when the hold is opened, the hold fails, and its resume rolls back. What the check
finds before the first call fails every hold of the batch. A call that fails later fails the hold that is open then, or
the next one, and is settled with that hold's end: later holds of the batch are updates of their own.

A call that names a hold which somebody has opened before, and that is refused by the check, fails that hold: it is a
call inside that failed, as it would be where the core refuses it.
"""

import errno
from collections.abc import Callable
from contextlib import suppress

from vmmd.api.codes import METHOD_NOT_FOUND
from vmmd.kvm.errors import KvmError
from vmmd.kvm.vm import Vm
from vmmd.rpc.caller import Caller
from vmmd.rpc.errors import CallError


class BodyScope:
    """The scope of one body. It is the dispatcher's `Scope`.

    Args:
        vm: Gives a VM by its id, or raises `KvmError`.
        reply_left: Bytes that the answer may have.
        caller: Who waits for the answer.
    """

    def __init__(self, vm: Callable[[str], Vm], reply_left: int, caller: Caller) -> None:
        self.reply_left = reply_left
        self.caller = caller
        self._vm = vm
        self._refusal: KvmError | None = None
        self._failure: KvmError | None = None
        self._open: tuple[Vm, str] | None = None
        self._failed_to_end = False

    @property
    def is_holding(self) -> bool:
        """Whether the body has opened a hold that is not over: whoever gives way now makes its pause longer."""
        return self._open is not None

    def refused(self, error: CallError) -> None:
        """Take note, before the first call, that an entry of the body cannot be carried out: every hold fails."""
        if self._refusal is None:
            self._refusal = _as_kvm_error(error)
        if error.inside is not None:
            vm, hold = error.inside
            # Where there is no such VM, or no such hold that is open, there is nothing to fail.
            with suppress(KvmError):
                self._vm(vm).fail_hold(hold, _as_kvm_error(error))

    def failed(self, error: CallError) -> None:
        """Take note that a call of the body has failed: the open hold fails with it, or the next one."""
        if self._failed_to_end:
            # It is the resume that answered with what its hold had failed with, and that is settled.
            self._failed_to_end = False
            return
        if self._failure is None:
            self._failure = _as_kvm_error(error)
        self._fail_open_hold()

    def opening(self, vm: Vm, hold: str) -> None:
        """Check that the body may open a hold now.

        Raises:
            KvmError: EDEADLK; another hold that it opened is still open, and nobody could end it meanwhile.
        """
        if self._open is not None and self._open != (vm, hold):
            raise KvmError(
                errno.EDEADLK,
                f"this batch has opened the hold {self._open[1]!r} of VM {self._open[0].id} and would wait for itself; "
                f"resume it before {hold!r} is opened",
            )
        left = self.caller.connection.hold_of(vm) if self.caller.connection is not None else None
        if left is not None and left != hold:
            raise KvmError(
                errno.EDEADLK,
                f"this WebSocket has opened the hold {left!r} of VM {vm.id} and has not resumed it; "
                f"resume it before {hold!r} is opened, or kick over another connection",
            )

    def changing_by_itself(self, vm: Vm) -> None:
        """Check that a call may take a hold of its own for its length.

        Raises:
            KvmError: EDEADLK; the body, or its WebSocket, has the VM in a hold that nobody else would end meanwhile.
        """
        opened = self._open[1] if self._open is not None and self._open[0] is vm else None
        if opened is None and self.caller.connection is not None:
            opened = self.caller.connection.hold_of(vm)
        if opened is not None:
            raise KvmError(
                errno.EDEADLK,
                f"the caller has VM {vm.id} in the hold {opened!r}, and would wait for itself; name that hold",
            )

    def opened(self, vm: Vm, hold: str) -> None:
        """Take note that the body has opened a hold."""
        self._open = (vm, hold)
        self.caller.opened(vm, hold)
        self._fail_open_hold()

    def ended(self, vm: Vm, hold: str, *, rolled_back: bool) -> None:
        """Take note that a hold has ended, and whether its resume rolled back and answers with an error."""
        self.caller.ended(vm, hold)
        if self._open == (vm, hold):
            self._open = None
            self._failure = None
            self._failed_to_end = rolled_back

    def _fail_open_hold(self) -> None:
        error = self._refusal or self._failure
        if self._open is not None and error is not None:
            vm, hold = self._open
            vm.fail_hold(hold, error)


def _as_kvm_error(error: CallError) -> KvmError:
    """Give the error that the hold's resume answers with: an errno, also where the entry was no legal call."""
    if error.code > 0:
        data = {name: value for name, value in (error.data or {}).items() if name != "errno"}
        return KvmError(error.code, error.message, **data)
    number = errno.ENOTTY if error.code == METHOD_NOT_FOUND else errno.EINVAL
    return KvmError(number, error.message, code=error.code)
