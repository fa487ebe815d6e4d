"""Changes of a VM's memory map that the guest sees as one, and holds for those who order the calls themselves.

`async with vm.transaction() as t` collects changes and sends them when the block ends, as ONE batch: [kick, changes,
resume], one round trip. The hold's name is unguessable, and the kick carries the generation of the slot table that the
plan was made on, so that nobody's change in between is lost. An exception in the block sends nothing.

Where no vCPU could see the difference (see plan.py) nobody is kicked: the calls go one after another, each with the
generation that the one before it left, and end at the first that is refused. They are no batch, because a batch goes on
behind a refused entry, and what another client has changed can make a later entry's generation right again.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vmmd.api.holds import KickResult, ResumeResult

from . import calls
from .channel import Channel, Reply
from .errors import (
    ConnectError,
    ConnectTimeout,
    HoldConflict,
    KvmError,
    RpcError,
    StaleGeneration,
    TransactionRefused,
    VmmdError,
)
from .memslots import Memslot
from .plan import Draft, Fetch, Plan, Step
from .protocol import Call
from .waiting import try_to_its_end

if TYPE_CHECKING:
    from .vm import SlotTable, Vm

PAGE_SIZE = 4096
"""Bytes of a page, which one dirty bit stands for."""

DEFAULT_WAIT_MS = 1_000
"""How long a hold waits for its turn, in milliseconds."""


# How long the resume of a hold may take whose kick has no answer, in seconds: a daemon that hangs must not hang us too.
_GIVE_BACK_S = 5.0


@dataclass(frozen=True, slots=True)
class DirtyBitmap:
    """The last dirty bitmap of a slot that went.

    Attributes:
        slot: the slot's id.
        guest_phys_addr: the gpa of the bitmap's first page.
        bitmap: KVM's layout: bit j of byte k is page 8k+j.
    """

    slot: int
    guest_phys_addr: int
    bitmap: bytes

    def dirty_pages(self) -> Iterator[int]:
        """Give the gpa of each dirty page, in ascending order."""
        for index, byte in enumerate(self.bitmap):
            for bit in range(8):
                if byte >> bit & 1:
                    yield self.guest_phys_addr + (index * 8 + bit) * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """What a transaction did.

    Attributes:
        generation: the slot table's generation behind it.
        pause_ns: for how long the vCPUs were kept out of guest mode, in nanoseconds; None where no hold was needed.
        kick_ns: how long it took until none was in guest mode, in nanoseconds; None where no hold was needed.
        dirty: the bitmaps of the logged slots that went, exact to the last store.
    """

    generation: int
    pause_ns: int | None
    kick_ns: int | None
    dirty: tuple[DirtyBitmap, ...]


class Transaction:
    """Collects changes; made by `Vm.transaction`."""

    def __init__(self, vm: "Vm", channel: Channel, *, hold: bool, wait_ms: int) -> None:
        self._vm = vm
        self._channel = channel
        self._force_hold = hold
        self._wait_ms = wait_ms
        self._table: SlotTable | None = None
        self._draft: Draft | None = None
        self._result: TransactionResult | None = None

    @property
    def result(self) -> TransactionResult:
        """What the transaction did.

        Raises:
            VmmdError: it has not ended, or not well.
        """
        if self._result is None:
            raise VmmdError("the transaction has no result: its block has not ended, or it ended with an exception")
        return self._result

    def delete(self, slot: int) -> Memslot:
        """Delete a slot, and give what it was.

        Raises:
            PlanError: there is no such slot.
        """
        return self._open_draft().delete(slot)

    def create(
        self, slot: int, *, guest_phys_addr: int, memory_size: int, userspace_addr: int, flags: int = 0
    ) -> Memslot:
        """Create a slot; its id may be that of one which the same transaction deletes.

        Raises:
            PlanError: the id is taken.
        """
        return self._open_draft().create(Memslot(slot, int(flags), guest_phys_addr, memory_size, userspace_addr))

    def merge(self, first: int, second: int) -> Memslot:
        """Make one slot of two neighbours, under the first one's id, and give it.

        Raises:
            PlanError: they are not adjacent in guest-physical space and in host memory, or their flags differ.
        """
        return self._open_draft().merge(first, second)

    def plan(self) -> Plan:
        """Give what the changes so far will ask of the daemon."""
        return self._open_draft().plan()

    async def __aenter__(self) -> Self:
        self._table = await self._vm.slot_table()
        self._draft = Draft(self._table.slots)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        plan, table = self.plan(), self._table
        self._draft = None
        if error is not None or table is None:
            return
        if not plan.steps:
            self._result = TransactionResult(table.generation, None, None, ())
            return
        # Whatever comes of it, the map that was known before is history; a success tells the new one.
        self._vm.forget_slot_table()
        if plan.needs_hold or self._force_hold:
            self._result = await self._send_held(plan, table.generation)
        else:
            self._result = await self._send_plain(plan, table.generation)
        self._vm.know_slot_table(self._result.generation, plan.after)

    async def _send_held(self, plan: Plan, generation: int) -> TransactionResult:
        vm, hold = self._vm.id, secrets.token_urlsafe(16)
        kick = Reply(
            calls.kick_all_running_vcpus(vm, hold, wait_ms=self._wait_ms, if_generation=generation),
        )
        steps = [Reply(_call(vm, step, {"hold": hold})) for step in plan.steps]
        resume = Reply(calls.resume_all_kicked_vcpus(vm, hold))
        await self._channel.send_batch([kick, *steps, resume])
        kicked = kick.result()
        rolled_back = isinstance(resume.error, KvmError) and resume.error.rolled_back
        outcome = "all was rolled back, the map is as it was" if rolled_back else "read the map anew"
        _refuse_first(plan, steps, outcome, rolled_back=rolled_back)
        resumed = resume.result()
        return TransactionResult(resumed.generation, resumed.pause_ns, kicked.kick_ns, _dirty(plan, steps))

    async def _send_plain(self, plan: Plan, generation: int) -> TransactionResult:
        for index, step in enumerate(plan.steps):
            call = _call(self._vm.id, step, {"if_generation": generation, "wait_ms": self._wait_ms})
            try:
                generation = await self._channel.send(call)
            except RpcError as error:
                if index == 0 and isinstance(error, StaleGeneration | HoldConflict):
                    raise
                stands = "the steps before it stand, hold=True gives all or nothing" if index else "nothing was done"
                outcome = f"{stands}: {error}"
                raise TransactionRefused(index, str(step), outcome, rolled_back=False) from error
        return TransactionResult(generation, None, None, ())

    def _open_draft(self) -> Draft:
        if self._draft is None:
            raise VmmdError("a transaction takes changes inside its block: async with vm.transaction() as t")
        return self._draft


def _call(vm: str, step: Step, options: Any) -> Call[Any]:
    if isinstance(step, Fetch):
        return calls.get_dirty_log(vm, step.slot.slot, **options)
    return calls.set_user_memory_region(vm, step.region, **options)


def _refuse_first(plan: Plan, steps: list[Reply[Any]], outcome: str, *, rolled_back: bool) -> None:
    """Raise for the first step that was refused, if one was."""
    for index, (step, reply) in enumerate(zip(plan.steps, steps, strict=True)):
        if reply.error is not None:
            raise TransactionRefused(
                index, str(step), f"{outcome}: {reply.error}", rolled_back=rolled_back
            ) from reply.error


def _dirty(plan: Plan, steps: list[Reply[Any]]) -> tuple[DirtyBitmap, ...]:
    return tuple(
        DirtyBitmap(step.slot.slot, step.slot.guest_phys_addr, reply.result())
        for step, reply in zip(plan.steps, steps, strict=True)
        if isinstance(step, Fetch)
    )


class Hold:
    """A hold for those who order the calls themselves: `async with vm.hold() as hold`.

    Calls inside pass `hold=hold.name`. When the block ends the hold is resumed, also after an exception: what was done
    inside stays done, unless a call inside was refused, which has the daemon undo all of it. A block that takes longer
    than the lease (`Hold.kick.lease_ms`) renews it, or the daemon takes the hold for forgotten and rolls it back.
    """

    def __init__(self, vm: "Vm", channel: Channel, *, wait_ms: int, lease_ms: int | None) -> None:
        self._vm = vm
        self._channel = channel
        self._wait_ms = wait_ms
        self._lease_ms = lease_ms
        self._kick: KickResult | None = None
        self._resume: ResumeResult | None = None
        self.name = secrets.token_urlsafe(16)

    @property
    def kick(self) -> KickResult:
        """What the kick answered.

        Raises:
            VmmdError: the hold has not been opened.
        """
        if self._kick is None:
            raise VmmdError("the hold is not open: async with vm.hold() as hold")
        return self._kick

    @property
    def resume(self) -> ResumeResult:
        """What the resume answered.

        Raises:
            VmmdError: the hold has not ended, or not well.
        """
        if self._resume is None:
            raise VmmdError("the hold has no result: its block has not ended, or it was rolled back")
        return self._resume

    async def __aenter__(self) -> Self:
        try:
            self._kick = await self._channel.send(
                calls.kick_all_running_vcpus(self._vm.id, self.name, self._wait_ms, self._lease_ms)
            )
        except (RpcError, ConnectError, ConnectTimeout):
            raise
        except BaseException:
            # The answer alone is missing, perhaps: a hold that nobody knows of would keep the VM still for good.
            await self._give_back()
            raise
        return self

    async def renew(self) -> None:
        """Begin the lease anew: the hold stays open for as long again.

        Raises:
            HoldFailed: a call inside was refused, or the lease had run out; all is rolled back.
        """
        await self._channel.send(calls.kick_all_running_vcpus(self._vm.id, self.name, lease_ms=self._lease_ms))

    async def _give_back(self) -> None:
        """Resume the hold if it is open; a further cancellation ends the wait alone, and no error of it is told."""
        channel = self._channel.with_timeout(_GIVE_BACK_S)
        await try_to_its_end(lambda: channel.send(calls.resume_all_kicked_vcpus(self._vm.id, self.name)))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._resume = await self._channel.send(calls.resume_all_kicked_vcpus(self._vm.id, self.name))
        except VmmdError as refused:
            self._vm.forget_slot_table()
            if error is None:
                raise
            # The block's own exception says more than the rollback that it led to.
            error.add_note(f"the hold's resume answered: {refused}")
