"""Exit codes, and the one sentence that an exception becomes.

The table is the contract with scripts:

    0    done
    1    the daemon refused, or what was asked cannot be meant; nothing changed unless the message says so
    2    the command line cannot be understood
    3    no daemon was reached; nothing was sent
    4    the daemon wants a token, or another one
    5    no answer came, or none that can be understood; whether the call was executed is not known
    124  `vmmctl run`: the guest's time was up
    125  `vmmctl run`: the guest cannot go on
    130  ended by Ctrl-C
    141  whoever read the output has gone
    143  ended by SIGTERM

`vmmctl run` gives the status with which the guest exits; its `--json` tells it from vmmctl's own.
"""

import json
import sys
from typing import IO, Any

import click

from ..errors import (
    ConnectError,
    ConnectTimeout,
    HttpRefused,
    KvmError,
    PlanError,
    RpcError,
    TransactionRefused,
    UnusableArgument,
    UnusableToken,
    VmmdError,
)
from .text import one_line

REFUSED = 1
UNREACHABLE = 3
UNAUTHORISED = 4
UNANSWERED = 5
TIME_IS_UP = 124
GUEST_DIED = 125
INTERRUPTED = 130
NO_READER = 141
TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM came; what was open has been closed."""


class Ended(BaseException):
    """The process is to end quietly, with an exit code: nobody is to be told what everybody knows."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class CommandError(click.ClickException):
    """What ends a command: one sentence on stderr, or with --json one object there, and an exit code."""

    def __init__(self, message: str, exit_code: int, *, kind: str = "error", errno: str | None = None) -> None:
        """Take the sentence, the exit code, and for programs the error's name in the library and the errno's."""
        super().__init__(message)
        # To click it is a class's, but it reads it from the instance.
        self.exit_code = exit_code  # type: ignore[misc]
        self.kind = kind
        self.errno = errno
        self.as_json = False

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the sentence, or the object, to stderr."""
        target = sys.stderr if file is None else file
        if self.as_json:
            fields = {"exit_code": self.exit_code, "kind": self.kind, "errno": self.errno, "message": self.message}
            target.write(json.dumps({"error": fields}) + "\n")
        else:
            target.write(f"vmmctl: {one_line(self.message)}\n")


def command_error(error: VmmdError) -> CommandError:
    """Give what a command ends with for what the library raised."""
    cause = error.__cause__ if isinstance(error, TransactionRefused) else error
    errno = cause.errno if isinstance(cause, KvmError) else None
    message = str(error)
    if isinstance(error, HttpRefused) and error.status in {401, 403}:
        message = message.rstrip(".") + "; set VMMD_TOKEN, or give --token-file with the daemon's token file"
    return CommandError(message, exit_code_of(error), kind=type(error).__name__, errno=errno)


def exit_code_of(error: VmmdError) -> int:
    """Give the exit code for what the library raised."""
    match error:
        case RpcError() | TransactionRefused() | PlanError():
            return REFUSED
        case ConnectError() | ConnectTimeout():
            return UNREACHABLE
        case HttpRefused(status=401 | 403) | UnusableToken():
            return UNAUTHORISED
        case UnusableArgument():
            return REFUSED
        case _:
            return UNANSWERED
