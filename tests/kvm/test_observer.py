"""What observers are told: nothing within a pause, all of it behind, and no name of a hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from vmmd.kvm.errors import KvmError
from vmmd.kvm.limits import Limits
from vmmd.kvm.observer import MOST_REGIONS, Event, HoldEnded, HoldFailed, HoldOpened, SlotsChanged
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.region import Region

PAGE = 4096


class Recorder:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    def note(self, vm: str, event: Event) -> None:
        assert vm == "vm1"
        self.seen.append(event)

    @property
    def kinds(self) -> list[type]:
        return [type(event) for event in self.seen]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def observed(recorder: Recorder) -> AsyncIterator[Vm]:
    system = System(
        engine="evaluated",
        cache_dir=None,
        workers=1,
        limits=Limits(guest_memory_bytes=1 << 24, vms=1, vcpus_per_vm=4),
        observer=recorder,
    )
    yield system.create_vm()
    await system.close()


async def test_nothing_is_told_within_a_pause_and_all_of_it_behind(observed: Vm, recorder: Recorder) -> None:
    base = await observed.map_host_memory(PAGE)
    kick = await observed.kick_all_running_vcpus("a secret")
    await observed.set_user_memory_region(0, 0, 0, PAGE, base, hold="a secret")
    await observed.resume_all_kicked_vcpus("a secret")
    assert recorder.seen == []
    await asyncio.sleep(0)
    opened, changed, ended = recorder.seen
    assert isinstance(opened, HoldOpened)
    assert changed == SlotsChanged(observed.generation, (Region(0, 0, 0, PAGE, base),), 0, kick.number)
    assert isinstance(ended, HoldEnded)
    assert (ended.hold, ended.rolled_back, ended.expired) == (kick.number, False, False)
    assert "secret" not in str(recorder.seen)


async def test_a_hold_that_fails_is_told_to_have_failed_once_and_to_be_rolled_back(
    observed: Vm, recorder: Recorder
) -> None:
    base = await observed.map_host_memory(PAGE)
    await observed.kick_all_running_vcpus("hold")
    await observed.set_user_memory_region(0, 0, 0, PAGE, base, hold="hold")
    for _ in range(2):
        with pytest.raises(KvmError):
            await observed.set_user_memory_region(1, 0, 1, PAGE, base, hold="hold")
    with pytest.raises(KvmError):
        await observed.resume_all_kicked_vcpus("hold")
    await asyncio.sleep(0)
    assert recorder.kinds == [HoldOpened, HoldFailed, HoldEnded]
    assert isinstance(ended := recorder.seen[-1], HoldEnded)
    assert ended.rolled_back


async def test_a_kick_that_was_given_up_and_a_renewal_are_not_told(observed: Vm, recorder: Recorder) -> None:
    await observed.kick_all_running_vcpus("first")
    await observed.kick_all_running_vcpus("first")
    with pytest.raises(KvmError):
        await observed.kick_all_running_vcpus("second", wait_ms=1)
    await observed.resume_all_kicked_vcpus("first")
    await asyncio.sleep(0)
    assert recorder.kinds == [HoldOpened, HoldEnded]


async def test_many_changes_in_one_are_cut_and_counted(observed: Vm, recorder: Recorder) -> None:
    base = await observed.map_host_memory(PAGE)
    await observed.set_user_memory_region_list(
        [Region(slot, 0, slot * PAGE, PAGE, base) for slot in range(MOST_REGIONS + 5)]
    )
    await asyncio.sleep(0)
    (changed,) = (event for event in recorder.seen if isinstance(event, SlotsChanged))
    assert (len(changed.regions), changed.left_out) == (MOST_REGIONS, 5)
