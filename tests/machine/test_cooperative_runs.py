"""The same calls give the same run, bit for bit: in every engine, many times, wherever an advance is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kvm.guest import CODE, DATA, RAM_BYTES, boot, vcpu_at
from tests.machine.advancing import COUNTER, EVERYTHING, LOST_UPDATES, cooperative, load, word
from vmmd.isa.assembler import assemble
from vmmd.isa.engine import ENGINES, EngineName
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import MmioExit
from vmmd.kvm.turns import End
from vmmd.kvm.uapi import KVM_CAP_DIRTY_LOG_RING
from vmmd.machine.machine import Machine
from vmmd.machine.run_loop import StrayPolicy
from vmmd.memory.limits import PAGE_SIZE

LENGTH = 20_000
TIMES = 5
"""For each engine."""


async def everything(machine: Machine, cuts: list[int]) -> str:
    """Run the guest with everything in it; return the digest."""
    await load(machine, EVERYTHING, 3, irqchip=True)
    asked = 0
    for cut in cuts:
        advanced = await machine.advance(cut, StrayPolicy.ONES)
        asked += cut
        assert (advanced.instructions, advanced.ended_by) == (cut, End.INSTRUCTIONS)
        assert machine.vm.stats().instructions == asked
    return advanced.digest


async def digests(cache_dir: Path, run: Callable[[Machine], Awaitable[object]], *, seed: int = 1) -> list[object]:
    """Make the same run several times in each engine; return what came of each."""
    found = []
    for engine in ENGINES * TIMES:
        async with cooperative(engine, cache_dir, seed) as machine:
            found.append(await run(machine))
    return found


async def test_the_same_seed_gives_the_same_digest_every_time_in_every_engine(cache_dir: Path) -> None:
    async def run(machine: Machine) -> object:
        return await everything(machine, [LENGTH]), machine.read_console(), dict(machine.vm.stats().exits)

    found = await digests(cache_dir, run)
    assert found == [found[0]] * len(found)
    _, (console, _), exits = found[0]  # type: ignore[misc]
    assert console[:3] == b"\x01\x02\x03"
    assert exits["KVM_EXIT_MMIO"] > 10
    assert exits["KVM_EXIT_IO"] > 10


@pytest.mark.parametrize("engine", ENGINES)
async def test_it_does_not_matter_how_an_advance_is_cut(engine: EngineName, cache_dir: Path) -> None:
    found = set()
    for cuts in ([3000], [1] * 3000, [7] * 428 + [4], [1500, 1, 1499]):
        async with cooperative(engine, cache_dir) as machine:
            found.add(await everything(machine, cuts))
    assert len(found) == 1


async def test_seeds_decide_who_wins_a_race(cache_dir: Path) -> None:
    counts = {}
    for seed in range(6):
        for engine in ENGINES:
            async with cooperative(engine, cache_dir, seed) as machine:
                await load(machine, LOST_UPDATES, 2)
                await machine.advance(LENGTH)
                counts[engine, seed] = await word(machine, COUNTER)
    assert all(len({counts[engine, seed] for engine in ENGINES}) == 1 for seed in range(6))
    assert len(set(counts.values())) > 1
    assert min(counts.values()) < LENGTH // 5


async def test_holds_slot_changes_and_a_rollback_between_advances_are_reproduced(cache_dir: Path) -> None:
    async def run(machine: Machine) -> object:
        vm = machine.vm
        base = await load(machine, LOST_UPDATES, 3)
        await machine.advance(3001)
        await vm.kick_all_running_vcpus("broken")
        await vm.set_user_memory_region(0, 0, 0, 0, base, hold="broken")
        with suppress(KvmError):
            await vm.set_user_memory_region(1, 0, 0, 1, base, hold="broken")
        with pytest.raises(KvmError):
            await vm.resume_all_kicked_vcpus("broken")
        await machine.advance(2003)
        await vm.kick_all_running_vcpus("split")
        await vm.set_user_memory_region(0, 0, 0, 0, base, hold="split")
        await vm.set_user_memory_region(0, 0, 0, DATA, base, hold="split")
        await vm.set_user_memory_region(1, 0, DATA, RAM_BYTES - DATA, base + DATA, hold="split")
        await vm.resume_all_kicked_vcpus("split")
        await vm.vcpu(1).set_regs({"a1": 1 << 40})
        return (await machine.advance(4000)).digest, machine.ended, await word(machine, COUNTER)

    found = await digests(cache_dir, run)
    assert found == [found[0]] * len(found)
    assert found[0][1] == {}  # type: ignore[index]


async def classic_race(machine: Machine) -> object:
    """Delete a slot under vCPUs that store to it, and create it again 40 instructions later."""
    base = await load(machine, LOST_UPDATES, 3)
    await machine.vm.set_user_memory_region(0, 0, 0, 0, base)
    await machine.vm.set_user_memory_region(0, 0, 0, DATA, base)
    await machine.vm.set_user_memory_region(1, 0, DATA, PAGE_SIZE, base + DATA)
    await machine.advance(5000)
    await machine.vm.set_user_memory_region(1, 0, DATA, 0, base + DATA)
    await machine.advance(40)
    await machine.vm.set_user_memory_region(1, 0, DATA, PAGE_SIZE, base + DATA)
    advanced = await machine.advance(1000)
    where = {vcpu_id: machine.vm.vcpu(vcpu_id).stats().instructions for vcpu_id in machine.ended}
    return machine.ended, where, advanced.digest


async def test_the_classic_race_is_met_at_the_same_instruction_every_time(cache_dir: Path) -> None:
    found = await digests(cache_dir, classic_race, seed=3)
    assert found == [found[0]] * len(found)
    ended, where, _ = found[0]  # type: ignore[misc]
    assert ended
    assert all(isinstance(end, MmioExit) and end.phys_addr == DATA for end in ended.values())
    assert where


async def test_another_seed_meets_the_classic_race_elsewhere(cache_dir: Path) -> None:
    found = set()
    for seed in range(4):
        async with cooperative("compiled", cache_dir, seed) as machine:
            found.add(str((await classic_race(machine))[1]))  # type: ignore[index]
    assert len(found) > 1


async def test_a_full_dirty_ring_waits_for_its_reset_at_the_same_instruction_in_every_engine(cache_dir: Path) -> None:
    # A store to each of 1,792 pages.
    source = """
        li s0, 0x100000
        li s1, 0x800000
    1:  sd s0, 0(s0)
        add s0, s0, s2
        blt s0, s1, 1b
        ebreak
    """

    async def run(machine: Machine) -> object:
        vm = machine.vm
        await vm.enable_cap(KVM_CAP_DIRTY_LOG_RING, [1024 * 16])
        await boot(vm, source)
        hva = await vm.map_host_memory(0x70_0000)
        await vm.set_user_memory_region(1, 1, 0x10_0000, 0x70_0000, hva)
        for vcpu_id in range(2):
            await vcpu_at(vm, vcpu_id, s2=PAGE_SIZE)
        found: list[object] = []
        while len(machine.ended) < 2:
            advanced = await machine.advance(100_000)
            found.append((advanced.digest, advanced.instructions))
            found.append([vcpu.harvest_dirty_ring(4096) for vcpu in vm.vcpus.values()])
            await vm.reset_dirty_rings()
        return found, machine.ended, dict(vm.stats().exits)

    found = await digests(cache_dir, run)
    assert found == [found[0]] * len(found)
    assert found[0][2]["KVM_EXIT_DIRTY_RING_FULL"] > 1  # type: ignore[index]


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_digest_tells_registers_memory_and_exits_apart(engine: EngineName, cache_dir: Path) -> None:
    found = set()
    for change in ("nothing", "register", "memory", "unreached memory", "slot", "exit"):
        async with cooperative(engine, cache_dir) as machine:
            vm = machine.vm
            base = await load(machine, "1: addi a1, a1, 1\n j 1b", 1)
            await machine.advance(100)
            if change == "register":
                await vm.vcpu(0).set_regs({"a7": 1})
            elif change == "memory":
                await vm.write_guest_memory(DATA, b"\x01")
            elif change == "unreached memory":
                await vm.write_host_memory(await vm.map_host_memory(1 << 30, sparse=True) + (1 << 29), b"\x01")
            elif change == "slot":
                await vm.set_user_memory_region(7, 0, 1 << 30, PAGE_SIZE, base)
            elif change == "exit":
                await vm.write_guest_memory(CODE, assemble("inb a0, 0(zero)", CODE).code)
            found.add((await machine.advance(100)).digest)
    assert len(found) == 6


# Whoever is asked for its registers all the time comes forward slowly where every jump is looked at.
@pytest.mark.parametrize("engine", ["compiled", "evaluated"])
async def test_reading_registers_during_an_advance_changes_nothing(engine: EngineName, cache_dir: Path) -> None:
    found = set()
    for reads in (False, True):
        async with cooperative(engine, cache_dir) as machine:
            await load(machine, EVERYTHING, 3, irqchip=True)
            advance = asyncio.create_task(machine.advance(10_000, StrayPolicy.ONES))
            while reads and not advance.done():
                for vcpu in machine.vm.vcpus.values():
                    await vcpu.get_regs()
                await asyncio.sleep(0)
            found.add((await advance).digest)
    assert len(found) == 1
