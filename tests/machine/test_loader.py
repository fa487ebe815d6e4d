"""Loading: segments into the memory that slots give, all of them or none, and one vCPU at the entry."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.kvm.guest import SPIN, errno_of, progress, refusal, running
from vmmd.isa.assembler import assemble
from vmmd.isa.elf import Image, Segment
from vmmd.kvm.exits import HltExit
from vmmd.kvm.vm import Vm
from vmmd.machine.loader import load
from vmmd.machine.machine import Machine
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY

LOW, HIGH = 0x10_0000, 0x20_0000
SLOT_BYTES = 8 * PAGE_SIZE

evaluated = pytest.mark.parametrize("engine_name", ["evaluated"], indirect=True)


@pytest.fixture
def vm(machine: Machine) -> Vm:
    return machine.vm


@dataclass
class Memory:
    """Two slots of a VM and what they point to, full of 0xff."""

    vm: Vm
    base: int

    async def bytes(self) -> bytes:
        return await self.vm.read_host_memory(self.base, 2 * SLOT_BYTES)


async def memory(vm: Vm, *, low_flags: int = 0, high_flags: int = 0) -> Memory:
    base = await vm.map_host_memory(2 * SLOT_BYTES)
    await vm.set_user_memory_region(0, low_flags, LOW, SLOT_BYTES, base)
    await vm.set_user_memory_region(1, high_flags, HIGH, SLOT_BYTES, base + SLOT_BYTES)
    await vm.write_host_memory(base, b"\xff" * (2 * SLOT_BYTES))
    return Memory(vm, base)


def image(*segments: tuple[int, bytes, int], entry: int = LOW) -> Image:
    return Image(entry, tuple(Segment(*segment) for segment in segments), {})


def program(source: str, at: int = LOW) -> Image:
    code = assemble(source, at).code
    return image((at, code, len(code)), entry=at)


def dirty_pages(bitmap: bytes) -> list[int]:
    bits = int.from_bytes(bitmap, "little")
    return [page for page in range(8 * len(bitmap)) if bits >> page & 1]


def expected(*pieces: tuple[int, bytes]) -> bytes:
    """Memory as it was, with pieces at offsets from the first slot's start."""
    whole = bytearray(b"\xff" * (2 * SLOT_BYTES))
    for offset, data in pieces:
        whole[offset : offset + len(data)] = data
    return bytes(whole)


async def test_a_loaded_guest_runs_from_its_entry(vm: Vm) -> None:
    await memory(vm)
    vcpu, other = await vm.create_vcpu(0), await vm.create_vcpu(1)
    await other.set_regs({"pc": 0x1234, "a0": 5})
    await vcpu.set_regs({"a0": 6})
    await load(vm, program("addi a0, a0, 1\n wfi"), 0)
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x10"] == 7
    regs = await other.get_regs()
    assert (regs["pc"], regs["x10"]) == (0x1234, 5)


@evaluated
async def test_segments_lie_where_they_belong_and_what_lies_between_them_stays(vm: Vm) -> None:
    ram = await memory(vm)
    await load(vm, image((LOW + 3, b"abc", 3), (LOW + PAGE_SIZE - 1, b"xy", 2), (HIGH, b"high", 4)))
    assert await ram.bytes() == expected((3, b"abc"), (PAGE_SIZE - 1, b"xy"), (SLOT_BYTES, b"high"))


@evaluated
@pytest.mark.parametrize("start", [0, 1, PAGE_SIZE - 1, PAGE_SIZE])
@pytest.mark.parametrize("data", [b"", b"d", b"d" * (PAGE_SIZE - 1), b"d" * PAGE_SIZE])
@pytest.mark.parametrize("zeroes", [0, 1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE])
async def test_what_a_segment_has_beyond_its_data_reads_zeroes_and_no_byte_more(
    vm: Vm, start: int, data: bytes, zeroes: int
) -> None:
    ram = await memory(vm)
    await load(vm, image((LOW + start, data, len(data) + zeroes)))
    assert await ram.bytes() == expected((start, data + bytes(zeroes)))


