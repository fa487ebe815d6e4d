"""Rollback: a hold that failed leaves slots, dirty bits and host mappings as they were at the kick."""

from __future__ import annotations

import errno

import pytest

from tests.kvm.guest import DATA, HOLE, RAM_BYTES, STORE_FOREVER, boot, errno_of, progress, refusal, running, vcpu_at
from vmmd.isa.engine import ENGINES
from vmmd.kvm.errors import KvmError
from vmmd.kvm.system import System
from vmmd.kvm.uapi import KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.memslots import Memslot
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

pytestmark = pytest.mark.parametrize("engine_name", ENGINES, indirect=True)

LOG = KVM_MEM_LOG_DIRTY_PAGES


async def fail(vm: Vm) -> None:
    """Make a call inside hold "a" fail."""
    with refusal(errno.EINVAL):
        await vm.set_user_memory_region(0x8000, 0, 0, PAGE_SIZE, 0, hold="a")


async def rolled_back(vm: Vm, number: int = errno.EINVAL) -> KvmError:
    with refusal(number) as failed:
        await vm.resume_all_kicked_vcpus("a")
    assert failed.value.data["rolled_back"] is True
    return failed.value


def slots(vm: Vm) -> list[Memslot]:
    return vm.memory_regions()[1]


async def logged(vm: Vm) -> int:
    """Give the VM two logged pages in slot 0, the first of them dirty."""
    base = await vm.map_host_memory(2 * PAGE_SIZE)
    await vm.set_user_memory_region(0, LOG, 0, 2 * PAGE_SIZE, base)
    await vm.write_guest_memory(0, b"dirty")
    return base


async def log(vm: Vm, slot: int = 0) -> int:
    return int.from_bytes(await vm.get_dirty_log(slot), "little")


async def test_after_a_failure_calls_are_canceled_and_the_resume_gives_the_first_error(vm: Vm) -> None:
    base = await logged(vm)
    await vm.kick_all_running_vcpus("a")
    with refusal(errno.EEXIST):
        await vm.set_user_memory_region(1, 0, PAGE_SIZE, PAGE_SIZE, base, hold="a")
    for _ in range(2):
        with refusal(errno.ECANCELED):
            await vm.set_user_memory_region(2, 0, HOLE, PAGE_SIZE, base, hold="a")
        with refusal(errno.ECANCELED):
            await vm.kick_all_running_vcpus("a")
    with refusal(errno.EBUSY):
        await vm.map_host_memory(PAGE_SIZE)
    error = await rolled_back(vm, errno.EEXIST)
    assert error.ioctl == "KVM_SET_USER_MEMORY_REGION"
    assert "overlaps slot 0" in error.message
    assert error.data["pause_ns"] > 0
    with refusal(errno.ECANCELED) as ended:
        await vm.resume_all_kicked_vcpus("a")
    assert ended.value.data["became"] == "was rolled back"
    await vm.map_host_memory(PAGE_SIZE)


async def test_slots_are_as_at_the_kick_and_the_generation_only_grew(vm: Vm) -> None:
    base = await logged(vm)
    await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base)
    before, generation = slots(vm), vm.generation
    await vm.kick_all_running_vcpus("a")
    await vm.set_user_memory_region(0, 0, 0, 0, 0, hold="a")
    await vm.set_user_memory_region(1, 0, 0, PAGE_SIZE, base, hold="a")
    await vm.set_user_memory_region(1, LOG, 0, PAGE_SIZE, base, hold="a")
    await vm.set_user_memory_region(2, 0, HOLE, PAGE_SIZE, base, hold="a")
    assert vm.generation == generation + 4
    await fail(vm)
    error = await rolled_back(vm)
    assert slots(vm) == before
    assert vm.generation == error.data["generation"] == generation + 5
    assert await vm.read_guest_memory(0, 5) == b"dirty"


async def test_where_no_slot_changed_the_generation_stays(vm: Vm) -> None:
    await logged(vm)
    generation = vm.generation
    await vm.kick_all_running_vcpus("a")
    await vm.map_host_memory(PAGE_SIZE, hold="a")
    await fail(vm)
    await rolled_back(vm)
    assert vm.generation == generation


