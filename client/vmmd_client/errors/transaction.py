"""How a transaction ends that was sent and not carried out."""

from .root import VmmdError


class TransactionRefused(VmmdError):
    """The daemon refused a step of a transaction. `__cause__` is the RpcError of that step, mostly a KvmError.

    Attributes:
        step: the index of the step in the transaction's plan.
        what: the step in words.
        rolled_back: True where a hold undid all steps, or those before this one were undone where there was no hold.
            False where they could not be: they stand, and those behind it were not done. That is so where the daemon
            vanishes between two steps, and `outcome` is PART_DONE: once it is back, a new transaction reads the map
            and does what is missing. With `hold=True` a transaction is done whole or not at all.
    """

    def __init__(self, step: int, what: str, outcome: str, *, rolled_back: bool) -> None:
        super().__init__(f"step {step} of the transaction ({what}) was refused; {outcome}")
        self.step = step
        self.what = what
        self.rolled_back = rolled_back


class TransactionUnsettled(VmmdError):
    """What became of a transaction could not be learned. `__cause__` says why.

    In a hold it was done whole, or not at all; without one the steps before the last stand. The next use of the VM's
    dirty view asks again, and the next transaction reads the map anew: compare `vm.slot_table()` with what was wanted.
    """
