"""Any words as code, under three vCPUs that write over them: both engines come to the same, wherever they are cut."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.differential.any_words import any_word
from tests.kvm.guest import CODE, RAM_BYTES
from tests.machine.advancing import cooperative
from vmmd.isa.engine import ENGINES
from vmmd.kvm.turns import End
from vmmd.kvm.uapi import KVM_CAP_DIRTY_LOG_RING
from vmmd.machine.run_loop import StrayPolicy
from vmmd.memory.limits import PAGE_SIZE

PROGRAMS = 10
INSTRUCTIONS = 3000


async def run(seed: int, engine: str, cache_dir: Path, *, cut: bool) -> list[object]:
    """Run the seed's program, in one advance or in many; return all that is promised not to depend on either."""
    draw = random.Random(seed)
    async with cooperative(engine, cache_dir, seed) as machine:
        vm = machine.vm
        rings = draw.random() < 0.3
        if rings:
            await vm.enable_cap(KVM_CAP_DIRTY_LOG_RING, [16384])
        base = await vm.map_host_memory(RAM_BYTES)
        await vm.set_user_memory_region(0, int(rings), 0, RAM_BYTES, base)
        words = [any_word(draw) for _ in range(RAM_BYTES // 4)]
        await vm.write_host_memory(base, struct.pack(f"<{len(words)}I", *words))
        if draw.random() < 0.7:
            await vm.create_irqchip()
        for vcpu_id in range(3):
            vcpu = await vm.create_vcpu(vcpu_id)
            regs = {
                f"x{number}": draw.choice([0x200_4000, 0x200_0000, draw.randrange(RAM_BYTES)])
                for number in range(1, 32)
            }
            traps = {"mtvec": draw.randrange(PAGE_SIZE, RAM_BYTES) & ~3, "mie": draw.choice([0, 0x888]), "mstatus": 8}
            await vcpu.set_regs({"pc": CODE + vcpu_id * PAGE_SIZE, **regs, **traps})
        found: list[object] = []
        for part in [1] * 300 + [7] * 100 + [2000] if cut else [INSTRUCTIONS]:
            advanced = await machine.advance(part, StrayPolicy.ONES)
            if advanced.ended_by is not End.INSTRUCTIONS:
                break
        found += [advanced.digest, advanced.ended_by, dict(machine.ended), machine.vm.stats()]
        return found


@pytest.mark.parametrize("seed", range(PROGRAMS))
async def test_engines_and_cuts_come_to_the_same(seed: int, cache_dir: Path) -> None:
    found = [await run(seed, engine, cache_dir, cut=cut) for engine in ENGINES for cut in (False, True)]
    for other in found[1:]:
        assert str(other) == str(found[0])
