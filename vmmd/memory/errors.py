"""The one error of this room: a request that guest memory refuses."""

from __future__ import annotations

import errno as _errno

_LINUX_NAMES = {**_errno.errorcode, _errno.EDEADLK: "EDEADLK"}


def errno_name(number: int) -> str:
    """Return an errno's name, "EEXIST" for 17; where Linux has two, the one that its documents use."""
    return _LINUX_NAMES.get(number, str(number))


class Refused(Exception):  # noqa: N818  (it is what happened, and no fault of the program)
    """A request broke a rule; nothing has changed.

    Attributes:
        errno: the number that KVM gives for it, as `errno.EEXIST`.
        message: one sentence that names the rule and the numbers that broke it.
    """

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno
        self.message = message

    def __str__(self) -> str:
        """Say the errno's name and the sentence."""
        return f"{errno_name(self.errno)}: {self.message}"
