"""The one error of the ioctls: an errno, the ioctl that gave it, and a sentence that says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmmd.memory.errors import Refused, errno_name


class KvmError(Exception):
    """An ioctl failed; unless `data` says otherwise, nothing has changed.

    Attributes:
        errno: its number, as `errno.EEXIST`.
        message: one sentence that names the rule and the numbers that broke it.
        ioctl: KVM's name of the call, where the call is one of KVM's.
        data: more that a caller can use, as {"exit_reason": "KVM_EXIT_INTR"}.
    """

    def __init__(self, errno: int, message: str, ioctl: str | None = None, **data: Any) -> None:
        super().__init__(message)
        self.errno = errno
        self.message = message
        self.ioctl = ioctl
        self.data = data

    @property
    def name(self) -> str:
        """The errno's name, as "EEXIST"."""
        return errno_name(self.errno)

    def __str__(self) -> str:
        """Say the ioctl, the errno's name and the sentence."""
        return f"{self.ioctl + ': ' if self.ioctl else ''}{self.name}: {self.message}"


@contextmanager
def in_ioctl(name: str | None) -> Iterator[None]:
    """Turn what the body refuses into a `KvmError`, and name the ioctl in it; None where it is none of KVM's."""
    try:
        yield
    except Refused as refused:
        raise KvmError(refused.errno, refused.message, name) from None
    except KvmError as error:
        if error.ioctl is None:
            error.ioctl = name
        raise
