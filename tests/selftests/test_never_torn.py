"""Atomic updates under checking vCPUs, a few hundred of them; `make bench ARGS=torn` makes 100,000."""

from __future__ import annotations

import pytest

from tests.selftests.never_torn import never_torn
from vmmd.isa.engine import ENGINES
from vmmd.kvm.system import System

pytestmark = pytest.mark.parametrize("engine_name", ENGINES, indirect=True)

UPDATES = {"compiled": 400, "evaluated": 60, "translated": 400}


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_update_is_ever_seen_half_made_and_no_dirty_bit_is_lost(
    system: System, engine_name: str, seed: int
) -> None:
    outcome = await never_torn(system, UPDATES[engine_name], seed)
    assert outcome.updates == UPDATES[engine_name]
    assert outcome.bits > 0
    assert outcome.plain_changes > 0
