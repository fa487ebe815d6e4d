"""A vCPU that does not leave guest mode, made by an engine that says so until it is told otherwise."""

from __future__ import annotations

from vmmd.isa.engine import ContextGroup, EvaluatedEngine
from vmmd.kvm.limits import Limits
from vmmd.kvm.scheduler import Scheduler
from vmmd.kvm.vm import Vm
from vmmd.memory.host import Ledger


class StubbornEngine(EvaluatedEngine):
    """Nobody is seen outside guest mode while `stuck` is set."""

    stuck = False

    def wait_outside(self, group: ContextGroup, view_number: int, yields: int) -> int:
        if self.stuck:
            return max(len(group), 1)
        return super().wait_outside(group, view_number, yields)


def stubborn_vm(engine: StubbornEngine, scheduler: Scheduler) -> Vm:
    limits = Limits(guest_memory_bytes=1 << 20, vms=1, vcpus_per_vm=2)
    return Vm("vm1", None, engine=engine, scheduler=scheduler, ledger=Ledger(1 << 20), limits=limits)
