"""What the tests of the ioctls share."""

from __future__ import annotations

import pytest

from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm


@pytest.fixture
def vm(system: System) -> Vm:
    return system.create_vm()
