"""What the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmd.isa.engine import CompiledEngine


@pytest.fixture(scope="session")
def compiled_engine(cache_dir: Path) -> CompiledEngine:
    """Compiled once for all tests."""
    return CompiledEngine(cache_dir)
