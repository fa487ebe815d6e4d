"""What calls take beside what their methods are about: deadlines, names, generations, holds; and what bytes are."""

from typing import TypedDict

BytesLike = bytes | bytearray | memoryview
"""What is taken for bytes; so is anything else that has a buffer."""


class CallOptions(TypedDict, total=False):
    """What every call takes.

    Attributes:
        deadline_ms: how long the daemon may work on the call, in milliseconds; then it ends the call with KickTimeout.
            Left out: as long as it takes.
    """

    deadline_ms: int


class ChangeOptions(CallOptions, total=False):
    """What every call that changes a VM takes.

    Attributes:
        if_generation: refuse the call with StaleGeneration unless the slot table still has this generation.
        request_id: the call's own name: the daemon gives a repeat of it the first success again, and does nothing
            twice. Left out, the library makes one for each call, which covers its own repetitions.
    """

    if_generation: int
    request_id: str


class GateOptions(CallOptions, total=False):
    """What every call that uses memslots takes.

    Attributes:
        hold: the name of the open hold that the call belongs to.
        wait_ms: how long to wait while somebody else's hold is open, in milliseconds; left out: not at all.
    """

    hold: str
    wait_ms: int


class GatedChangeOptions(GateOptions, ChangeOptions, total=False):
    """What every call takes that uses memslots and changes the VM."""
