"""What the tests of this room share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from vmmd.kvm.system import System
from vmmd.machine.machine import Machine, Machines


@pytest.fixture
async def machines(system: System) -> AsyncIterator[Machines]:
    machines = Machines(system)
    yield machines
    await machines.close()


@pytest.fixture
def machine(machines: Machines) -> Machine:
    return machines.create("box")
