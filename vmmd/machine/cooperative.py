"""The run loops of a cooperative VM, which go on while it is advanced.

A loop begins at the first advance behind its vCPU's creation, and again at the first behind a stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from vmmd.kvm.cooperative import Advanced, Begun, Cooperative
from vmmd.kvm.digest import History
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import Exit
from vmmd.kvm.observer import vcpu_ended
from vmmd.kvm.vm import Vm
from vmmd.machine.console import Console
from vmmd.machine.exit_samples import ExitSamples
from vmmd.machine.run_loop import StrayPolicy
from vmmd.machine.turn_loop import TurnLoop


class CooperativeLoops:
    """The loops of one VM.

    Args:
        vm: the VM.
        meet: what its vCPUs run by.
        console: what the guest writes to.
        started: told whenever an advance begins.
    """

    def __init__(self, vm: Vm, meet: Cooperative, console: Console, started: Callable[[], None]) -> None:
        self._vm = vm
        self._meet = meet
        self._started = started
        self._console = console
        self._history = History()
        self._loops: dict[int, TurnLoop] = {}
        self._told: set[int] = set()
        self._samples: ExitSamples | None = None

    @property
    def ended(self) -> dict[int, Exit | KvmError]:
        """What ended the loops that have ended, by vCPU."""
        return {vcpu_id: loop.ended for vcpu_id, loop in self._loops.items() if loop.ended is not None}

    async def advance(
        self,
        instructions: int,
        policy: StrayPolicy,
        *,
        wait_ms: int = 0,
        if_generation: int | None = None,
        begun: Begun | None = None,
    ) -> Advanced:
        """See `Machine.advance`."""
        try:
            return await self._meet.advance(
                instructions,
                partial(self._begin, policy),
                lambda: self._history.digest(self._vm.vcpus.values(), self._meet.view),
                wait_ms=wait_ms,
                if_generation=if_generation,
                begun=begun,
            )
        finally:
            self._tell_ended()

    async def stop(self) -> None:
        """End the advance that is under way, if there is one, and all loops."""
        await self._meet.stop_advance()
        self._loops.clear()
        self._told.clear()

    def _tell_ended(self) -> None:
        for vcpu_id, ending in self.ended.items():
            if vcpu_id not in self._told:
                self._told.add(vcpu_id)
                self._vm.note(vcpu_ended(vcpu_id, ending))

    def _begin(self, policy: StrayPolicy) -> Sequence[TurnLoop]:
        self._started()
        event_loop = asyncio.get_running_loop()

        def write(data: bytes) -> None:
            # The console belongs to the event loop, and the loops run on a worker.
            event_loop.call_soon_threadsafe(self._console.write, data)

        if self._samples is None:
            self._samples = ExitSamples(lambda event: event_loop.call_soon_threadsafe(self._vm.note, event))
        for vcpu_id in sorted(self._vm.vcpus):
            loop = self._loops.get(vcpu_id)
            if loop is None:
                loop = self._loops[vcpu_id] = TurnLoop(self._vm.vcpu(vcpu_id), write, self._history, self._samples)
            loop.policy = policy
        return [self._loops[vcpu_id] for vcpu_id in sorted(self._loops)]
