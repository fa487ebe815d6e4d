"""The system's ioctls: capabilities, and the VMs that there are."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from vmmd.isa.engine import Engine, EngineName, make_engine
from vmmd.isa.hot.translator import TranslationStats
from vmmd.kvm.errors import KvmError
from vmmd.kvm.limits import Limits
from vmmd.kvm.observer import Observer
from vmmd.kvm.scheduler import Scheduler
from vmmd.kvm.uapi import CAPABILITIES
from vmmd.kvm.vm import Vm
from vmmd.memory.host import Ledger


class System:
    """/dev/kvm: it makes VMs, and owns the engine and the workers that all of them share.

    Args:
        engine: the name of one, or one that its owner shares and closes.
        cache_dir: where the compiled engine keeps its code from start to start; None keeps none.
        workers: worker threads; None takes as many as there are cores.
        limits: what may be used, by one VM and by all.
        observer: who is told what happens; None: nobody.
        on_translation_failure: told, on any thread, why there is less translated code than there could be.
    """

    def __init__(
        self,
        *,
        engine: EngineName | Engine,
        cache_dir: Path | None,
        workers: int | None,
        limits: Limits,
        observer: Observer | None = None,
        on_translation_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._observer = observer
        self._owns_engine = isinstance(engine, str)
        self._engine = make_engine(engine, cache_dir, on_translation_failure) if isinstance(engine, str) else engine
        self._scheduler = Scheduler(workers or len(os.sched_getaffinity(0)))
        self._limits = limits
        self._addresses = Ledger(limits.sparse_mapping_bytes, setting="limits.sparse_mapping_bytes")
        self._ledger = Ledger(limits.guest_memory_bytes, setting="limits.guest_memory_bytes")
        self._numbers = itertools.count(1)
        self._vms: dict[str, Vm] = {}

    @property
    def translations(self) -> TranslationStats:
        """What has been translated; zeroes where the engine does not translate."""
        return self._engine.translations

    @property
    def guest_memory_bytes(self) -> int:
        """Bytes of host memory that all VMs have mapped."""
        return self._ledger.used_bytes

    async def close(self) -> None:
        """Destroy every VM and end the workers."""
        for vm_id in list(self._vms):
            await self.destroy_vm(vm_id)
        self._scheduler.close()
        if self._owns_engine:
            self._engine.close()

    def check_extension(self, extension: str) -> int:
        """KVM_CHECK_EXTENSION: what is said of a capability, 0 where it is not there."""
        return CAPABILITIES.get(extension, 0)

    def create_vm(self, name: str | None = None, seed: int | None = None) -> Vm:
        """KVM_CREATE_VM.

        Args:
            name: what its creator calls it.
            seed: 64 bits that decide in which order the vCPUs of a cooperative VM run; None makes a parallel one.

        Raises:
            KvmError: EMFILE where the limit of VMs is reached.
        """
        if len(self._vms) >= self._limits.vms:
            raise KvmError(
                errno.EMFILE,
                f"there are limits.vms = {self._limits.vms} VMs already; destroy one, or raise it",
                "KVM_CREATE_VM",
            )
        vm = Vm(
            f"vm{next(self._numbers)}",
            name,
            engine=self._engine,
            scheduler=self._scheduler,
            ledger=self._new_ledger(),
            limits=self._limits,
            seed=seed,
            observer=self._observer,
        )
        self._vms[vm.id] = vm
        return vm

    def _new_ledger(self) -> Ledger:
        limits = self._limits
        addresses = Ledger(
            limits.sparse_mapping_bytes_per_vm, self._addresses, setting="limits.sparse_mapping_bytes_per_vm"
        )
        return Ledger(limits.guest_memory_bytes, self._ledger, setting="limits.guest_memory_bytes", addresses=addresses)

    def vm(self, vm_id: str) -> Vm:
        """Return a VM.

        Raises:
            KvmError: EBADF where there is none of that id.
        """
        if vm_id not in self._vms:
            raise KvmError(errno.EBADF, f"there is no VM {vm_id!r}")
        return self._vms[vm_id]

    def vms(self) -> list[Vm]:
        """Return every VM, the oldest first."""
        return list(self._vms.values())

    async def destroy_vm(self, vm_id: str) -> None:
        """Destroy a VM: whoever waits for it gets ECANCELED, and its memory goes back.

        Raises:
            KvmError: EBADF where there is none of that id.
        """
        vm = self.vm(vm_id)
        del self._vms[vm_id]
        await vm.destroy()
