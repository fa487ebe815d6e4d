"""What the calls of one body share: the room that is left in the answer, and the hold that the body has opened.

A batch [kick, changes, resume] is one update, so it must not be half an update: when any entry of the batch that opened
a hold fails, or is known to fail when the hold is opened, the hold fails, and its resume rolls back.
"""

import errno

from vmmd.api.errors import METHOD_NOT_FOUND
from vmmd.kvm.errors import KvmError
from vmmd.kvm.vm import Vm
from vmmd.rpc.dispatch import CallError


class BodyScope:
    """The scope of one body. It is the dispatcher's `Scope`.

    Args:
        reply_left: Bytes that the answer may have.
    """

    def __init__(self, reply_left: int) -> None:
        self.reply_left = reply_left
        self._error: KvmError | None = None
        self._open: tuple[Vm, str] | None = None

    def failed(self, error: CallError) -> None:
        """Take note that an entry of the body has failed, or is known to fail: the open hold fails with it."""
        if self._error is None:
            self._error = _as_kvm_error(error)
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

    def opened(self, vm: Vm, hold: str) -> None:
        """Take note that the body has opened a hold."""
        self._open = (vm, hold)
        self._fail_open_hold()

    def ended(self, vm: Vm, hold: str) -> None:
        """Take note that a hold has ended, by a resume that rolled back too."""
        if self._open == (vm, hold):
            self._open = None

    def _fail_open_hold(self) -> None:
        if self._open is not None and self._error is not None:
            vm, hold = self._open
            vm.fail_hold(hold, self._error)


def _as_kvm_error(error: CallError) -> KvmError:
    """Give the error that the hold's resume answers with: an errno, also where the entry was no legal call."""
    if error.code > 0:
        data = {name: value for name, value in (error.data or {}).items() if name != "errno"}
        return KvmError(error.code, error.message, **data)
    number = errno.ENOTTY if error.code == METHOD_NOT_FOUND else errno.EINVAL
    return KvmError(number, error.message, code=error.code)
