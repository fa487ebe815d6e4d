"""A vCPU as an object: one typed method for each method of the wire.

A `Vcpu` holds two ids and owns nothing in the daemon: a handle that is dropped destroys nothing.
"""

from collections.abc import Mapping
from typing import Unpack

from vmmd.api.vcpus import RunResult, StatsResult

from .wire import calls
from .wire.call_options import BytesLike, ChangeOptions
from .wire.channel import Channel


class Vcpu:
    """One vCPU. All addresses and registers are integers of 64 bits."""

    def __init__(self, channel: Channel, vm: str, vcpu: int) -> None:
        """Name a vCPU; whether it exists is for the first call to tell."""
        self._channel = channel
        self.vm_id = vm
        self.id = vcpu

    def __repr__(self) -> str:
        return f"Vcpu({self.id}, vm={self.vm_id!r})"

    def with_timeout(self, timeout_s: float) -> "Vcpu":
        """Give a handle on the same vCPU whose calls may take `timeout_s` seconds each."""
        return Vcpu(self._channel.with_timeout(timeout_s), self.vm_id, self.id)

    async def run(
        self, data: BytesLike | None = None, *, timeout_ms: int | None = None, **options: Unpack[ChangeOptions]
    ) -> RunResult:
        """KVM_RUN once: the guest runs until userspace must see something.

        Args:
            data: the bytes that end a pending MMIO or port read; left out: zeros.
            timeout_ms: after so many milliseconds the run is interrupted as by a signal.
            **options: see `call_options.ChangeOptions`.

        Raises:
            Interrupted: EINTR; the error's data holds the exit reason.
            BadAddress: EFAULT, the guest touched a memslot whose host memory is gone.
            HoldConflict: EBUSY, another run, or the run loop, has the vCPU.
        """
        return await self._channel.send(calls.run(self.vm_id, self.id, data, timeout_ms, **options))

    async def harvest_dirty_ring(
        self, count: int | None = None, **options: Unpack[ChangeOptions]
    ) -> list[tuple[int, int]]:
        """Read entries of the vCPU's dirty ring, and mark them for `Vm.reset_dirty_rings`.

        Args:
            count: how many at most; left out: the daemon's default, 4,096.
            **options: see `call_options.ChangeOptions`.

        Returns:
            (slot id, page number in the slot) in the order in which the vCPU dirtied them; empty where there is none.

        Raises:
            InvalidArgument: the VM has no dirty rings.
        """
        return await self._channel.send(calls.harvest_dirty_ring(self.vm_id, self.id, count, **options))

    async def get_regs(self) -> dict[str, int]:
        """KVM_GET_REGS: pc and x0 to x31 by name."""
        return await self._channel.send(calls.get_regs(self.vm_id, self.id))

    async def set_regs(self, regs: Mapping[str, int], **options: Unpack[ChangeOptions]) -> None:
        """KVM_SET_REGS: set the registers that are named ("pc", "x1" or "ra"), leave the others.

        Raises:
            InvalidArgument: a name is no register.
        """
        await self._channel.send(calls.set_regs(self.vm_id, self.id, regs, **options))

    async def set_immediate_exit(self, value: int, **options: Unpack[ChangeOptions]) -> None:
        """Set kvm_run's immediate_exit: with 1, KVM_RUN ends pending work and gives EINTR."""
        await self._channel.send(calls.set_immediate_exit(self.vm_id, self.id, value, **options))

    async def interrupt(self, **options: Unpack[ChangeOptions]) -> None:
        """Make the external interrupt pending (KVM_INTERRUPT), until the guest takes it."""
        await self._channel.send(calls.interrupt(self.vm_id, self.id, **options))

    async def get_mp_state(self) -> str:
        """Give "KVM_MP_STATE_RUNNABLE", or "KVM_MP_STATE_HALTED" while the vCPU sleeps inside KVM_RUN."""
        return await self._channel.send(calls.get_mp_state(self.vm_id, self.id))

    async def set_mp_state(self, mp_state: str, **options: Unpack[ChangeOptions]) -> None:
        """Make the vCPU runnable, or halt it until an interrupt, by KVM's name of the state.

        Raises:
            InvalidArgument: T64 has no such state, or it needs `Vm.create_irqchip`.
        """
        await self._channel.send(calls.set_mp_state(self.vm_id, self.id, mp_state, **options))

    async def set_guest_debug(self, control: int, **options: Unpack[ChangeOptions]) -> None:
        """Leave the guest at ebreaks or after every instruction, by the bits of `vmmd.api.types.GUESTDBG_FLAGS`."""
        await self._channel.send(calls.set_guest_debug(self.vm_id, self.id, control, **options))

    async def get_stats(self) -> StatsResult:
        """Give the vCPU's counters; never gated, also answered inside a hold."""
        return await self._channel.send(calls.get_vcpu_stats(self.vm_id, self.id))
