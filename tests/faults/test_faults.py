"""An update that is hit anywhere leaves the old map or the new one, and everybody goes on."""

from __future__ import annotations

import pytest

from tests.faults.inject import FAULTS
from tests.faults.updates import UPDATES, at_every_wait, behind_every_call
from vmmd.kvm.system import System


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("update", UPDATES)
async def test_a_fault_at_any_wait_leaves_the_old_map_or_the_new_one(system: System, update: str, fault: str) -> None:
    row = await at_every_wait(system, update, fault)
    assert row.positions > 2
    assert row.old + row.new == row.positions


async def test_a_client_that_is_gone_behind_any_call_leaves_the_old_map(system: System) -> None:
    row = await behind_every_call(system)
    assert (row.positions, row.old, row.new) == (5, 5, 0)
