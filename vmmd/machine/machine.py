"""Machines: a VM together with its run loops and its console, and the table of all of them.

    CREATED --start--> RUNNING --stop--> STOPPED --start--> RUNNING …

A machine stays RUNNING when loops have ended by themselves: what ended each is kept until the next start.
That of a cooperative VM is started by its first advance, and runs during advances alone.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from enum import Enum

from vmmd.kvm.cooperative import Advanced, Begun
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import Exit
from vmmd.kvm.observer import VmCreated, VmDestroyed, VmStarted, VmStopped, vcpu_ended
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.machine.console import Console
from vmmd.machine.cooperative import CooperativeLoops
from vmmd.machine.exit_samples import ExitSamples
from vmmd.machine.run_loop import StrayPolicy, run_loop


class MachineState(Enum):
    """Whether the run loops were started."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


class Machine:
    """One VM and its userspace half.

    Attributes:
        vm: the VM.
        state: whether its loops run.
        exit_samples: which exits are told.
    """

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.state = MachineState.CREATED
        self.exit_samples = ExitSamples(vm.note)
        self._console = Console()
        self._loops: dict[int, asyncio.Task[Exit | KvmError]] = {}
        self._ended: dict[int, Exit | KvmError] = {}
        self._stopping = False
        self._cooperative = (
            None if vm.cooperative is None else CooperativeLoops(vm, vm.cooperative, self._console, self._note_start)
        )

    @property
    def ended(self) -> Mapping[int, Exit | KvmError]:
        """What ended the loops that ended by themselves, by vCPU."""
        return self._ended if self._cooperative is None else self._cooperative.ended

    def start(self, policy: StrayPolicy = StrayPolicy.STOP) -> None:
        """Start a loop for each vCPU that there is.

        Raises:
            KvmError: EBUSY where loops are running, or a vCPU is in KVM_RUN; EINVAL for a cooperative VM.
        """
        if self._cooperative is not None:
            raise KvmError(errno.EINVAL, f"VM {self.vm.id} is cooperative, and never runs by itself: use vm.advance")
        if self.state is MachineState.RUNNING:
            raise KvmError(errno.EBUSY, f"the run loops of VM {self.vm.id} are started; stop them first")
        busy = [vcpu.id for vcpu in self.vm.vcpus.values() if vcpu.is_running]
        if busy:
            raise KvmError(errno.EBUSY, f"vCPUs {busy} of VM {self.vm.id} are in KVM_RUN")
        self._ended.clear()
        self.state = MachineState.RUNNING
        for vcpu in self.vm.vcpus.values():
            vcpu.own(self)
            running = run_loop(vcpu, self, self._console, policy, self.exit_samples)
            loop = asyncio.create_task(running, name=f"{self.vm.id}-vcpu{vcpu.id}")
            loop.add_done_callback(lambda done, vcpu_id=vcpu.id: self._note_end(vcpu_id, done))  # type: ignore[misc]
            self._loops[vcpu.id] = loop
        self.vm.note(VmStarted())

    async def advance(
        self,
        instructions: int,
        policy: StrayPolicy = StrayPolicy.STOP,
        *,
        wait_ms: int = 0,
        if_generation: int | None = None,
        begun: Begun | None = None,
    ) -> Advanced:
        """Let the loops of a cooperative VM go on until so many instructions have retired in all.

        A loop begins at the first advance that finds its vCPU. See `Cooperative.advance`.

        Raises:
            KvmError: EINVAL for a parallel VM; EBUSY while it is held or advanced; ECANCELED where it is destroyed.
        """
        if self._cooperative is None:
            raise KvmError(errno.EINVAL, f"VM {self.vm.id} is parallel, and runs by itself: use vm.start")
        return await self._cooperative.advance(
            instructions, policy, wait_ms=wait_ms, if_generation=if_generation, begun=begun
        )

    async def stop(self) -> None:
        """End all loops and every other KVM_RUN, held ones too, and wait for it; without any it does nothing."""
        if self._cooperative is not None:
            await self._cooperative.stop()
        self._stopping = True
        try:
            while self._loops:
                for vcpu_id in self._loops:
                    self.vm.vcpu(vcpu_id).signal()
                # A loop may be between two runs, where a signal finds nothing: look again once it has moved.
                await asyncio.wait(self._loops.values(), timeout=0.01)
        finally:
            self._stopping = False
        for vcpu in self.vm.vcpus.values():
            # A run whose caller has gone: nobody else would end it.
            vcpu.signal()
            await vcpu.run_over()
        if self.state is MachineState.RUNNING:
            self.state = MachineState.STOPPED
            self.vm.note(VmStopped())

    def read_console(self, since: int = 0) -> tuple[bytes, int]:
        """Return console output from a position on, and the position behind it."""
        return self._console.read(since)

    def _note_start(self) -> None:
        if self.state is not MachineState.RUNNING:
            self.state = MachineState.RUNNING
            self.vm.note(VmStarted())

    def _note_end(self, vcpu_id: int, loop: asyncio.Task[Exit | KvmError]) -> None:
        del self._loops[vcpu_id]
        self.vm.vcpu(vcpu_id).own(None)
        if loop.cancelled():
            return
        ending = loop.result()
        if not (self._stopping and isinstance(ending, KvmError) and ending.errno == errno.EINTR):
            self._ended[vcpu_id] = ending
            self.vm.note(vcpu_ended(vcpu_id, ending))


class Machines:
    """Every machine of the system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._machines: dict[str, Machine] = {}

    def create(self, name: str | None = None, seed: int | None = None) -> Machine:
        """Make a VM with its userspace half; with a seed, a cooperative one.

        Raises:
            KvmError: EMFILE where the limit of VMs is reached.
        """
        machine = Machine(self._system.create_vm(name, seed))
        self._machines[machine.vm.id] = machine
        machine.vm.note(VmCreated(name, seed is not None))
        return machine

    def get(self, vm_id: str) -> Machine:
        """Return the machine of a VM.

        Raises:
            KvmError: EBADF where there is none of that id.
        """
        if vm_id not in self._machines:
            raise KvmError(errno.EBADF, f"there is no VM {vm_id!r}")
        return self._machines[vm_id]

    def all(self) -> list[Machine]:
        """Return every machine, the oldest first."""
        return list(self._machines.values())

    async def destroy(self, vm_id: str) -> None:
        """Destroy a VM, whatever goes on in it.

        Raises:
            KvmError: EBADF where there is none of that id.
        """
        machine = self.get(vm_id)
        del self._machines[vm_id]
        await self._system.destroy_vm(vm_id)
        await machine.stop()
        machine.vm.note(VmDestroyed())

    async def close(self) -> None:
        """Destroy every machine."""
        for vm_id in list(self._machines):
            await self.destroy(vm_id)
