"""What tests of several rooms share."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.isa.forced import close_forced_engines, engine_of
from vmmd.isa.engine import EngineName
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the compiled engine's code, filled by the first test that needs it."""
    return tmp_path_factory.mktemp("cache") / "code"


@pytest.fixture(params=("compiled", "evaluated"))
def engine_name(request: pytest.FixtureRequest) -> EngineName:
    """The interpreter and the evaluation in turn, for what must not depend on the engine; some modules name all."""
    name: EngineName = request.param
    return name


@pytest.fixture(scope="session", autouse=True)
def _forced_engines_end() -> Iterator[None]:
    yield
    close_forced_engines()


@pytest.fixture
async def system(engine_name: EngineName, cache_dir: Path) -> AsyncIterator[System]:
    """A system with two workers and small limits; it is closed whatever the test left running."""
    limits = Limits(guest_memory_bytes=64 << 20, vms=3, vcpus_per_vm=8)
    system = System(engine=engine_of(engine_name, cache_dir), cache_dir=cache_dir, workers=2, limits=limits)
    yield system
    await system.close()


@pytest.fixture
def reference_counts_alone() -> Iterator[None]:
    """Keep the garbage collector from doing what reference counts have to do by themselves."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
