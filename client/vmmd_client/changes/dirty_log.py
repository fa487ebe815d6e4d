"""A VM's dirty view: every store of the guest is seen once, whatever becomes of the slots.

KVM keeps a log a slot, and drops it with the slot. Transactions carry the bits of slots that go to here, by guest
address, and `fetch` gives them together with what the standing slots have logged. Whoever fetches takes: a VM has one
reader at a time, as KVM's own log does. All handles of one client share the view; another client has one of its own,
with the bits of the slots that its own transactions replaced.

The view is for VMs that log in bitmaps. With dirty rings there is no log to fetch: the bits of a slot that went are in
the rings, by slot and page, and transactions carry none.
"""

from ..errors import OutOfRange
from ..slots.draft import GPA_END, is_integer
from ..wire.channel import Channel
from .dirty import DirtyPages, DirtyView
from .dirty_fetch import Question, fetch
from .order import check_wait_ms
from .play import play
from .shared_vm import SharedVm


class DirtyLog:
    """The dirty view of one VM, as one client has it; `Vm.dirty` has it."""

    def __init__(self, channel: Channel, vm: str, shared: SharedVm) -> None:
        self._channel = channel
        self._vm = vm
        self._shared = shared

    @property
    def view(self) -> DirtyView:
        """What waits for its reader."""
        return self._shared.view

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
            LogsInRings: the VM logs in rings alone; harvest them.
            NestedTurn, TurnTimeout: it is inside another block of this VM, or waited too long for one.
            StaleGeneration: other clients change the map all the time; what was fetched waits for the next fetch.
            HoldConflict: somebody was held for longer than `wait_ms`; likewise.
            TransactionUnsettled: what became of an earlier transaction could not be learned.
            TransportError, ProtocolError: an answer is lost; the pages that it was about count as dirty at the next
                fetch.
        """
        check_wait_ms(wait_ms)
        for field, value in (("guest_phys_addr", guest_phys_addr), ("size", 0 if size is None else size)):
            if not is_integer(value):
                raise OutOfRange(f"{field} is {value!r}; give an integer of bytes", field, value)
        size = GPA_END - guest_phys_addr if size is None else size
        if guest_phys_addr < 0 or size < 0 or guest_phys_addr + size > GPA_END:
            raise OutOfRange(
                f"[{guest_phys_addr:#x}, {guest_phys_addr + size:#x}) is no range of guest-physical space, "
                f"which ends at {GPA_END:#x}",
                "size",
                size,
            )
        question = Question(self._vm, guest_phys_addr, size, wait_ms, manual_protect)
        await self._shared.turn.take(
            f"a fetch of VM {self._vm}'s dirty pages", self._channel.timeout_s + wait_ms / 1000
        )
        try:
            return await play(self._channel, fetch(question, self.view))
        finally:
            self._shared.turn.give_back()
