"""What the scenarios share: the compiled engine on two worker threads, with room for a VM that uses every slot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm

LIMITS = Limits(guest_memory_bytes=1 << 37, vms=16, vcpus_per_vm=8)


@pytest.fixture
async def system(cache_dir: Path) -> AsyncIterator[System]:
    system = System(engine="compiled", cache_dir=cache_dir, workers=2, limits=LIMITS)
    yield system
    await system.close()


@pytest.fixture
def vm(system: System) -> Vm:
    return system.create_vm()
