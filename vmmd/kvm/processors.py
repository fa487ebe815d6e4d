"""The vCPUs of a VM and their in-kernel interrupt controller: how they come about, and their time.

It refuses a controller behind the first vCPU, and a vCPU twice.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from vmmd.kvm.clock import Clock
from vmmd.kvm.errors import KvmError
from vmmd.kvm.irqchip import Irqchip, Lines
from vmmd.kvm.rendezvous import Rendezvous
from vmmd.kvm.requests import KVM_REQ_HOLD
from vmmd.kvm.vcpu import Stats, Vcpu
from vmmd.memory.ring import DirtyRing


class Processors:
    """The vCPUs of one VM.

    Args:
        vm_id: what errors call the VM.
        meet: where they are kicked.
        clock: their time.
        most: ids are below this.
    """

    def __init__(self, vm_id: str, meet: Rendezvous, clock: Clock, most: int) -> None:
        self._vm_id = vm_id
        self._meet = meet
        self._clock = clock
        self._most = most
        self._vcpus: dict[int, Vcpu] = {}
        self._lines: dict[int, Lines] = {}
        self._irqchip: Irqchip | None = None

    @property
    def by_id(self) -> Mapping[int, Vcpu]:
        """The vCPUs by their ids."""
        return self._vcpus

    def get(self, vcpu_id: int) -> Vcpu:
        """See `Vm.vcpu`."""
        if vcpu_id not in self._vcpus:
            raise KvmError(errno.EBADF, f"VM {self._vm_id} has no vCPU {vcpu_id}")
        return self._vcpus[vcpu_id]

    def stats(self) -> Stats:
        """Return the sums of their counters."""
        return sum((vcpu.stats() for vcpu in self._vcpus.values()), Stats())

    def create_irqchip(self, *, held: bool) -> None:
        """See `Vm.create_irqchip`; `held`: whether time stands still now."""
        self._meet.check_no_advance("KVM_CREATE_IRQCHIP")
        if self._irqchip is not None:
            raise KvmError(errno.EEXIST, f"VM {self._vm_id} has an interrupt controller already")
        if self._vcpus:
            raise KvmError(errno.EINVAL, f"it comes before the first vCPU, and VM {self._vm_id} has {len(self._vcpus)}")
        self._irqchip = Irqchip(self._clock, self._lines)
        if held:
            self._irqchip.stop()

    def create(self, vcpu_id: int, ring: DirtyRing | None, *, held: bool) -> Vcpu:
        """See `Vm.create_vcpu`; `ring` is its own, `held`: whether it starts held."""
        self._meet.check_no_advance("KVM_CREATE_VCPU")
        if not 0 <= vcpu_id < self._most:
            raise KvmError(errno.EINVAL, f"vCPU id {vcpu_id} is not below limits.vcpus_per_vm = {self._most}")
        if vcpu_id in self._vcpus:
            raise KvmError(errno.EEXIST, f"vCPU {vcpu_id} is there already")
        requests = KVM_REQ_HOLD if held else 0
        vcpu = Vcpu(self._meet, vcpu_id, requests, clock=self._clock, irqchip=self._irqchip, ring=ring)
        self._vcpus[vcpu_id], self._lines[vcpu_id] = vcpu, vcpu.lines
        return vcpu

    def time_stands_still(self, still: bool) -> None:
        """Stop the clock and the timers, or let them go on."""
        for part in (self._clock, self._irqchip):
            if part is not None:
                part.stop() if still else part.go()

    def stop_timers(self) -> None:
        """Let go of the timers: the VM is destroyed."""
        if self._irqchip is not None:
            self._irqchip.stop()