@evaluated
async def test_a_segment_may_go_from_slot_to_slot(vm: Vm) -> None:
    base = await vm.map_host_memory(2 * PAGE_SIZE)
    await vm.set_user_memory_region(0, 0, LOW, PAGE_SIZE, base + PAGE_SIZE)
    await vm.set_user_memory_region(1, 0, LOW + PAGE_SIZE, PAGE_SIZE, base)
    await vm.write_host_memory(base, b"\xff" * (2 * PAGE_SIZE))
    await load(vm, image((LOW + PAGE_SIZE - 2, b"four", PAGE_SIZE + 2)))
    assert await vm.read_guest_memory(LOW, 2 * PAGE_SIZE) == b"\xff" * (PAGE_SIZE - 2) + b"four".ljust(
        PAGE_SIZE + 2, b"\0"
    )


@evaluated
async def test_data_and_zeroes_are_marked_in_the_dirty_log(vm: Vm) -> None:
    await memory(vm, low_flags=KVM_MEM_LOG_DIRTY_PAGES)
    await load(vm, image((LOW + PAGE_SIZE, b"data", 4), (LOW + 4 * PAGE_SIZE - 1, b"", PAGE_SIZE + 2), (HIGH, b"x", 1)))
    assert dirty_pages(await vm.get_dirty_log(0)) == [1, 3, 4, 5]


@evaluated
@pytest.mark.parametrize(
    "last",
    [
        (HIGH + SLOT_BYTES, b"x", 1),
        (HIGH + SLOT_BYTES - 1, b"xx", 2),
        (HIGH + SLOT_BYTES - 1, b"x", 2),
        (HIGH, b"", SLOT_BYTES + 1),
        (HIGH, b"", 1 << 30),
        ((1 << 64) - 1, b"x", 1),
        ((1 << 64) - 2, b"x", 2),
    ],
)
async def test_a_segment_that_lies_in_no_slot_is_efault_and_nothing_is_written(
    vm: Vm, last: tuple[int, bytes, int]
) -> None:
    ram = await memory(vm, low_flags=KVM_MEM_LOG_DIRTY_PAGES)
    vcpu = await vm.create_vcpu(0)
    with refusal(errno.EFAULT):
        await load(vm, image((LOW, b"first", PAGE_SIZE), last), 0)
    assert await ram.bytes() == expected()
    assert dirty_pages(await vm.get_dirty_log(0)) == []
    assert (await vcpu.get_regs())["pc"] == 0


@evaluated
@pytest.mark.parametrize("segment", [(HIGH + 5, b"x", 1), (HIGH + 5, b"", 1)])
async def test_a_read_only_slot_is_efault_and_nothing_is_written(vm: Vm, segment: tuple[int, bytes, int]) -> None:
    ram = await memory(vm, high_flags=KVM_MEM_READONLY)
    with refusal(errno.EFAULT) as refused:
        await load(vm, image((LOW, b"first", 5), segment))
    assert "KVM_MEM_READONLY" in refused.value.message
    assert await ram.bytes() == expected()


@evaluated
@pytest.mark.parametrize("segment", [(HIGH, b"x", 1), (HIGH, b"", 1)])
async def test_memory_whose_host_mapping_is_gone_is_efault_and_nothing_is_written(
    vm: Vm, segment: tuple[int, bytes, int]
) -> None:
    ram = await memory(vm)
    await vm.unmap_host_memory(ram.base + SLOT_BYTES, SLOT_BYTES)
    with refusal(errno.EFAULT):
        await load(vm, image((LOW, b"first", 5), segment))
    assert await vm.read_guest_memory(LOW, 5) == b"\xff" * 5


@evaluated
async def test_an_unknown_vcpu_is_ebadf_and_nothing_is_written(vm: Vm) -> None:
    ram = await memory(vm)
    await vm.create_vcpu(0)
    with refusal(errno.EBADF):
        await load(vm, image((LOW, b"first", 5)), 1)
    assert await ram.bytes() == expected()


@evaluated
async def test_zeroes_in_sparse_memory_are_charged_to_nobody_and_data_is(vm: Vm) -> None:
    base = await vm.map_host_memory(1 << 30, sparse=True)
    await vm.set_user_memory_region(0, 0, LOW, 1 << 30, base)
    await vm.write_host_memory(base + 5 * PAGE_SIZE, b"\xff" * PAGE_SIZE)
    # The limit of the test's system is far below the gibibyte that reads zeroes now.
    await load(vm, image((LOW + 1, b"data", (1 << 30) - 2)))
    assert await vm.read_guest_memory(LOW, 6) == b"\0data\0"
    assert await vm.read_guest_memory(LOW + 5 * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)


