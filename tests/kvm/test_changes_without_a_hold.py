"""Changes of memslots under running vCPUs without a hold are as safe as in the kernel; machine code, two host threads.

`tests.benchmarks.stress_without_a_hold` makes 100,000 changes in the same scenarios; here are some of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.benchmarks.stress_without_a_hold import LIMITS, stress
from tests.isa.forced import engine_of
from tests.selftests import old_places, unnoticed
from vmmd.kvm.system import System


@pytest.fixture(params=["compiled", "translated"])
async def system(cache_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[System]:
    system = System(engine=engine_of(request.param, cache_dir), cache_dir=cache_dir, workers=2, limits=LIMITS)
    yield system
    await system.close()


async def test_after_a_delete_returned_no_vcpu_reads_or_writes_the_memory_that_was_there(system: System) -> None:
    made = await stress(system, old_places.replaced, 600)
    assert made.changes >= 600


async def test_after_a_move_returned_no_vcpu_reads_or_writes_the_slot_through_its_old_place(system: System) -> None:
    made = await stress(system, old_places.moved, 600)
    assert made.changes >= 600


async def test_after_a_move_over_its_own_range_no_vcpu_reaches_the_page_that_was_there_and_none_exits(
    system: System,
) -> None:
    made = await stress(system, old_places.slid, 200)
    assert made.exits == 0


async def test_after_a_delete_returned_no_vcpu_executes_code_that_was_there(system: System) -> None:
    made = await stress(system, old_places.code_replaced, 200)
    assert made.changes >= 200


async def test_a_change_beside_the_memory_in_use_never_makes_an_exit_and_never_loses_an_access(system: System) -> None:
    made = await stress(system, unnoticed.unrelated, 600)
    assert made.exits == 0


async def test_while_slots_change_and_move_dirty_bits_are_neither_lost_nor_invented(system: System) -> None:
    made = await stress(system, unnoticed.dirty_bits, 200)
    assert made.changes >= 200
