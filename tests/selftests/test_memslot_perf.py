"""memslot_perf_test's six, as behaviour: what a guest meets while its host drops pages and moves slots; no timings.

The kernel's test drops pages with MADV_DONTNEED, which leaves a mapping in place and empty. vmmd's host memory has no
such call. Unmapping host memory and mapping it again at the same userspace address stands for it here: no slot is
touched, the guest's next access finds fresh zeroes, and an access between the two calls is EFAULT. So each half is a
mapping of its own, since a mapping comes back to its address only once all of it is gone.
"""

from __future__ import annotations

import asyncio
import errno
import struct
from dataclasses import dataclass

import pytest

from tests.kvm.guest import progress, refusal, until
from tests.selftests.guest import SWEEP, add_memory, counted_on, first_words, load, served, share, sweep
from vmmd.kvm.exits import Exit, HypercallExit
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

AREA = 0x1000_0000
CHUNK = 2 << 20

TOUCH = """
    # Over s5 words that lie s4 bytes apart from s0 on, again and again until the shared word is s7. Each has to hold 0
    # in the first pass and s7 then, which it gets. s8 counts those that did not.
touch:
    li t3, 0
pass:
    mv t0, s0
    mv t1, s5
1:  ld t2, 0(t0)
    beq t2, t3, 2f
    addi s8, s8, 1
2:  sd s7, 0(t0)
    add t0, t0, s4
    addi t1, t1, -1
    bnez t1, 1b
    mv t3, s7
    ld t2, 0(s3)
    bne t2, s7, pass
    ecall
    j touch
"""

ACTIVE_PAGES = 50
SWEEP_FOR_EVER = f"""
    # Writes the number of its pass to each of {ACTIVE_PAGES} pages from s0 on; the line holds the passes.
    li s5, 0
    li s4, {PAGE_SIZE}
pass:
    addi s5, s5, 1
    mv t0, s0
    li t1, {ACTIVE_PAGES}
1:  sd s5, 0(t0)
    add t0, t0, s4
    addi t1, t1, -1
    bnez t1, 1b
    sd s5, 0(s1)
    j pass
"""


