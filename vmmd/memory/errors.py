"""The one error of this room: a request that guest memory refuses."""

from __future__ import annotations

import errno as _errno


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
        return f"{_errno.errorcode.get(self.errno, self.errno)}: {self.message}"
