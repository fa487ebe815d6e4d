"""Three litmus tests that decide whether the core is right: machine code on two host threads, 3,000 rounds each."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.isa.forced import engine_of
from vmmd.isa.assembler import assemble
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

ROUNDS = 3000
CODE, RESULTS, DATA = 0x10_0000, 0x11_0000, 0x20_0000
POISON = 0xDEAD


@pytest.fixture(params=["compiled", "translated"])
async def system(cache_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[System]:
    limits = Limits(guest_memory_bytes=1 << 30, vms=4, vcpus_per_vm=8)
    system = System(engine=engine_of(request.param, cache_dir), cache_dir=cache_dir, workers=2, limits=limits)
    yield system
    await system.close()


async def vm_with(system: System, source: str, vcpus: int) -> tuple[Vm, int]:
    """A VM whose vCPUs share one program, and the userspace address of its code page and its page of results."""
    vm = system.create_vm()
    own = await vm.map_host_memory(2 * PAGE_SIZE)
    await vm.set_user_memory_region(100, 0, CODE, PAGE_SIZE, own)
    await vm.set_user_memory_region(101, 0, RESULTS, PAGE_SIZE, own + PAGE_SIZE)
    await vm.write_guest_memory(CODE, assemble(source, CODE).code)
    for index in range(vcpus):
        vcpu = await vm.create_vcpu(index)
        await vcpu.set_regs({"pc": CODE, "s0": DATA, "s1": RESULTS + 64 * index, "s2": index})
    return vm, own + PAGE_SIZE


async def start(vm: Vm) -> list[asyncio.Task[object]]:
    """Run every vCPU, and wait until each is under way."""
    runs: list[asyncio.Task[object]] = [asyncio.create_task(vcpu.run()) for vcpu in vm.vcpus.values()]
    for vcpu in vm.vcpus.values():
        await progressed(vcpu, 1)
    return runs


async def stop(vm: Vm, runs: list[asyncio.Task[object]]) -> None:
    for vcpu in vm.vcpus.values():
        vcpu.signal()
    for ended in await asyncio.gather(*runs, return_exceptions=True):
        assert "EINTR" in str(ended)


async def words(vm: Vm, at: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", await vm.read_guest_memory(at, 8 * count))


async def progressed(vcpu: Vcpu, instructions: int) -> None:
    """Wait until a vCPU that runs for good has retired some more."""
    target = vcpu.stats().instructions + instructions
    while vcpu.stats().instructions < target:
        await asyncio.sleep(0)
        assert vcpu.is_running


async def test_no_vcpu_enters_with_a_view_from_before_a_kick_after_the_resume(system: System) -> None:
    # The page that is swapped out inside a hold is poisoned there: only a vCPU with an old view can still read it.
    vm, _ = await vm_with(
        system,
        f"""
            li s3, {POISON}
        again:
            ld a0, 0(s0)
            bne a0, s3, again
            ld a1, 0(s1)
            addi a1, a1, 1
            sd a1, 0(s1)
            j again
        """,
        vcpus=3,
    )
    pages = [await vm.map_host_memory(PAGE_SIZE), await vm.map_host_memory(PAGE_SIZE)]
    await vm.set_user_memory_region(0, 0, DATA, PAGE_SIZE, pages[0])
    runs = await start(vm)
    for turn in range(ROUNDS):
        old, new = pages[turn % 2], pages[(turn + 1) % 2]
        name = f"round {turn}"
        await vm.kick_all_running_vcpus(name, wait_ms=30_000)
        await vm.write_host_memory(old, struct.pack("<Q", POISON), hold=name)
        await vm.write_host_memory(new, struct.pack("<Q", turn), hold=name)
        await vm.set_user_memory_region(0, 0, DATA, 0, 0, hold=name)
        await vm.set_user_memory_region(0, 0, DATA, PAGE_SIZE, new, hold=name)
        await vm.resume_all_kicked_vcpus(name)
        if turn % 16 == 0:
            await progressed(vm.vcpus[turn // 16 % 3], 1)
    await stop(vm, runs)
    assert [(await words(vm, RESULTS + 64 * index, 1))[0] for index in range(3)] == [0, 0, 0]
    assert vm.stats().exits == {}


async def test_no_store_is_lost_between_two_dirty_logs(system: System) -> None:
    # When it is told the number of a turn, each vCPU stores it once to its word of every page, and says that it has. So
    # a page is quiet for longer than a log takes to fetch, and a store that no log names is not made good by another.
    pages, turns, flag, done = 256, 1000, 0x800, 0x840
    vm, _ = await vm_with(
        system,
        f"""
            slli t0, s2, 3
            add s0, s0, t0
            li s3, 0
            li s4, {RESULTS + flag}
            addi s5, t0, {done - flag}
            add s5, s5, s4
        turn:
            ld t1, 0(s4)
            beq t1, s3, turn
            mv s3, t1
            mv a0, s0
            li a1, {pages}
            li a2, {PAGE_SIZE}
        page:
            sd s3, 0(a0)
            add a0, a0, a2
            addi a1, a1, -1
            bnez a1, page
            sd s3, 0(s5)
            j turn
        """,
        vcpus=2,
    )
    memory = await vm.map_host_memory(pages * PAGE_SIZE)
    await vm.set_user_memory_region(0, KVM_MEM_LOG_DIRTY_PAGES, DATA, pages * PAGE_SIZE, memory)
    runs = await start(vm)
    copies = [bytes(16)] * pages

    async def fetch() -> None:
        """Fetch the log, and copy the pages that it names."""
        log = int.from_bytes(await vm.get_dirty_log(0), "little")
        for page in range(pages):
            if log >> page & 1:
                copies[page] = await vm.read_guest_memory(DATA + page * PAGE_SIZE, 16)

    for turn in range(1, turns + 1):
        await vm.write_guest_memory(RESULTS + flag, struct.pack("<Q", turn))
        while await words(vm, RESULTS + done, 2) != (turn, turn):
            await fetch()
            await asyncio.sleep(0)
        await fetch()
        assert copies == [struct.pack("<QQ", turn, turn)] * pages
    await stop(vm, runs)


async def test_a_guest_that_spins_on_a_flag_sees_it_change(system: System) -> None:
    # Two vCPUs hand a number to and fro by spinning on it, and one of them also spins on a word that userspace writes.
    vm, _ = await vm_with(
        system,
        f"""
            li s3, 0
            li s4, {ROUNDS}
            bnez s2, second
        first:
            addi s3, s3, 1
            sd s3, 0(s0)
        1:  ld a0, 128(s0)
            bne a0, s3, 1b
            bne s3, s4, first
            li s3, 0
        flag:
            addi s3, s3, 1
        1:  ld a0, 256(s0)
            bne a0, s3, 1b
            sd s3, 384(s0)
            bne s3, s4, flag
            wfi
        second:
            addi s3, s3, 1
        1:  ld a0, 0(s0)
            bne a0, s3, 1b
            sd s3, 128(s0)
            bne s3, s4, second
            wfi
        """,
        vcpus=2,
    )
    memory = await vm.map_host_memory(PAGE_SIZE)
    await vm.set_user_memory_region(0, 0, DATA, PAGE_SIZE, memory)
    # One of them is soon done, so there is nothing to wait for but what they say.
    runs = [asyncio.create_task(vcpu.run()) for vcpu in vm.vcpus.values()]
    await runs[1]
    for value in range(1, ROUNDS + 1):
        await vm.write_guest_memory(DATA + 256, struct.pack("<Q", value))
        while (await words(vm, DATA + 384, 1))[0] != value:
            await asyncio.sleep(0)
    await asyncio.gather(*runs)
    assert vm.stats().exits == {"KVM_EXIT_HLT": 2}
