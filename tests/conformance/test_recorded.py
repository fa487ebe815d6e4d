"""The kernel is the judge: what its KVM was recorded to answer, vmmd answers too, in process and through the RPC."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.conformance.recording import recorded_sequences
from tests.conformance.replay import differences
from tests.conformance.subjects import in_process, over_rpc
from vmmd.kvm.system import System
from vmmd_client import connect
from vmmd_client.local_daemon import local_daemon

AT_ONCE = 8
"""Sequences side by side through the RPC."""


def test_the_recording_is_whole() -> None:
    operations = Counter(operation["op"] for sequence in recorded_sequences() for operation in sequence["ops"])
    assert sum(operations.values()) == 17_703


async def test_every_recorded_answer_is_given_in_process(system: System) -> None:
    for sequence in recorded_sequences():
        async with in_process(system) as subject:
            assert await differences(subject, sequence) == []


async def test_every_recorded_answer_is_given_through_the_rpc() -> None:
    async with local_daemon() as url, connect(url) as vmmd:
        left = recorded_sequences()

        async def play_some() -> None:
            for sequence in left:
                async with over_rpc(vmmd) as subject:
                    assert await differences(subject, sequence) == []

        # Side by side, each in a VM of its own: neither client nor daemon then waits for the other.
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(play_some())
