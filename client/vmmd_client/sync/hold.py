"""Holds for those who order the calls themselves."""

# Made of ../hold.py by `python -m tests.client.twin`: change that one.

import secrets
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vmmd.api.holds import KickResult, ResumeResult

from .. import calls
from ..errors import ConnectError, ConnectTimeout, RpcError, VmmdError
from ..hold import _GIVE_BACK_S
from .channel import Channel
from .waiting import try_to_its_end

if TYPE_CHECKING:
    from .vm import Vm


class Hold:
    """A hold for those who order the calls themselves: `with vm.hold() as hold`.

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
            raise VmmdError("the hold is not open: with vm.hold() as hold")
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

    def __enter__(self) -> Self:
        try:
            self._kick = self._channel.send(
                calls.kick_all_running_vcpus(self._vm.id, self.name, self._wait_ms, self._lease_ms)
            )
        except (RpcError, ConnectError, ConnectTimeout):
            raise
        except BaseException:
            # The answer alone is missing, perhaps: a hold that nobody knows of would keep the VM still for good.
            self._give_back()
            raise
        return self

    def renew(self) -> None:
        """Begin the lease anew: the hold stays open for as long again.

        Raises:
            HoldFailed: a call inside was refused, or the lease had run out; all is rolled back.
        """
        self._channel.send(calls.kick_all_running_vcpus(self._vm.id, self.name, lease_ms=self._lease_ms))

    def _give_back(self) -> None:
        """Resume the hold if it is open; a further cancellation ends the wait alone, and no error of it is told."""
        channel = self._channel.with_timeout(_GIVE_BACK_S)
        try_to_its_end(lambda: channel.send(calls.resume_all_kicked_vcpus(self._vm.id, self.name)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._resume = self._channel.send(calls.resume_all_kicked_vcpus(self._vm.id, self.name))
        except VmmdError as refused:
            self._vm.forget_slot_table()
            if error is None:
                raise
            # The block's own exception says more than the rollback that it led to.
            error.add_note(f"the hold's resume answered: {refused}")
