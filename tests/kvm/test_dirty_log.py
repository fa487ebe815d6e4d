"""KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG and KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, check by check."""

from __future__ import annotations

import errno

import pytest

from tests.kvm.guest import CODE, DATA, HOLE, STORE_FOREVER, boot, progress, refusal, running, vcpu_at
from vmmd.kvm.uapi import KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

LOG = KVM_MEM_LOG_DIRTY_PAGES
NPAGES = 130
evaluated = pytest.mark.parametrize("engine_name", ["evaluated"], indirect=True)


async def logged(vm: Vm, npages: int = NPAGES) -> int:
    """Give the VM a logged slot 0."""
    base = await vm.map_host_memory(npages * PAGE_SIZE)
    await vm.set_user_memory_region(0, LOG, 0, npages * PAGE_SIZE, base)
    return base


async def dirty(vm: Vm, *pages: int) -> None:
    for page in pages:
        await vm.write_guest_memory(page * PAGE_SIZE + 5, b"x")


async def log(vm: Vm, slot: int = 0) -> set[int]:
    bitmap = int.from_bytes(await vm.get_dirty_log(slot), "little")
    return {page for page in range(bitmap.bit_length()) if bitmap >> page & 1}


async def manual(vm: Vm, mode: int = 1) -> None:
    await vm.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, [mode])


