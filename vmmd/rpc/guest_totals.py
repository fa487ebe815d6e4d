"""Sums over all guests there have ever been: a VM that is destroyed leaves its counters behind, so no sum goes down."""

import asyncio
from contextlib import suppress

from vmmd.kvm.errors import KvmError
from vmmd.kvm.vcpu import Stats
from vmmd.kvm.vm import Vm
from vmmd.machine.machine import Machines


class GuestTotals:
    """The sums. They belong to the event loop."""

    def __init__(self) -> None:
        self._gone = Stats()
        self._latest: dict[str, Stats] = {}

    async def read(self, machines: Machines) -> Stats:
        """Read the counters of every VM there is, and give the sums over them and over all that are gone.

        The event loop has a turn between two VMs, as reading one of 1,024 vCPUs takes milliseconds. A VM that is being
        destroyed meanwhile counts with what was read last.
        """
        for vm_id in [machine.vm.id for machine in machines.all()]:
            with suppress(KvmError):
                self._latest[vm_id] = machines.get(vm_id).vm.stats()
            await asyncio.sleep(0)
        return sum(self._latest.values(), self._gone)

    def leave(self, vm: Vm) -> None:
        """Keep the counters of a VM that has just been destroyed, none of whose vCPUs runs any more."""
        self._latest.pop(vm.id, None)
        self._gone += vm.stats()
