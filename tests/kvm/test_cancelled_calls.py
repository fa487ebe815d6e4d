"""A call that its caller gives up while it waits for a vCPU loses neither memory nor dirty bits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress

import pytest

from tests.kvm.guest import let_the_loop_turn
from tests.kvm.stubborn import StubbornEngine, stubborn_vm
from vmmd.kvm.scheduler import Scheduler
from vmmd.kvm.uapi import KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES

ENGINE = StubbornEngine()


@pytest.fixture
async def vm() -> AsyncIterator[Vm]:
    scheduler = Scheduler(1)
    ENGINE.stuck = False
    vm = stubborn_vm(ENGINE, scheduler)
    await vm.create_vcpu(0)
    yield vm
    ENGINE.stuck = False
    await vm.destroy()
    scheduler.close()


async def given_up(call: Awaitable[object]) -> None:
    """Cancel a call while it waits for a vCPU to leave guest mode."""
    ENGINE.stuck = True
    task = asyncio.ensure_future(call)
    await let_the_loop_turn()
    assert not task.done()
    task.cancel()
    ENGINE.stuck = False
    with suppress(asyncio.CancelledError):
        await task


async def test_pages_of_an_unmap_that_is_given_up_are_not_charged_for_ever(vm: Vm) -> None:
    # The limit of this VM is 1 MiB.
    base = await vm.map_host_memory(1 << 20)
    await given_up(vm.unmap_host_memory(base, 1 << 19))
    await vm.map_host_memory(1 << 18)


@pytest.mark.parametrize("mode", [0, 1], ids=["get", "clear"])
async def test_bits_of_a_call_that_is_given_up_are_in_the_next_log(vm: Vm, mode: int) -> None:
    await vm.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, [mode])
    base = await vm.map_host_memory(PAGE_SIZE)
    await vm.set_user_memory_region(0, KVM_MEM_LOG_DIRTY_PAGES, 0, PAGE_SIZE, base)
    await vm.write_guest_memory(0, b"x")
    await given_up(vm.clear_dirty_log(0, 0, 1, b"\1") if mode else vm.get_dirty_log(0))
    assert (await vm.get_dirty_log(0))[0] == 1
