"""A VM's address space as a tree of regions, kept in its memslots: a change of the tree is one transaction.

`with space.update():` is where the tree is changed. When the block ends, the tree is flattened, compared with the
slots that stand, and only what has changed is touched. Where the block or the daemon refuses, the tree is as it was,
and so is the map. The slots of others are left alone.
"""

# Made of ../address_space.py by `python -m tests.client.twin`: change that one.

from types import TracebackType
from typing import Self

from ..address_space import _ATTEMPTS
from ..errors import StaleGeneration, VmmdError
from ..flat_view import FlatView, flatten, lay_out
from ..memslots import Memslot
from ..order import TransactionResult
from ..plan import Plan
from ..regions import MemoryRegion, Snapshot
from ..transaction import DEFAULT_WAIT_MS
from .vm import Vm
from .waiting import Lock


class AddressSpace:
    """The guest-physical address space of one VM.

    Attributes:
        root: the region that begins at guest-physical address 0; changed inside `update` alone.
        view: the tree, flattened, as the memslots have it; empty before the first update.
    """

    def __init__(self, vm: Vm, root: MemoryRegion) -> None:
        """Take the VM and the tree; the first `update` makes the slots, also with an empty block."""
        self.root = root
        self.view = FlatView(())
        self._vm = vm
        # Slots that the last updates wanted: those of them that stand are this address space's own.
        self._claimed: frozenset[Memslot] = frozenset()
        self._turn = Lock()

    def update(self, *, dry_run: bool = False, hold: bool = False, wait_ms: int = DEFAULT_WAIT_MS) -> "Update":
        """Change the tree, and the memslots with it: `with space.update() as update`.

        Several tasks take turns. Where another client has changed the map meanwhile, the comparison is made anew.

        Args:
            dry_run: True has the daemon check the change, and changes neither the map nor the tree.
            hold: True takes a hold also where no vCPU could see the difference.
            wait_ms: how long to wait for a turn at the daemon, in milliseconds.

        Raises (when the block ends; the tree is then as it was):
            PlanError: the tree cannot be had; its subclasses say why. Nothing was sent.
            RangeOverlap: a region would lie over a slot of somebody else's.
            VmmdError: see `commit.commit`.
        """
        return Update(self, dry_run=dry_run, hold=hold, wait_ms=wait_ms)


class Update:
    """One change of an address space; made by `AddressSpace.update`."""

    def __init__(self, space: AddressSpace, *, dry_run: bool, hold: bool, wait_ms: int) -> None:
        self._space = space
        self._dry_run = dry_run
        self._hold = hold
        self._wait_ms = wait_ms
        self._snapshot: Snapshot | None = None
        self._plan: Plan | None = None
        self._result: TransactionResult | None = None

    @property
    def plan(self) -> Plan:
        """What was asked of the daemon.

        Raises:
            VmmdError: the block has not ended.
        """
        if self._plan is None:
            raise VmmdError("the update has no plan: its block has not ended")
        return self._plan

    @property
    def result(self) -> TransactionResult:
        """What the update did.

        Raises:
            VmmdError: it has not ended, or not well.
        """
        if self._result is None:
            raise VmmdError("the update has no result: its block has not ended, or it ended with an exception")
        return self._result

    def __enter__(self) -> Self:
        self._space._turn.acquire()
        self._snapshot = Snapshot(self._space.root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_done = False
        try:
            if error is None:
                self._commit()
                is_done = not self._dry_run
        finally:
            if not is_done and self._snapshot is not None:
                self._snapshot.restore(self._space.root)
            self._space._turn.release()

    def _commit(self) -> None:
        view = flatten(self._space.root)
        for attempt in range(_ATTEMPTS):
            try:
                self._attempt(view)
                break
            except StaleGeneration:
                if attempt == _ATTEMPTS - 1:
                    raise

    def _attempt(self, view: FlatView) -> None:
        space = self._space
        transaction = space._vm.transaction(hold=self._hold, dry_run=self._dry_run, wait_ms=self._wait_ms)
        with transaction as t:
            mine = {number: slot for number, slot in t.slots.items() if slot in space._claimed}
            laid = lay_out(view, t.draft, mine)
            self._plan = t.plan()
            if not self._dry_run:
                # Until the answer is here, either map may stand.
                space._claimed |= laid
        self._result = transaction.result
        if not self._dry_run:
            space._claimed, space.view = laid, view
