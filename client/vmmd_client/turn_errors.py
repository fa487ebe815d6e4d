"""What is wrong with a turn among one client's own changes of a VM: a branch of the tree that `errors` draws."""

# ruff: noqa: N818 -- the names say what happened; "Error" behind each of them would say it twice.

from .errors import PlanError


class NestedTurn(PlanError):
    """A transaction, hold, update or fetch inside another block of the same VM could only wait for itself.

    Nothing was sent.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is inside another block of the same VM, which would have to end first: end that block before, or "
            "make the change a part of it; inside `vm.hold() as hold` it is hold.transaction()"
        )


class TurnTimeout(PlanError):
    """Others of this client had the VM's turn for too long. Nothing was sent.

    Attributes:
        wait_s: how long was waited, in seconds.
    """

    def __init__(self, what: str, wait_s: float) -> None:
        super().__init__(
            f"{what} waited {wait_s:g} s for the blocks of other tasks of this client on the same VM; "
            "keep those short, or give it more time: vm.with_timeout(timeout_s)"
        )
        self.wait_s = wait_s