async def test_bits_that_were_fetched_are_put_back(vm: Vm) -> None:
    await logged(vm)
    await vm.kick_all_running_vcpus("a")
    assert (await vm.get_dirty_log(0, hold="a"))[0] == 1
    assert (await vm.get_dirty_log(0, hold="a"))[0] == 0
    await fail(vm)
    await rolled_back(vm)
    assert await log(vm) == 1


async def test_bits_that_were_cleared_are_put_back(vm: Vm) -> None:
    await vm.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, [1])
    await logged(vm)
    await vm.kick_all_running_vcpus("a")
    await vm.clear_dirty_log(0, 0, 2, b"\x03", hold="a")
    assert (await vm.get_dirty_log(0, hold="a"))[0] == 0
    await fail(vm)
    await rolled_back(vm)
    assert await log(vm) == 1


async def test_bits_of_a_slot_that_was_fetched_and_deleted_are_put_back_with_it(vm: Vm) -> None:
    base = await logged(vm)
    await vm.kick_all_running_vcpus("a")
    await vm.get_dirty_log(0, hold="a")
    await vm.set_user_memory_region(0, 0, 0, 0, 0, hold="a")
    await vm.set_user_memory_region(0, LOG, 0, 2 * PAGE_SIZE, base, hold="a")
    assert (await vm.get_dirty_log(0, hold="a"))[0] == 0
    await fail(vm)
    await rolled_back(vm)
    assert await log(vm) == 1


async def test_a_log_that_was_turned_off_is_on_again_with_its_bits(vm: Vm) -> None:
    base = await logged(vm)
    await vm.kick_all_running_vcpus("a")
    await vm.set_user_memory_region(0, 0, 0, 2 * PAGE_SIZE, base, hold="a")
    await fail(vm)
    await rolled_back(vm)
    assert await log(vm) == 1


async def test_bits_fetched_inside_a_hold_that_is_resumed_stay_fetched(vm: Vm) -> None:
    await logged(vm)
    await vm.kick_all_running_vcpus("a")
    await vm.get_dirty_log(0, hold="a")
    await vm.resume_all_kicked_vcpus("a")
    assert await log(vm) == 0


async def test_bytes_written_inside_stay_and_their_pages_are_dirty_in_the_slots_that_came_back(vm: Vm) -> None:
    base = await logged(vm)
    await vm.get_dirty_log(0)
    await vm.kick_all_running_vcpus("a")
    await vm.set_user_memory_region(0, 0, 0, 0, 0, hold="a")
    await vm.set_user_memory_region(9, 0, HOLE, PAGE_SIZE, base + PAGE_SIZE, hold="a")
    await vm.write_guest_memory(HOLE, b"written", hold="a")
    await fail(vm)
    await rolled_back(vm)
    assert await vm.read_guest_memory(PAGE_SIZE, 7) == b"written"
    assert await log(vm) == 0b10


async def test_what_was_unmapped_inside_is_mapped_with_its_bytes(vm: Vm) -> None:
    base = await logged(vm)
    await vm.kick_all_running_vcpus("a")
    await vm.unmap_host_memory(base, PAGE_SIZE, hold="a")
    with refusal(errno.EFAULT):
        await vm.read_guest_memory(0, 5, hold="a")
    await rolled_back(vm, errno.EFAULT)
    assert await vm.read_guest_memory(0, 5) == b"dirty"


@pytest.mark.usefixtures("reference_counts_alone")
async def test_what_was_mapped_inside_is_gone_and_given_back(system: System, vm: Vm) -> None:
    await logged(vm)
    used = system.guest_memory_bytes
    await vm.kick_all_running_vcpus("a")
    new = await vm.map_host_memory(16 * PAGE_SIZE, hold="a")
    assert system.guest_memory_bytes == used + 16 * PAGE_SIZE
    assert await errno_of(vm.set_user_memory_region(0, 0, 1, 0, 0, hold="a")) == errno.EINVAL
    assert await errno_of(vm.resume_all_kicked_vcpus("a")) == errno.EINVAL
    assert system.guest_memory_bytes == used
    with refusal(errno.EFAULT):
        await vm.read_host_memory(new, 1)


