"""Host memory under guests: lost pages are EFAULT, and what nobody reaches any more is the system's again.

What is measured is the process's resident memory. `tests.benchmarks.memory_goes_back` does more of the same.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.benchmarks import memory_goes_back as scenarios
from tests.benchmarks.memory_goes_back import DATA, LIMITS, VM_BYTES, resident_bytes, touched_vm
from tests.kvm.guest import errno_of, progress, refusal, until
from vmmd.kvm.errors import KvmError
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.host import HostSpace, Ledger
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.memslots import Memslots
from vmmd.memory.view import View

SLACK = 4 << 20
"""What the interpreter may take or give back meanwhile."""

SPARSE_BYTES = 8 << 20
"""Each page of sparse memory leaves guest mode when it is touched first."""

HALF = VM_BYTES // 2
MIDDLE = VM_BYTES // 4


@pytest.fixture
async def system(cache_dir: Path) -> AsyncIterator[System]:
    system = System(engine="compiled", cache_dir=cache_dir, workers=2, limits=LIMITS)
    yield system
    await system.close()


async def running_vm(system: System) -> tuple[Vm, int, asyncio.Task[int]]:
    """A VM whose pages are all touched, the userspace address of its slot, and a run that loads from its last page."""
    vm, base = await touched_vm(system, VM_BYTES)
    vcpu = vm.vcpus[0]
    await vcpu.set_regs({"s5": DATA + VM_BYTES - PAGE_SIZE})
    run = asyncio.create_task(errno_of(vcpu.run()))
    await progress(vcpu)
    return vm, base, run


@pytest.mark.parametrize("sparse", [False, True], ids=["charged whole", "sparse"])
async def test_pages_that_vcpus_hammer_are_unmapped_and_mapped_again_and_again_and_each_loss_is_efault(
    system: System, sparse: bool
) -> None:
    made = await scenarios.unmap_under_guests(system, 1000, sparse=sparse)
    assert made.calls >= 1000
    assert made.lost_pages >= made.calls // scenarios.WINDOW_PAGES * scenarios.VCPUS
    assert system.guest_memory_bytes == 0


async def test_destroyed_vms_leave_the_resident_memory_where_it_was(system: System) -> None:
    lives = await scenarios.one_after_another(system, 60)
    assert lives.most - lives.before > VM_BYTES - SLACK, "the pages were not touched"
    assert lives.after - lives.before < SLACK


async def test_destroyed_vms_with_sparse_memory_leave_the_resident_memory_where_it_was(system: System) -> None:
    lives = await scenarios.one_after_another(system, 8, size=SPARSE_BYTES, sparse=True)
    assert lives.most - lives.before > SPARSE_BYTES // 2
    assert lives.after - lives.before < SLACK


async def test_a_part_that_is_unmapped_under_a_running_vcpu_is_the_systems_when_the_call_returns(
    system: System,
) -> None:
    vm, base, run = await running_vm(system)
    before = resident_bytes()
    await vm.unmap_host_memory(base + MIDDLE, HALF)
    assert before - resident_bytes() > HALF - SLACK
    await vm.unmap_host_memory(base, MIDDLE)
    assert before - resident_bytes() > HALF + MIDDLE - SLACK
    assert not run.done()
    await system.destroy_vm(vm.id)
    assert await run == errno.ECANCELED


async def test_all_that_is_unmapped_under_a_running_vcpu_is_the_systems_once_the_vcpu_has_let_go(
    system: System,
) -> None:
    vm, base, run = await running_vm(system)
    before = resident_bytes()
    await vm.unmap_host_memory(base, VM_BYTES)
    assert await run == errno.EFAULT
    await until(lambda: before - resident_bytes() > VM_BYTES - SLACK)


async def test_what_is_unmapped_in_a_hold_is_there_for_a_rollback(system: System) -> None:
    vm, base, run = await running_vm(system)
    before, contents = resident_bytes(), await vm.read_host_memory(base + MIDDLE, 8)
    assert any(contents)
    await vm.kick_all_running_vcpus("a", wait_ms=30_000)
    await vm.unmap_host_memory(base, VM_BYTES, hold="a")
    vm.fail_hold("a", KvmError(errno.EIO, "on purpose"))
    with refusal(errno.EIO):
        await vm.resume_all_kicked_vcpus("a")
    assert abs(before - resident_bytes()) < SLACK
    assert await vm.read_host_memory(base + MIDDLE, 8) == contents
    await progress(vm.vcpus[0])
    await system.destroy_vm(vm.id)
    assert await run == errno.ECANCELED


@pytest.mark.parametrize(("first", "size"), [(MIDDLE, HALF), (0, VM_BYTES)], ids=["a part", "all"])
async def test_what_is_unmapped_in_a_hold_is_the_systems_after_its_resume(
    system: System, first: int, size: int
) -> None:
    vm, base, run = await running_vm(system)
    before = resident_bytes()
    await vm.kick_all_running_vcpus("a", wait_ms=30_000)
    await vm.unmap_host_memory(base + first, size, hold="a")
    assert abs(before - resident_bytes()) < SLACK
    await vm.resume_all_kicked_vcpus("a")
    await until(lambda: before - resident_bytes() > size - SLACK)
    if size < VM_BYTES:
        # The vCPU runs on in what is left.
        await progress(vm.vcpus[0])
        await system.destroy_vm(vm.id)
    assert await run == (errno.ECANCELED if size < VM_BYTES else errno.EFAULT)


def test_memory_is_the_systems_when_the_last_view_of_it_lets_go() -> None:
    ledger = Ledger(VM_BYTES)
    mapped, at = HostSpace().with_mapping(VM_BYTES, ledger)
    for page in range(0, VM_BYTES, PAGE_SIZE):
        ctypes.c_uint64.from_address(mapped.pieces[0].host_address + page).value = 1
    views = [View(Memslots(), mapped) for _ in range(2)]
    full = resident_bytes()
    empty, gone = mapped.without(at, VM_BYTES)
    assert empty == HostSpace()
    del mapped, gone
    views.pop()
    assert (abs(full - resident_bytes()) < SLACK, ledger.used_bytes) == (True, VM_BYTES)
    views.pop()
    assert (full - resident_bytes() > VM_BYTES - SLACK, ledger.used_bytes) == (True, 0)
