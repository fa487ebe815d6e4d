"""Why an engine left guest mode, or did not enter it: the numbers that compiled code returns."""

from __future__ import annotations

from enum import IntEnum


class Stop(IntEnum):
    """Where it stopped, pc stands on the next instruction, and all before it have retired."""

    BUDGET = 1
    """The budget is used up."""

    REQUEST = 2
    """A request waits in the context."""

    STALE = 3
    """The context's view is not the VM's newest; nothing ran."""

    TURN = 5
    """It ran for long by the evaluation, far fewer instructions than its budget: others may want the thread."""

    UNTRANSLATED = 6
    """The context is forced to run in regions, and there is none at pc."""

    INSTRUCTION = 4
    """The instruction at pc is for the evaluation."""
