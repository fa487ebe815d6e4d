"""Holds for those who order the calls themselves."""

import secrets
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vmmd.api.holds import KickResult, ResumeResult

from ..errors import ConnectError, ConnectTimeout, KvmError, RpcError, VmmdError
from ..wire import calls
from ..wire.channel import Channel
from ..wire.waiting import try_to_its_end
from .order import check_wait_ms
from .transaction import Transaction

if TYPE_CHECKING:
    from ..vm import Vm

# How long the resume of a hold may take whose kick has no answer, in seconds: a daemon that hangs must not hang us too.
_GIVE_BACK_S = 5.0


class Hold:
    """A hold for those who order the calls themselves: `async with vm.hold() as hold`.

    Calls inside pass `hold=hold.name`. When the block ends the hold is resumed, also after an exception: what was done
    inside stays done, unless a call inside was refused, which has the daemon undo all of it. A block that takes longer
    than the lease (`Hold.kick.lease_ms`) renews it, or the daemon takes the hold for forgotten and rolls it back.
    Transactions inside are `hold.transaction()`; other transactions of this client wait for the block's end.
    """

    def __init__(self, vm: "Vm", channel: Channel, *, wait_ms: int, lease_ms: int | None) -> None:
        check_wait_ms(wait_ms)
        self._vm = vm
        self._channel = channel
        self._wait_ms = wait_ms
        self._lease_ms = lease_ms
        self._kick: KickResult | None = None
        self._resume: ResumeResult | None = None
        self._is_over = False
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

    def transaction(self) -> Transaction:
        """Collect changes of the memory map, to be made inside this hold: `async with hold.transaction() as t`.

        They stand when the hold is resumed, with the dirty bits of the slots that go; a later call inside that is
        refused undoes them too.

        Raises (when the block ends):
            VmmdError: the hold is not open.
            PlanError: a change that cannot be meant; nothing was sent, and the hold goes on.
            TransactionRefused: the daemon refused a step; the hold has failed, and its resume undoes all.
            TransportError, ProtocolError: an answer is lost; the hold has been ended, and all is rolled back.
            TransactionUnsettled: so is the answer to the question what became of it.
        """
        if self._is_over:
            raise VmmdError("the hold has ended: a transaction inside it belongs into its block")
        return Transaction(
            self._vm,
            self._channel,
            hold=False,
            dry_run=False,
            wait_ms=self._wait_ms,
            inside=self.kick.hold or self.name,
        )

    async def __aenter__(self) -> Self:
        await self._vm.shared.turn.take(f"a hold of VM {self._vm.id}", self._channel.timeout_s + self._wait_ms / 1000)
        try:
            return await self._open()
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        self._is_over = True
        self._vm.shared.turn.give_back()

    async def _open(self) -> Self:
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
            self._vm.shared.view.settle(self.name, was_done=True)
        except VmmdError as refused:
            self._vm.forget_slot_table()
            if isinstance(refused, KvmError) and refused.rolled_back:
                self._vm.shared.view.settle(self.name, was_done=False)
            if error is None:
                raise
            # The block's own exception says more than the rollback that it led to.
            error.add_note(f"the hold's resume answered: {refused}")
        finally:
            self._end()
