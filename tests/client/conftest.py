from collections.abc import AsyncIterator

import pytest

from vmmd_client import Client

from .fake_daemon import FakeDaemon


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


@pytest.fixture
async def vmmd(daemon: FakeDaemon) -> AsyncIterator[Client]:
    async with daemon.client() as client:
        yield client
