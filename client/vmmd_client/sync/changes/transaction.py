"""Changes of a VM's memory map that the guest sees as one: `with vm.transaction() as t`.

The block collects changes (`draft`), `plan` says what they ask of KVM, and when the block ends `commit` carries it out,
in a hold only where a vCPU could see the difference. Here is the shell around them alone: it awaits. An exception in
the block sends nothing.
"""

# Made of ../../changes/transaction.py by `python -m tests.client.twin`: change that one.

import secrets
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ...changes.commit import commit, dry_run
from ...changes.order import Order, TransactionResult, check_wait_ms
from ...errors import BadVm, Outcome, PlanError, VmmdError
from ...slots.draft import Draft
from ...slots.memslots import Memslot, SlotMap, SlotTable
from ...slots.plan import Plan
from ..wire.channel import Channel
from .play import play

if TYPE_CHECKING:
    from ..vm import Vm


class Transaction:
    """Collects changes; made by `Vm.transaction`. Its methods are those of a draft, by the same names."""

    def __init__(
        self, vm: "Vm", channel: Channel, *, hold: bool, dry_run: bool, wait_ms: int, inside: str | None = None
    ) -> None:
        check_wait_ms(wait_ms)
        self._vm = vm
        self._channel = channel
        self._force_hold = hold
        self._is_dry_run = dry_run
        self._wait_ms = wait_ms
        # The name of an open hold that it is a part of; the turn is that hold's then.
        self._inside = inside
        self._table: SlotTable | None = None
        self._draft: Draft | None = None
        self._is_over = False
        self._result: TransactionResult | None = None

    @property
    def result(self) -> TransactionResult:
        """What the transaction did; of a dry run, what stands.

        Raises:
            VmmdError: it has not ended, or not well.
        """
        if self._result is None:
            raise VmmdError("the transaction has no result: its block has not ended, or it ended with an exception")
        return self._result

    @property
    def draft(self) -> Draft:
        """The changes so far; it takes more of them inside the block."""
        return self._changing()

    @property
    def slots(self) -> SlotMap:
        """The map as it will be with the changes so far."""
        return self._drafted().slots

    def plan(self) -> Plan:
        """Give what the changes so far will ask of the daemon; behind the block, what they asked.

        Raises:
            RangeOverlap: two slots would share a guest-physical page.
        """
        return self._drafted().plan()

    def delete(self, slot: int) -> Memslot:
        """See `Draft.delete`."""
        return self._changing().delete(slot)

    def create(
        self,
        slot: int | None = None,
        *,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        flags: int = 0,
    ) -> Memslot:
        """Create a slot, under the lowest free id where none is named; see `Draft.create`.

        The id may be that of a slot which the same transaction deletes.
        """
        draft = self._changing()
        number = draft.free_id() if slot is None else slot
        return draft.create(Memslot(number, flags, guest_phys_addr, memory_size, userspace_addr))

    def grow(self, slot: int, by: int, *, at_start: bool = False) -> Memslot:
        """See `Draft.grow`."""
        return self._changing().grow(slot, by, at_start=at_start)

    def shrink(self, slot: int, by: int, *, at_start: bool = False) -> Memslot:
        """See `Draft.shrink`."""
        return self._changing().shrink(slot, by, at_start=at_start)

    def split(self, slot: int, guest_phys_addr: int, *, second: int | None = None) -> tuple[Memslot, Memslot]:
        """See `Draft.split`."""
        return self._changing().split(slot, guest_phys_addr, second=second)

    def merge(self, first: int, second: int) -> Memslot:
        """See `Draft.merge`."""
        return self._changing().merge(first, second)

    def move(self, slot: int, guest_phys_addr: int) -> Memslot:
        """See `Draft.move`."""
        return self._changing().move(slot, guest_phys_addr)

    def remap(self, slot: int, userspace_addr: int) -> Memslot:
        """See `Draft.remap`."""
        return self._changing().remap(slot, userspace_addr)

    def set_flags(self, slot: int, *, log_dirty: bool | None = None, readonly: bool | None = None) -> Memslot:
        """See `Draft.set_flags`."""
        return self._changing().set_flags(slot, log_dirty=log_dirty, readonly=readonly)

    def __enter__(self) -> Self:
        if self._inside is None:
            self._vm.shared.turn.take(
                f"a transaction on VM {self._vm.id}", self._channel.timeout_s + self._wait_ms / 1000
            )
        try:
            self._table = self._vm.slot_table()
        except BaseException as error:
            self._end()
            if isinstance(error, VmmdError) and not isinstance(error, BadVm):
                error.outcome = Outcome.NOTHING_DONE
            raise
        self._draft = Draft(self._table.slots)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        try:
            if error is None and self._table is not None:
                self._commit(self._table)
            elif error is not None:
                # Perhaps others have changed the map: another try of the same block is to see it as it is.
                self._vm.forget_slot_table()
        finally:
            self._end()

    def _end(self) -> None:
        if self._inside is None:
            self._vm.shared.turn.give_back()

    def _commit(self, table: SlotTable) -> None:
        try:
            plan = self.plan()
        except PlanError:
            self._vm.forget_slot_table()
            raise
        if not plan.steps:
            self._result = TransactionResult(table.generation, None, None, ())
            return
        order = Order(
            self._vm.id,
            plan,
            table.generation,
            self._inside or secrets.token_urlsafe(16),
            self._wait_ms,
            forced=self._force_hold,
            is_inside=self._inside is not None,
        )
        # Whatever comes of it, the map that was known before may be history; a success tells the new one.
        self._vm.forget_slot_table()
        if self._is_dry_run:
            self._result = play(self._channel, dry_run(order))
            self._vm.know_slot_table(table.generation, table.slots)
            return
        self._result = play(self._channel, commit(order, self._vm.dirty.view))
        if not self._result.answer_was_lost:
            self._vm.know_slot_table(self._result.generation, plan.after)

    def _changing(self) -> Draft:
        if self._is_over:
            raise VmmdError("the transaction is over: it takes changes inside its block: with vm.transaction()")
        return self._drafted()

    def _drafted(self) -> Draft:
        if self._draft is None:
            raise VmmdError("a transaction takes changes inside its block: with vm.transaction() as t")
        return self._draft
