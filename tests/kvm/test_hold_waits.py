"""Kicks that do not come through: a call or a vCPU that takes too long, and what is left behind then."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator

import pytest

from tests.kvm.guest import SPIN, boot, let_the_loop_turn, progress, refusal, running, vcpu_at
from tests.kvm.stubborn import StubbornEngine, stubborn_vm
from vmmd.kvm.gate import Gate
from vmmd.kvm.scheduler import Scheduler
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

LONG_MS = 20_000


@pytest.fixture
def engine() -> StubbornEngine:
    return StubbornEngine()


@pytest.fixture
def held_up(engine: StubbornEngine) -> Iterator[Vm]:
    """A VM on the stubborn engine."""
    scheduler = Scheduler(1)
    yield stubborn_vm(engine, scheduler)
    scheduler.close()


async def test_a_vcpu_that_does_not_leave_guest_mode_is_etimedout_and_nothing_is_held(
    held_up: Vm, engine: StubbornEngine
) -> None:
    await boot(held_up, SPIN)
    vcpu = await vcpu_at(held_up)
    async with running(vcpu):
        engine.stuck = True
        with refusal(errno.ETIMEDOUT) as late:
            await held_up.kick_all_running_vcpus("a", wait_ms=1)
        assert "guest mode" in late.value.message
        engine.stuck = False
        await progress(vcpu)
        await held_up.map_host_memory(PAGE_SIZE)


async def test_a_kick_that_timed_out_over_a_vcpu_may_be_tried_again_by_the_same_name(
    held_up: Vm, engine: StubbornEngine
) -> None:
    engine.stuck = True
    await held_up.create_vcpu(0)
    with refusal(errno.ETIMEDOUT):
        await held_up.kick_all_running_vcpus("a", wait_ms=1)
    engine.stuck = False
    assert (await held_up.kick_all_running_vcpus("a")).hold == "a"


async def test_a_kick_that_timed_out_over_a_call_may_be_tried_again_by_the_same_name(
    held_up: Vm, engine: StubbornEngine
) -> None:
    await held_up.create_vcpu(0)
    base = await held_up.map_host_memory(PAGE_SIZE)
    engine.stuck = True
    call = asyncio.create_task(held_up.unmap_host_memory(base, PAGE_SIZE))
    await let_the_loop_turn()
    with refusal(errno.ETIMEDOUT) as late:
        await held_up.kick_all_running_vcpus("a", wait_ms=1)
    assert "1 calls were still under way" in late.value.message
    engine.stuck = False
    await call
    assert (await held_up.kick_all_running_vcpus("a")).hold == "a"


async def test_a_kick_waits_for_calls_under_way_and_new_ones_wait_for_its_resume(
    held_up: Vm, engine: StubbornEngine
) -> None:
    await held_up.create_vcpu(0)
    base = await held_up.map_host_memory(PAGE_SIZE)
    engine.stuck = True
    call = asyncio.create_task(held_up.unmap_host_memory(base, PAGE_SIZE))
    await let_the_loop_turn()
    kick = asyncio.create_task(held_up.kick_all_running_vcpus("a", wait_ms=LONG_MS))
    await let_the_loop_turn()
    assert not kick.done()
    for name in (None, "a"):
        with refusal(errno.EBUSY):
            await held_up.map_host_memory(PAGE_SIZE, hold=name)
    with refusal(errno.EBUSY):
        await held_up.resume_all_kicked_vcpus("a")
    engine.stuck = False
    await call
    await kick
    await held_up.map_host_memory(PAGE_SIZE, hold="a")


async def test_a_kick_that_is_cancelled_while_it_waits_for_vcpus_releases_them(
    held_up: Vm, engine: StubbornEngine
) -> None:
    await boot(held_up, SPIN)
    vcpu = await vcpu_at(held_up)
    async with running(vcpu):
        engine.stuck = True
        kick = asyncio.create_task(held_up.kick_all_running_vcpus("a", wait_ms=LONG_MS))
        await let_the_loop_turn()
        kick.cancel()
        with pytest.raises(asyncio.CancelledError):
            await kick
        engine.stuck = False
        await progress(vcpu)
        assert (await held_up.kick_all_running_vcpus("b")).kicked == 1
        await held_up.resume_all_kicked_vcpus("b")


async def test_a_vcpu_created_while_a_kick_waits_starts_held(held_up: Vm, engine: StubbornEngine) -> None:
    await boot(held_up, SPIN)
    engine.stuck = True
    kick = asyncio.create_task(held_up.kick_all_running_vcpus("a", wait_ms=LONG_MS))
    await let_the_loop_turn()
    engine.stuck = False
    vcpu = await vcpu_at(held_up)
    await kick
    run = asyncio.create_task(vcpu.run())
    await let_the_loop_turn()
    assert vcpu.stats().instructions == 0
    await held_up.resume_all_kicked_vcpus("a")
    await progress(vcpu)
    vcpu.signal()
    with refusal(errno.EINTR):
        await run


async def test_the_gate_counts_calls_without_a_hold_and_not_those_inside() -> None:
    gate = Gate(lambda: 0, 0)
    async with gate.inside({}), gate.inside({}):
        with refusal(errno.ETIMEDOUT) as late:
            await gate.acquire("a", 0)
        assert "2 calls" in late.value.message
    assert (await gate.acquire("b", 0)).name == "b"


@pytest.mark.parametrize(("wait_ms", "is_told"), [(0, False), (2, False), (3, True)])
async def test_a_call_that_asked_for_more_time_than_there_is_is_told_that_it_was_less(
    wait_ms: int, is_told: bool
) -> None:
    gate = Gate(lambda: 0, max_wait_ms=2)
    await gate.acquire("mine", 0)
    with refusal(errno.EBUSY) as busy:
        await gate.admit({"wait_ms": wait_ms})
    assert ("2 ms of the 3 it asked for, as long as limits.max_wait_ms allows" in busy.value.message) == is_told
