"""The root of the tree, what became of a transaction, and arguments of the library's own."""

import enum
from typing import Any


class Outcome(enum.Enum):
    """What became of a transaction that ended with an error."""

    NOTHING_DONE = "the map is as it was"
    PART_DONE = "steps before the one that the error names stand: a new transaction reads the map and does the rest"
    UNKNOWN = "it could not be learned: read the map anew"


class VmmdError(Exception):
    """Whatever goes wrong in the client library, or in the daemon that it talks to.

    Attributes:
        outcome: what became of the transaction that ended with it; None where it was another call, or the VM is gone.
    """

    outcome: Outcome | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Have a copy, also one that goes to another process, keep every field: an exception's own way is its text."""
        return _as_it_was, (type(self), self.args), self.__dict__


class UnusableArgument(VmmdError, ValueError):
    """An argument of the library itself that cannot be meant, as a time of no length. Nothing was sent.

    Attributes:
        argument: the argument's name.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument


class UnusableToken(UnusableArgument):
    """A token that no HTTP header can hold: empty, or with a control character as a newline at its end."""

    def __init__(self, problem: str) -> None:
        super().__init__("token", problem)


def _as_it_was(kind: type[VmmdError], args: tuple[Any, ...]) -> VmmdError:
    """Make an exception without asking its class for it; its fields are set behind this."""
    return kind.__new__(kind, *args)
