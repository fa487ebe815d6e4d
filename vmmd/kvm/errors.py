"""The one error of the ioctls: an errno, the ioctl that gave it, and a sentence that says why."""

from __future__ import annotations

from contextlib import AbstractContextManager
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


def as_kvm_error(error: Exception, ioctl: str | None) -> KvmError | None:
    """Turn what a call refused into a `KvmError` that names the ioctl; None where it is an error of our own."""
    if isinstance(error, Refused):
        return KvmError(error.errno, error.message, ioctl)
    if not isinstance(error, KvmError):
        return None
    error.ioctl = error.ioctl or ioctl
    return error


def in_ioctl(name: str | None) -> AbstractContextManager[None]:
    """Name the ioctl in whatever the body refuses; None where it is none of KVM's."""
    return _Naming(name)


class _Naming:
    """The context manager of `in_ioctl`: a class and no generator, since short calls pass through it."""

    __slots__ = ("_ioctl",)

    def __init__(self, ioctl: str | None) -> None:
        self._ioctl = ioctl

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        named = as_kvm_error(error, self._ioctl) if isinstance(error, Exception) else None
        if named is not None and named is not error:
            try:
                raise named from None
            finally:
                # An error and the frame that names it are a cycle, and would keep what its other frames hold.
                del named, error