async def test_an_unmap_inside_gives_its_pages_back_at_the_resume(system: System, vm: Vm) -> None:
    base = await logged(vm)
    used = system.guest_memory_bytes
    await vm.kick_all_running_vcpus("a")
    await vm.unmap_host_memory(base + PAGE_SIZE, PAGE_SIZE, hold="a")
    assert system.guest_memory_bytes == used
    await vm.resume_all_kicked_vcpus("a")
    assert system.guest_memory_bytes == used - PAGE_SIZE
    with refusal(errno.EFAULT):
        await vm.read_host_memory(base + PAGE_SIZE, 1)


@pytest.mark.usefixtures("reference_counts_alone")
async def test_after_a_rollback_the_memory_of_a_destroyed_vm_is_given_back(system: System, vm: Vm) -> None:
    await logged(vm)
    await vm.kick_all_running_vcpus("a")
    assert await errno_of(vm.set_user_memory_region(0, 0, 1, 0, 0, hold="a")) == errno.EINVAL
    assert await errno_of(vm.resume_all_kicked_vcpus("a")) == errno.EINVAL
    await system.destroy_vm(vm.id)
    assert system.guest_memory_bytes == 0


async def test_an_address_that_was_unmapped_and_mapped_again_inside_has_its_old_bytes(vm: Vm) -> None:
    base = await logged(vm)
    await vm.kick_all_running_vcpus("a")
    await vm.unmap_host_memory(base, 2 * PAGE_SIZE, hold="a")
    assert await vm.map_host_memory(2 * PAGE_SIZE, hold="a") == base
    assert await vm.read_guest_memory(0, 5, hold="a") == bytes(5)
    await vm.write_guest_memory(0, b"other", hold="a")
    await fail(vm)
    await rolled_back(vm)
    assert await vm.read_guest_memory(0, 5) == b"dirty"


async def test_a_hold_is_failed_by_what_its_batch_says_and_the_first_error_stands(vm: Vm) -> None:
    base = await logged(vm)
    before = slots(vm)
    await vm.kick_all_running_vcpus("a")
    await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base, hold="a")
    vm.fail_hold("a", KvmError(errno.ENOTTY, "no such ioctl", "KVM_FIRST"))
    vm.fail_hold("a", KvmError(errno.EIO, "something else", "KVM_SECOND"))
    error = await rolled_back(vm, errno.ENOTTY)
    assert (error.ioctl, error.message) == ("KVM_FIRST", "no such ioctl")
    assert slots(vm) == before


async def test_failing_a_hold_that_is_not_open_does_nothing(vm: Vm) -> None:
    error = KvmError(errno.ENOTTY, "no such ioctl")
    vm.fail_hold("a", error)
    await vm.kick_all_running_vcpus("a")
    vm.fail_hold("b", error)
    await vm.resume_all_kicked_vcpus("a")
    vm.fail_hold("a", error)
    await vm.map_host_memory(PAGE_SIZE)


async def test_running_vcpus_go_on_in_the_slots_of_the_kick(vm: Vm) -> None:
    await boot(vm, STORE_FOREVER, flags=LOG)
    vcpu = await vcpu_at(vm, a0=DATA)
    async with running(vcpu) as (run,):
        await vm.kick_all_running_vcpus("a")
        await vm.set_user_memory_region(0, 0, 0, 0, 0, hold="a")
        await vm.map_host_memory(RAM_BYTES, hold="a")
        await fail(vm)
        await rolled_back(vm)
        await progress(vcpu)
        assert not run.done()
    assert await log(vm) >> DATA // PAGE_SIZE & 1
    assert vm.stats().exits == {}


async def test_a_failed_hold_lets_the_next_in_line_open(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    await fail(vm)
    await rolled_back(vm)
    assert (await vm.kick_all_running_vcpus("b", wait_ms=0)).hold == "b"


async def test_a_hold_that_is_abandoned_leaves_its_name_free(vm: Vm) -> None:
    await vm.kick_all_running_vcpus("a")
    vm.abandon_hold("b")
    with refusal(errno.EBUSY):
        await vm.map_host_memory(PAGE_SIZE)
    vm.abandon_hold("a")
    await vm.map_host_memory(PAGE_SIZE)
    assert not (await vm.kick_all_running_vcpus("a")).renewed