@evaluated
async def test_data_beyond_the_limit_of_memory_is_enomem_and_nothing_is_written(vm: Vm) -> None:
    base = await vm.map_host_memory(1 << 28, sparse=True)
    await vm.set_user_memory_region(0, 0, LOW, 1 << 28, base)
    with refusal(errno.ENOMEM):
        await load(vm, image((LOW, b"first", 5), (LOW + PAGE_SIZE, b"x" * (65 << 20), 65 << 20)))
    assert await vm.read_guest_memory(LOW, 5) == bytes(5)


@evaluated
async def test_somebody_elses_hold_keeps_a_load_out_and_inside_it_goes_on(vm: Vm) -> None:
    ram = await memory(vm)
    await vm.kick_all_running_vcpus("a")
    with refusal(errno.EBUSY):
        await load(vm, image((LOW, b"first", 5)))
    waiting = asyncio.create_task(errno_of(load(vm, image((LOW, b"late", 4)), wait_ms=20_000)))
    await load(vm, image((LOW, b"first", 5)), hold="a")
    assert (await ram.vm.read_guest_memory(LOW, 5, hold="a")) == b"first"
    await vm.resume_all_kicked_vcpus("a")
    assert await waiting == 0
    assert await vm.read_guest_memory(LOW, 5) == b"latet"


@evaluated
@pytest.mark.parametrize(("segments", "vcpu", "number"), [([(0, b"x", 1)], None, errno.EFAULT), ([], 7, errno.EBADF)])
async def test_a_load_that_is_refused_inside_a_hold_has_failed_it(
    vm: Vm, segments: Sequence[tuple[int, bytes, int]], vcpu: int | None, number: int
) -> None:
    await memory(vm)
    await vm.kick_all_running_vcpus("a")
    with refusal(number):
        await load(vm, image(*segments), vcpu, hold="a")
    with refusal(number) as failed:
        await vm.resume_all_kicked_vcpus("a")
    assert failed.value.data["rolled_back"]


@evaluated
async def test_what_a_load_wrote_inside_a_hold_that_rolls_back_stays_and_is_marked(vm: Vm) -> None:
    await memory(vm, low_flags=KVM_MEM_LOG_DIRTY_PAGES)
    await vm.kick_all_running_vcpus("a")
    await load(vm, image((LOW, b"x", PAGE_SIZE + 1)), hold="a")
    await vm.get_dirty_log(0, hold="a")
    with refusal(errno.EFAULT):
        await vm.read_guest_memory(0, 1, hold="a")
    with refusal(errno.EFAULT):
        await vm.resume_all_kicked_vcpus("a")
    assert dirty_pages(await vm.get_dirty_log(0)) == [0, 1]


async def test_a_running_vcpu_goes_on_at_the_entry_of_what_is_loaded(vm: Vm) -> None:
    await memory(vm)
    vcpu = await vm.create_vcpu(0)
    await load(vm, program(SPIN), 0)
    async with running(vcpu) as (run,):
        await load(vm, program("li a0, 77\n wfi", HIGH), 0)
        assert await run == HltExit()
    assert (await vcpu.get_regs())["x10"] == 77


async def test_a_large_zeroing_below_a_running_guest_is_seen_whole_and_costs_no_memory(vm: Vm) -> None:
    size = 1 << 25
    base = await vm.map_host_memory(size)
    await vm.set_user_memory_region(0, 0, LOW, size, base)
    vcpu = await vm.create_vcpu(0)
    await load(vm, program(SPIN), 0)
    await vm.write_host_memory(base + PAGE_SIZE, b"\xff" * (size - PAGE_SIZE))
    async with running(vcpu):
        await load(vm, image((LOW + PAGE_SIZE, b"", size - PAGE_SIZE)))
        await progress(vcpu)
    assert await vm.read_guest_memory(LOW + PAGE_SIZE, size - PAGE_SIZE) == bytes(size - PAGE_SIZE)


async def test_a_vcpu_that_waited_for_userspace_begins_at_the_first_instruction_of_what_is_loaded(vm: Vm) -> None:
    await memory(vm)
    vcpu = await vm.create_vcpu(0)
    await load(vm, program("ld s5, 0(a0)"), 0)
    await vcpu.set_regs({"a0": 1 << 40})
    assert (await vcpu.run()).reason == "KVM_EXIT_MMIO"
    await load(vm, program("addi s5, s5, 1\n addi s6, s6, 1\n wfi"), 0)
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert (regs["x21"], regs["x22"], regs["instret"]) == (1, 1, 3)
