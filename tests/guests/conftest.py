"""What the tests of this room share: guests that are built once, and a machine with room for the largest of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.guests.build import CompilerMissing, Flavour, build
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.machine.machine import Machine, Machines

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build a guest, or skip the test where the compiler is missing."""
    folder = tmp_path_factory.mktemp("guests")

    def build_or_skip(name: str, flavour: Flavour, count: int | None = None) -> Path:
        try:
            return build(name, flavour, count=count, folder=folder)
        except CompilerMissing as missing:
            pytest.skip(str(missing))

    return build_or_skip


@pytest.fixture
async def machine(engine_name: str, cache_dir: Path) -> AsyncIterator[Machine]:
    limits = Limits(guest_memory_bytes=128 << 20, vms=1, vcpus_per_vm=2)
    system = System(engine=engine_name, cache_dir=cache_dir, workers=2, limits=limits)
    machines = Machines(system)
    yield machines.create()
    await machines.close()
    await system.close()