async def test_a_guests_stores_are_logged_and_its_loads_are_not(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n sd a2, 0(a3)\n sb a2, 0(a4)\n wfi", flags=LOG)
    await vm.get_dirty_log(0)
    vcpu = await vcpu_at(vm, a0=DATA, a2=1, a3=DATA + PAGE_SIZE, a4=DATA + 3 * PAGE_SIZE - 1)
    await vcpu.run()
    assert await log(vm) == {DATA // PAGE_SIZE + 1, DATA // PAGE_SIZE + 2}


async def test_a_store_across_two_pages_marks_both(vm: Vm) -> None:
    await boot(vm, "sd a2, 0(a0)\n wfi", flags=LOG)
    vcpu = await vcpu_at(vm, a0=DATA + PAGE_SIZE - 1)
    await vcpu.run()
    assert await log(vm) == {DATA // PAGE_SIZE, DATA // PAGE_SIZE + 1}


async def test_only_the_slot_that_was_stored_through_is_marked_and_no_alias(vm: Vm) -> None:
    base = await boot(vm, "sd a2, 0(a0)\n wfi", flags=LOG)
    await vm.set_user_memory_region(1, LOG, HOLE, PAGE_SIZE, base + DATA)
    vcpu = await vcpu_at(vm, a0=HOLE)
    await vcpu.run()
    assert await log(vm) == set()
    assert await log(vm, 1) == {0}


async def test_a_page_that_is_stored_to_again_after_a_get_is_in_the_next(vm: Vm) -> None:
    await boot(vm, STORE_FOREVER, flags=LOG)
    vcpu = await vcpu_at(vm, a0=DATA)
    async with running(vcpu):
        for _ in range(5):
            await progress(vcpu)
            await progress(vcpu)
            assert await log(vm) == {DATA // PAGE_SIZE}
    await vm.get_dirty_log(0)
    assert await log(vm) == set()


async def test_logging_is_turned_on_and_off_under_a_running_vcpu_without_an_exit(vm: Vm) -> None:
    base = await boot(vm, STORE_FOREVER)
    size = vm.memory_regions()[1][0].memory_size
    vcpu = await vcpu_at(vm, a0=DATA)
    async with running(vcpu):
        for _ in range(5):
            await vm.set_user_memory_region(0, LOG, 0, size, base)
            await progress(vcpu)
            await progress(vcpu)
            assert await log(vm) == {DATA // PAGE_SIZE}
            await vm.set_user_memory_region(0, 0, 0, size, base)
    assert vm.stats().exits == {}


async def test_bits_move_with_their_slot_under_a_running_vcpu(vm: Vm) -> None:
    base = await boot(vm, STORE_FOREVER)
    await vm.set_user_memory_region(1, LOG, HOLE, 2 * PAGE_SIZE, base + DATA)
    vcpu = await vcpu_at(vm, a0=HOLE + PAGE_SIZE)
    async with running(vcpu) as (run,):
        await progress(vcpu)
        await vm.set_user_memory_region(1, LOG, 2 * HOLE, 2 * PAGE_SIZE, base + DATA)
        await run
    assert await log(vm, 1) == {1}
    assert (await vcpu.get_regs())["pc"] == CODE + 4


@evaluated
@pytest.mark.parametrize(("npages", "size"), [(1, 8), (64, 8), (65, 16), (130, 24)])
async def test_the_bitmap_is_in_whole_words_and_its_tail_reads_zero(vm: Vm, npages: int, size: int) -> None:
    await logged(vm, npages)
    await dirty(vm, npages - 1)
    bitmap = await vm.get_dirty_log(0)
    assert bitmap == (1 << npages - 1).to_bytes(size, "little")


@evaluated
async def test_by_default_get_takes_the_log(vm: Vm) -> None:
    await logged(vm)
    await dirty(vm, 0, 64, 129)
    assert await log(vm) == {0, 64, 129}
    assert await log(vm) == set()


@evaluated
async def test_host_writes_are_not_logged(vm: Vm) -> None:
    base = await logged(vm)
    await vm.write_host_memory(base, b"x")
    assert await log(vm) == set()


@evaluated
@pytest.mark.parametrize("slot", [32764, 0xFFFF, 1 << 16, -1])
async def test_a_slot_out_of_range_is_einval(vm: Vm, slot: int) -> None:
    with refusal(errno.EINVAL) as wrong:
        await vm.get_dirty_log(slot)
    assert wrong.value.ioctl == "KVM_GET_DIRTY_LOG"
    with refusal(errno.EINVAL) as wrong:
        await vm.clear_dirty_log(slot, 0, 64, bytes(8))
    assert wrong.value.ioctl == "KVM_CLEAR_DIRTY_LOG"


@evaluated
async def test_a_slot_that_is_not_set_or_not_logged_is_enoent(vm: Vm) -> None:
    base = await logged(vm)
    await vm.set_user_memory_region(1, 0, HOLE, PAGE_SIZE, base)
    for slot in (1, 2, 32763):
        with refusal(errno.ENOENT):
            await vm.get_dirty_log(slot)
        with refusal(errno.ENOENT):
            await vm.clear_dirty_log(slot, 0, 64, bytes(8))


@evaluated
async def test_a_part_is_taken_and_the_rest_stays(vm: Vm) -> None:
    await logged(vm)
    await dirty(vm, 1, 65, 128)
    assert await vm.get_dirty_log(0, first_page=64, num_pages=64) == b"\x02" + bytes(7)
    assert await vm.get_dirty_log(0, first_page=128, num_pages=64) == b"\x01" + bytes(7)
    assert await vm.get_dirty_log(0, first_page=64) == bytes(16)
    assert await log(vm) == {1}


@evaluated
@pytest.mark.parametrize(
    ("first_page", "num_pages"),
    [(1, 64), (192, 64), (256, None), (-64, 64), (0, 63), (0, 0), (0, -64), (0, 256), (128, 128)],
)
async def test_a_part_that_is_out_of_range_is_einval_and_nothing_is_taken(
    vm: Vm, first_page: int, num_pages: int | None
) -> None:
    await logged(vm)
    await dirty(vm, 3)
    with refusal(errno.EINVAL):
        await vm.get_dirty_log(0, first_page=first_page, num_pages=num_pages)
    assert await log(vm) == {3}


@evaluated
async def test_with_manual_protection_get_leaves_the_log_and_clear_takes_from_it(vm: Vm) -> None:
    await manual(vm)
    await logged(vm)
    await dirty(vm, 0, 64, 129)
    assert await log(vm) == {0, 64, 129}
    await dirty(vm, 1)
    assert await log(vm) == {0, 1, 64, 129}
    await vm.clear_dirty_log(0, 0, 64, b"\x05" + bytes(7))
    assert await log(vm) == {1, 64, 129}
    await vm.clear_dirty_log(0, 64, 66, b"\xff" * 9)
    assert await log(vm) == {1}


@evaluated
async def test_clear_works_without_manual_protection_too(vm: Vm) -> None:
    await logged(vm)
    await dirty(vm, 0, 1)
    await vm.clear_dirty_log(0, 0, 64, b"\x01" + bytes(7))
    assert await log(vm) == {1}


@evaluated
async def test_bits_beyond_num_pages_are_left_alone(vm: Vm) -> None:
    await manual(vm)
    await logged(vm)
    await dirty(vm, 63, 64, 129)
    await vm.clear_dirty_log(0, 0, 64, b"\xff" * 24)
    assert await log(vm) == {64, 129}
    await vm.clear_dirty_log(0, 0, NPAGES, b"\xff" * 24)
    assert await log(vm) == set()


@evaluated
@pytest.mark.parametrize(("first_page", "num_pages"), [(0, 0), (0, 64), (0, 128), (0, 130), (64, 66), (128, 2)])
async def test_a_clear_of_whole_words_or_to_the_odd_end_is_legal(vm: Vm, first_page: int, num_pages: int) -> None:
    await manual(vm)
    await logged(vm)
    await dirty(vm, *range(NPAGES))
    await vm.clear_dirty_log(0, first_page, num_pages, b"\xff" * ((num_pages + 7) // 8))
    assert await log(vm) == set(range(NPAGES)) - set(range(first_page, first_page + num_pages))


@evaluated
@pytest.mark.parametrize(
    ("first_page", "num_pages"),
    [(1, 64), (63, 64), (192, 0), (192, 64), (0, 63), (0, 129), (0, 131), (128, 64), (-64, 64), (0, -64)],
)
async def test_a_clear_of_another_range_is_einval_and_nothing_is_cleared(
    vm: Vm, first_page: int, num_pages: int
) -> None:
    await manual(vm)
    await logged(vm)
    await dirty(vm, 0, 129)
    with refusal(errno.EINVAL):
        await vm.clear_dirty_log(0, first_page, num_pages, b"\xff" * 24)
    assert await log(vm) == {0, 129}


@evaluated
async def test_a_clear_that_begins_at_the_end_of_a_slot_of_whole_words_clears_nothing(vm: Vm) -> None:
    await manual(vm)
    await logged(vm, 128)
    await dirty(vm, 0, 127)
    await vm.clear_dirty_log(0, 128, 0, b"")
    assert await log(vm) == {0, 127}


@evaluated
async def test_a_bitmap_that_is_too_short_is_efault_after_every_other_check(vm: Vm) -> None:
    await manual(vm)
    await logged(vm)
    await dirty(vm, 0)
    with refusal(errno.EFAULT):
        await vm.clear_dirty_log(0, 0, NPAGES, b"\xff" * 16)
    with refusal(errno.EINVAL):
        await vm.clear_dirty_log(0, 1, NPAGES, b"")
    with refusal(errno.ENOENT):
        await vm.clear_dirty_log(1, 0, 63, b"")
    assert await log(vm) == {0}


@evaluated
@pytest.mark.parametrize("args", [[2], [4], [5], [7], [1 << 63]])
async def test_an_unknown_mode_is_einval_and_the_mode_stays(vm: Vm, args: list[int]) -> None:
    await manual(vm)
    with refusal(errno.EINVAL):
        await vm.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, args)
    await logged(vm)
    await dirty(vm, 2)
    assert await log(vm) == await log(vm) == {2}


@evaluated
@pytest.mark.parametrize("cap", ["KVM_CAP_NR_MEMSLOTS", "KVM_CAP_DIRTY_LOG_RING", "nonsense"])
async def test_a_capability_that_cannot_be_enabled_is_einval(vm: Vm, cap: str) -> None:
    with refusal(errno.EINVAL) as wrong:
        await vm.enable_cap(cap, [1])
    assert wrong.value.ioctl == "KVM_ENABLE_CAP"


@evaluated
@pytest.mark.parametrize("off", [[0], []])
async def test_manual_protection_can_be_turned_off_again(vm: Vm, off: list[int]) -> None:
    await manual(vm)
    await logged(vm)
    await dirty(vm, 2)
    assert await log(vm) == {2}
    await vm.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, off)
    assert await log(vm) == {2}
    assert await log(vm) == set()


@evaluated
async def test_an_initially_set_log_begins_with_every_page_and_is_cleared_in_chunks(vm: Vm) -> None:
    await manual(vm, 3)
    base = await logged(vm)
    assert await log(vm) == set(range(NPAGES))
    await vm.clear_dirty_log(0, 0, 64, b"\xff" * 8)
    assert await log(vm) == set(range(64, NPAGES))
    await vm.set_user_memory_region(0, 0, 0, NPAGES * PAGE_SIZE, base)
    await vm.set_user_memory_region(0, LOG, 0, NPAGES * PAGE_SIZE, base)
    assert await log(vm) == set(range(NPAGES))


@evaluated
async def test_a_delete_throws_the_log_away_and_nothing_is_carried_over(vm: Vm) -> None:
    base = await logged(vm)
    await dirty(vm, 5)
    await vm.set_user_memory_region(0, 0, 0, 0, 0)
    with refusal(errno.ENOENT):
        await vm.get_dirty_log(0)
    await vm.set_user_memory_region(0, LOG, 0, NPAGES * PAGE_SIZE, base)
    assert await log(vm) == set()
