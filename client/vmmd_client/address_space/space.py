"""A VM's address space as a tree of regions, kept in its memslots: a change of the tree is one transaction.

`async with space.update():` is where the tree is changed. When the block ends, the tree is flattened, compared with the
slots that stand, and only what has changed is touched. Where the block or the daemon refuses, the tree is as it was,
and so is the map. The slots of others are left alone.
"""

import random
from types import TracebackType
from typing import Self

from ..changes.order import TransactionResult, check_wait_ms
from ..changes.transaction import DEFAULT_WAIT_MS
from ..errors import StaleGeneration, VmmdError
from ..slots.draft import Draft
from ..slots.memslots import Memslot, SlotMap
from ..slots.plan import Plan
from ..vm import Vm
from ..wire.waiting import Turn, sleep
from .flat_view import FlatView, flatten, lay_out
from .regions import MemoryRegion, Snapshot

_ATTEMPTS = 5

# Two clients that have met are to meet again seldom.
_FIRST_WAIT_S = 0.01


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
        self._turn = Turn()

    def update(self, *, dry_run: bool = False, hold: bool = False, wait_ms: int = DEFAULT_WAIT_MS) -> "Update":
        """Change the tree, and the memslots with it: `async with space.update() as update`.

        Several tasks take turns. Where another client has changed the map meanwhile, the comparison is made anew
        after a random wait.

        Args:
            dry_run: True has the daemon check the change, and changes neither the map nor the tree.
            hold: True takes a hold also where no vCPU could see the difference.
            wait_ms: how long to wait for a turn at the daemon, in milliseconds.

        Raises (when the block ends; the tree is then as it was):
            PlanError: the tree cannot be had; its subclasses say why. Nothing was sent.
            Misaligned, OutOfRange: memory lies where no slot can be.
            RangeOverlap: a region would lie over a slot of somebody else's.
            NestedTurn, TurnTimeout: it is inside another block of this VM, or waited too long for one.
            StaleGeneration: other clients have changed the map again and again.
            KickTimeout, HoldConflict, TransactionRefused, TransactionUnsettled, TransportError, ProtocolError: as of
                `Vm.transaction`.
        """
        return Update(self, dry_run=dry_run, hold=hold, wait_ms=wait_ms)

    def own(self, slots: SlotMap) -> SlotMap:
        """Give those of a map's slots that are this address space's."""
        return {number: slot for number, slot in slots.items() if slot in self._claimed}


class Update:
    """One change of an address space; made by `AddressSpace.update`."""

    def __init__(self, space: AddressSpace, *, dry_run: bool, hold: bool, wait_ms: int) -> None:
        self._space = space
        check_wait_ms(wait_ms)
        self._dry_run = dry_run
        self._hold = hold
        self._wait_ms = wait_ms
        self._snapshot: Snapshot | None = None
        self._plan: Plan | None = None
        # The map that a plan starts from, as long as the block lasts.
        self._draft_of: SlotMap | None = None
        self._result: TransactionResult | None = None

    @property
    def plan(self) -> Plan:
        """What the tree as it is now will ask of the daemon; behind the block, what was asked.

        Raises:
            PlanError: the tree cannot be had; see `AddressSpace.update`.
            VmmdError: the block has not begun, or ended with an exception.
        """
        if self._draft_of is not None:
            draft = Draft(self._draft_of)
            lay_out(flatten(self._space.root), draft, self._space.own(draft.slots))
            return draft.plan()
        if self._plan is None:
            raise VmmdError("the update has no plan: its block has not begun, or it ended with an exception")
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

    async def __aenter__(self) -> Self:
        vm = self._space._vm
        what = f"an update of VM {vm.id}'s address space"
        vm.shared.turn.refuse_nesting(what)
        await self._space._turn.take(what, vm.timeout_s + self._wait_ms / 1000)
        try:
            self._draft_of = (await vm.slot_table()).slots
        except BaseException:
            self._space._turn.give_back()
            raise
        self._snapshot = Snapshot(self._space.root)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_done = False
        self._draft_of = None
        try:
            if error is None:
                await self._commit()
                is_done = not self._dry_run
        finally:
            if not is_done and self._snapshot is not None:
                self._snapshot.restore(self._space.root)
            self._space._turn.give_back()

    async def _commit(self) -> None:
        view = flatten(self._space.root)
        for attempt in range(_ATTEMPTS):
            try:
                await self._attempt(view)
                break
            except StaleGeneration:
                if attempt == _ATTEMPTS - 1:
                    raise
            await sleep(random.uniform(0, _FIRST_WAIT_S * 2**attempt))  # noqa: S311 -- nothing secret

    async def _attempt(self, view: FlatView) -> None:
        space = self._space
        transaction = space._vm.transaction(hold=self._hold, dry_run=self._dry_run, wait_ms=self._wait_ms)
        async with transaction as t:
            laid = lay_out(view, t.draft, space.own(t.slots))
            self._plan = t.plan()
            if not self._dry_run:
                # Until the answer is here, either map may stand.
                space._claimed |= laid
        self._result = transaction.result
        if not self._dry_run:
            space._claimed, space.view = laid, view
