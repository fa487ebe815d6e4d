import pytest

from vmmd_client import Client
from vmmd_client.replay.guest import MAX_PAGES, install
from vmmd_client.replay.layout import LayoutError

from .fake_daemon import FakeDaemon


async def test_more_pages_than_a_list_holds_are_refused_before_anything_is_asked(daemon: FakeDaemon, vmmd: Client):
    round_trips = len(daemon.requests)
    with pytest.raises(LayoutError, match="vCPU 1 is to walk over 513 pages, and its list holds 512"):
        await install(vmmd, vmmd.vm("1"), gpa=0, slot=0, pages=[[0] * MAX_PAGES, [0] * (MAX_PAGES + 1)])
    assert len(daemon.requests) == round_trips