@dataclass(frozen=True)
class Half:
    """One half of a window: a host mapping of its own, and the slot over it."""

    vm: Vm
    gpa: int
    size: int
    userspace_addr: int

    async def unmap(self, step: int) -> None:
        """Unmap all of it, in steps of so many bytes."""
        for at in range(0, self.size, step):
            await self.vm.unmap_host_memory(self.userspace_addr + at, step)

    async def map(self) -> None:
        """Map all of it again where it was."""
        assert await self.vm.map_host_memory(self.size) == self.userspace_addr

    async def touch(self, stride: int, number: int) -> asyncio.Task[Exit]:
        """Have the guest touch a word of each stride until the shared word is `number`; return its KVM_RUN."""
        vcpu = self.vm.vcpus[0]
        regs = {"s0": self.gpa, "s4": stride, "s5": self.size // stride, "s7": number, "s8": 0}
        await vcpu.set_regs(regs)
        run = asyncio.create_task(vcpu.run())
        await progress(vcpu)
        return run


async def halves(vm: Vm, size: int) -> tuple[Half, Half]:
    """Lay a window out in two halves of so many bytes."""
    await load(vm, TOUCH)
    first, second = [
        Half(vm, AREA + slot * size, size, await add_memory(vm, 1 + slot, AREA + slot * size, size // PAGE_SIZE))
        for slot in range(2)
    ]
    return first, second


async def drop_alternately(vm: Vm, size: int, *, stride: int, step: int, rounds: int) -> None:
    """The guest touches one half while the host drops the other; each finds what it has to find, round after round."""
    here, there = await halves(vm, size)
    generation = vm.generation
    count, npages = size // stride, size // PAGE_SIZE
    for number in range(1, rounds + 1):
        run = await here.touch(stride, number)
        await there.unmap(step)
        for at in range(0, size, stride):
            # Every page that was dropped is lost to guest accesses.
            with refusal(errno.EFAULT):
                await vm.read_guest_memory(there.gpa + at, 8)
        await there.map()
        await share(vm, number)
        assert await run == HypercallExit(0, (0,) * 6)
        assert (await vm.vcpus[0].get_regs())["x24"] == 0, "a word held something else"
        assert (await first_words(vm, here.gpa, npages))[:: npages // count] == [number] * count
        here, there = there, here
    assert vm.generation == generation
    assert vm.stats().exits == {"KVM_EXIT_HYPERCALL": rounds}


async def test_a_half_that_was_dropped_whole_is_fresh_and_the_other_is_untouched(vm: Vm) -> None:
    await drop_alternately(vm, 4 << 20, stride=PAGE_SIZE, step=4 << 20, rounds=12)


async def test_a_half_that_is_dropped_page_by_page_is_gone_page_by_page_and_the_other_is_untouched(vm: Vm) -> None:
    await drop_alternately(vm, 64 * PAGE_SIZE, stride=PAGE_SIZE, step=PAGE_SIZE, rounds=5)


async def test_a_half_that_is_dropped_in_chunks_is_fresh_and_the_other_is_untouched(vm: Vm) -> None:
    await drop_alternately(vm, 8 * CHUNK, stride=CHUNK, step=CHUNK, rounds=12)


@dataclass(frozen=True)
class Area:
    """An area divided among slots, from slot 1 on, over one mapping; the last slot has the rest too."""

    vm: Vm
    slots: int
    pages_a_slot: int
    userspace_addr: int

    @property
    def npages(self) -> int:
        return self.slots * self.pages_a_slot + 1

    @property
    def last(self) -> int:
        """Where the last slot begins."""
        return AREA + (self.slots - 1) * self.pages_a_slot * PAGE_SIZE

    async def put_last(self, guest_phys_addr: int) -> None:
        """Set or move the last slot."""
        at = self.last - AREA
        size = (self.pages_a_slot + 1) * PAGE_SIZE
        await self.vm.set_user_memory_region(self.slots, 0, guest_phys_addr, size, self.userspace_addr + at)


async def divided(vm: Vm, slots: int, pages_a_slot: int) -> Area:
    """Lay an area out."""
    size = pages_a_slot * PAGE_SIZE
    area = Area(vm, slots, pages_a_slot, await vm.map_host_memory(slots * size + PAGE_SIZE))
    for index in range(slots - 1):
        await vm.set_user_memory_region(1 + index, 0, AREA + index * size, size, area.userspace_addr + index * size)
    await area.put_last(area.last)
    return area


MOVES = 60
SLOTS, PAGES_A_SLOT = 500, 50


async def test_a_slot_that_moves_away_in_use_gives_mmio_writes_in_its_range_alone_and_has_its_memory_back(
    vm: Vm,
) -> None:
    area = await divided(vm, SLOTS, PAGES_A_SLOT)
    half = ACTIVE_PAGES // 2
    await load(vm, SWEEP_FOR_EVER, s0=area.last - half * PAGE_SIZE)
    async with served(vm) as (guest,):
        for _ in range(MOVES // 2):
            await area.put_last(AREA + area.npages * PAGE_SIZE)
            await asyncio.sleep(0)
            # The first time the slot stays away until the guest has met that; later it may be too quick for it.
            await until(lambda: bool(guest.mmio))
            await area.put_last(area.last)
            await counted_on(vm)
        await counted_on(vm, 2)
    for left in guest.mmio:
        assert (left.is_write, left.len) == (True, 8)
        assert area.last <= left.phys_addr < area.last + half * PAGE_SIZE
    assert set(vm.stats().exits) == {"KVM_EXIT_MMIO"}
    stored = await first_words(vm, area.last - half * PAGE_SIZE, ACTIVE_PAGES)
    assert max(stored) - min(stored) <= 1


async def test_a_slot_that_moves_away_beside_the_memory_in_use_makes_no_exit(vm: Vm) -> None:
    area = await divided(vm, SLOTS, PAGES_A_SLOT)
    await load(vm, SWEEP_FOR_EVER, s0=area.last - ACTIVE_PAGES * PAGE_SIZE)
    async with served(vm):
        for _ in range(MOVES // 2):
            await area.put_last(AREA + area.npages * PAGE_SIZE)
            await asyncio.sleep(0)
            await area.put_last(area.last)
        await counted_on(vm)
    assert vm.stats().exits == {}


@pytest.mark.parametrize(("slots", "pages_a_slot"), [(1, 2000), (1000, 2)])
async def test_guest_and_host_read_what_the_other_wrote_in_every_slot(vm: Vm, slots: int, pages_a_slot: int) -> None:
    area = await divided(vm, slots, pages_a_slot)
    await load(vm, SWEEP)
    guests_word, hosts_word = AREA, AREA + PAGE_SIZE // 2
    for number in range(1, 4):
        # The guest writes its words while the host writes the others, in the same pages.
        writing = asyncio.create_task(
            sweep(vm.vcpus[0], guests_word, PAGE_SIZE, area.npages, expected=0, left=2 * number)
        )
        for page in range(area.npages):
            await vm.write_guest_memory(hosts_word + page * PAGE_SIZE, struct.pack("<Q", 2 * number + 1))
            await asyncio.sleep(0)
        await writing
        reading = asyncio.create_task(
            sweep(vm.vcpus[0], hosts_word, PAGE_SIZE, area.npages, expected=2 * number + 1, left=0)
        )
        assert await first_words(vm, guests_word, area.npages) == [2 * number] * area.npages
        for page in range(area.npages):
            await vm.write_guest_memory(guests_word + page * PAGE_SIZE, bytes(8))
            await asyncio.sleep(0)
        await reading
    contents = await vm.read_guest_memory(AREA, area.npages * PAGE_SIZE)
    assert not any(contents)
