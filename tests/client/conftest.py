from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmmd_client import Client

from .fake_daemon import FakeDaemon
from .web_server import Server, serving


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


@pytest.fixture
async def vmmd(daemon: FakeDaemon) -> AsyncIterator[Client]:
    async with daemon.client() as client:
        yield client


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as server:
        yield server
