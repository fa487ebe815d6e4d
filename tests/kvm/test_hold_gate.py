"""The gate: who is let in while a VM is held, who waits, and who gets which turn."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.kvm.guest import let_the_loop_turn, refusal
from vmmd.kvm.system import System
from vmmd.kvm.uapi import KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

LONG_MS = 20_000
GatedCall = Callable[..., Awaitable[Any]]

GATED: dict[str, Callable[[Vm, int], GatedCall]] = {
    "map_host_memory": lambda vm, _: lambda **gate: vm.map_host_memory(PAGE_SIZE, **gate),
    "unmap_host_memory": lambda vm, base: lambda **gate: vm.unmap_host_memory(base + PAGE_SIZE, PAGE_SIZE, **gate),
    "read_host_memory": lambda vm, base: lambda **gate: vm.read_host_memory(base, 8, **gate),
    "write_host_memory": lambda vm, base: lambda **gate: vm.write_host_memory(base, b"x", **gate),
    "read_guest_memory": lambda vm, _: lambda **gate: vm.read_guest_memory(0, 8, **gate),
    "write_guest_memory": lambda vm, _: lambda **gate: vm.write_guest_memory(0, b"x", **gate),
    "set_user_memory_region": lambda vm, base: (
        lambda **gate: vm.set_user_memory_region(5, 0, 9 * PAGE_SIZE, PAGE_SIZE, base, **gate)
    ),
    "get_dirty_log": lambda vm, _: lambda **gate: vm.get_dirty_log(0, **gate),
    "clear_dirty_log": lambda vm, _: lambda **gate: vm.clear_dirty_log(0, 0, 2, b"\xff", **gate),
}

gated = pytest.mark.parametrize("call", GATED.values(), ids=GATED)
evaluated = pytest.mark.parametrize("engine_name", ["evaluated"], indirect=True)
pytestmark = evaluated  # no guest code runs in these tests


async def two_logged_pages(vm: Vm) -> int:
    base = await vm.map_host_memory(2 * PAGE_SIZE)
    await vm.set_user_memory_region(0, KVM_MEM_LOG_DIRTY_PAGES, 0, 2 * PAGE_SIZE, base)
    return base


@gated
async def test_without_the_holds_name_or_with_another_a_call_is_busy_at_once(
    vm: Vm, call: Callable[[Vm, int], GatedCall]
) -> None:
    do = call(vm, await two_logged_pages(vm))
    await vm.kick_all_running_vcpus("a")
    generation = vm.generation
    with refusal(errno.EBUSY):
        await do()
    with refusal(errno.EBUSY):
        await do(hold="b")
    assert vm.generation == generation
    await do(hold="a")
    await vm.resume_all_kicked_vcpus("a")


@gated
async def test_a_call_that_waits_passes_when_the_hold_ends(vm: Vm, call: Callable[[Vm, int], GatedCall]) -> None:
    do = call(vm, await two_logged_pages(vm))
    await vm.kick_all_running_vcpus("a")
    waiting = asyncio.ensure_future(do(wait_ms=LONG_MS))
    await let_the_loop_turn()
    assert not waiting.done()
    await vm.resume_all_kicked_vcpus("a")
    await waiting


@gated
async def test_with_a_name_that_never_was_a_call_is_refused_and_nothing_is_done(
    vm: Vm, call: Callable[[Vm, int], GatedCall]
) -> None:
    do = call(vm, await two_logged_pages(vm))
    before = vm.memory_regions()
    with refusal(errno.EINVAL):
        await do(hold="never", wait_ms=LONG_MS)
    assert vm.memory_regions() == before


@gated
async def test_with_a_name_that_has_ended_a_call_is_canceled(vm: Vm, call: Callable[[Vm, int], GatedCall]) -> None:
    do = call(vm, await two_logged_pages(vm))
    await vm.kick_all_running_vcpus("a")
    await vm.resume_all_kicked_vcpus("a")
    with refusal(errno.ECANCELED):
        await do(hold="a", wait_ms=LONG_MS)


async def test_a_call_that_waited_in_vain_is_busy_and_leaves_nothing_behind(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    with refusal(errno.EBUSY):
        await vm.map_host_memory(PAGE_SIZE, wait_ms=1)
    await vm.resume_all_kicked_vcpus("a")
    await vm.map_host_memory(PAGE_SIZE)


async def test_what_needs_no_memslots_is_never_gated(vm: Vm) -> None:
    vcpu = await vm.create_vcpu(0)
    await vm.kick_all_running_vcpus("a")
    await vcpu.set_regs({"pc": 4})
    assert (await vcpu.get_regs())["pc"] == 4
    assert vm.memory_regions() == (0, [])
    assert vm.stats().kicks == 0
    await vm.create_vcpu(1)


async def test_enable_cap_is_busy_in_any_hold(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    with refusal(errno.EBUSY):
        await vm.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, [1])
    await vm.resume_all_kicked_vcpus("a")
    await vm.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, [1])


async def test_a_kick_of_the_same_name_renews_and_is_not_counted(vm: Vm) -> None:
    first = await vm.kick_all_running_vcpus("a")
    again = await vm.kick_all_running_vcpus("a")
    assert (first.renewed, again.renewed) == (False, True)
    assert (again.hold, again.kicked, again.generation) == (first.hold, first.kicked, first.generation)
    await vm.resume_all_kicked_vcpus("a")
    await vm.map_host_memory(PAGE_SIZE)


async def test_a_resume_of_an_ended_name_says_what_became_of_it(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    await vm.resume_all_kicked_vcpus("a")
    with refusal(errno.ECANCELED) as ended:
        await vm.resume_all_kicked_vcpus("a")
    assert ended.value.ioctl == "KVM_RESUME_ALL_KICKED_VCPUS"
    assert ended.value.data["became"] == "was resumed"
    with refusal(errno.ECANCELED):
        await vm.kick_all_running_vcpus("a")


async def test_a_resume_of_a_name_that_never_was_is_einval_and_another_hold_stays(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    with refusal(errno.EINVAL):
        await vm.resume_all_kicked_vcpus("b")
    with refusal(errno.EBUSY):
        await vm.map_host_memory(PAGE_SIZE)


@pytest.mark.parametrize("name", ["", "x" * 257])
async def test_a_hold_needs_a_name_of_a_legal_length(vm: Vm, name: str) -> None:
    with refusal(errno.EINVAL):
        await vm.kick_all_running_vcpus(name)
    await vm.map_host_memory(PAGE_SIZE)


async def test_holds_wait_in_line_and_are_opened_first_come_first_served(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    opened: list[str] = []

    async def hold(name: str) -> None:
        await vm.kick_all_running_vcpus(name, wait_ms=LONG_MS)
        opened.append(name)

    kicks = []
    for name in ("b", "c", "d"):
        kicks.append(asyncio.create_task(hold(name)))
        await let_the_loop_turn()
    assert opened == []
    for done, name in enumerate(["a", "b", "c"], 1):
        await vm.resume_all_kicked_vcpus(name)
        await kicks[done - 1]
        await let_the_loop_turn()
        assert opened == ["b", "c", "d"][:done]
    await vm.resume_all_kicked_vcpus("d")
    await vm.map_host_memory(PAGE_SIZE)


async def test_who_waited_for_the_vm_is_not_let_in_between_two_holds_in_line(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    kick = asyncio.create_task(vm.kick_all_running_vcpus("b", wait_ms=LONG_MS))
    await let_the_loop_turn()
    call = asyncio.create_task(vm.map_host_memory(PAGE_SIZE, wait_ms=LONG_MS))
    await let_the_loop_turn()
    await vm.resume_all_kicked_vcpus("a")
    await kick
    await let_the_loop_turn()
    assert not call.done()
    await vm.resume_all_kicked_vcpus("b")
    await call


@pytest.mark.parametrize("wait_ms", [0, 1])
async def test_a_hold_that_waited_in_vain_is_etimedout_and_leaves_nothing_behind(vm: Vm, wait_ms: int) -> None:
    await vm.kick_all_running_vcpus("a")
    with refusal(errno.ETIMEDOUT) as late:
        await vm.kick_all_running_vcpus("b", wait_ms=wait_ms)
    assert late.value.ioctl == "KVM_KICK_ALL_RUNNING_VCPUS"
    await vm.resume_all_kicked_vcpus("a")
    await vm.map_host_memory(PAGE_SIZE)
    assert (await vm.kick_all_running_vcpus("b", wait_ms=0)).hold == "b"


async def test_a_kick_that_is_cancelled_in_line_is_passed_over(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    gave_up = asyncio.create_task(vm.kick_all_running_vcpus("b", wait_ms=LONG_MS))
    await let_the_loop_turn()
    next_ = asyncio.create_task(vm.kick_all_running_vcpus("c", wait_ms=LONG_MS))
    await let_the_loop_turn()
    gave_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gave_up
    await vm.resume_all_kicked_vcpus("a")
    assert (await next_).hold == "c"


async def test_a_kick_that_is_cancelled_as_its_turn_comes_lets_the_next_one_open(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    gave_up = asyncio.create_task(vm.kick_all_running_vcpus("b", wait_ms=LONG_MS))
    await let_the_loop_turn()
    next_ = asyncio.create_task(vm.kick_all_running_vcpus("c", wait_ms=LONG_MS))
    await let_the_loop_turn()
    await vm.resume_all_kicked_vcpus("a")
    gave_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gave_up
    assert (await next_).hold == "c"
    await vm.resume_all_kicked_vcpus("c")
    await vm.map_host_memory(PAGE_SIZE)


async def test_a_second_kick_of_a_name_that_waits_in_line_does_not_open_it_after_its_end(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    first = asyncio.create_task(vm.kick_all_running_vcpus("b", wait_ms=LONG_MS))
    await let_the_loop_turn()
    second = asyncio.create_task(vm.kick_all_running_vcpus("b", wait_ms=LONG_MS))
    await let_the_loop_turn()
    await vm.resume_all_kicked_vcpus("a")
    await first
    await vm.resume_all_kicked_vcpus("b")
    await asyncio.gather(second, return_exceptions=True)
    await vm.map_host_memory(PAGE_SIZE)


async def test_two_vms_do_not_hold_each_other(system: System) -> None:
    one, other = system.create_vm(), system.create_vm()
    await one.kick_all_running_vcpus("a")
    await other.map_host_memory(PAGE_SIZE)
    with refusal(errno.EINVAL):
        await other.map_host_memory(PAGE_SIZE, hold="a")
    await other.kick_all_running_vcpus("a")
    await one.resume_all_kicked_vcpus("a")
    await one.map_host_memory(PAGE_SIZE)
    with refusal(errno.EBUSY):
        await other.map_host_memory(PAGE_SIZE)
