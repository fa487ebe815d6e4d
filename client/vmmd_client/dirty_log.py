"""A VM's dirty view: every store of the guest is seen once, whatever becomes of the slots.

KVM keeps a log a slot, and drops it with the slot. Transactions carry the bits of slots that go to here, by guest
address, and `fetch` gives them together with what the standing slots have logged. Whoever fetches takes: a VM has one
reader at a time, as KVM's own log does. A VM with dirty rings has no log to fetch.
"""

from .channel import Channel
from .dirty import DirtyPages, DirtyView
from .dirty_fetch import Question, fetch
from .draft import GPA_END
from .plan_errors import OutOfRange
from .play import play


class DirtyLog:
    """The dirty view of one VM; `Vm.dirty` has it.

    Attributes:
        view: what waits for its reader.
    """

    def __init__(self, channel: Channel, vm: str, view: DirtyView) -> None:
        self._channel = channel
        self._vm = vm
        self.view = view

    async def fetch(
        self,
        guest_phys_addr: int = 0,
        size: int | None = None,
        *,
        manual_protect: bool = False,
        wait_ms: int = 1_000,
    ) -> DirtyPages:
        """Give the pages of a range that are dirty since the last fetch, and begin anew for them.

        Args:
            guest_phys_addr: where the range begins.
            size: its size in bytes; None: all that follows.
            manual_protect: True where the VM has KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 switched on.
            wait_ms: how long to wait while somebody is held, in milliseconds.

        Raises:
            OutOfRange: the range is none.
            VmmdError: see `dirty_fetch.fetch`; nothing is lost by it.
        """
        size = GPA_END - guest_phys_addr if size is None else size
        if guest_phys_addr < 0 or size < 0 or guest_phys_addr + size > GPA_END:
            raise OutOfRange(
                f"[{guest_phys_addr:#x}, {guest_phys_addr + size:#x}) is no range of guest-physical space, "
                f"which ends at {GPA_END:#x}",
                "size",
                size,
            )
        question = Question(self._vm, guest_phys_addr, size, wait_ms, manual_protect)
        return await play(self._channel, fetch(question, self.view))
