"""How long a guest takes to its exit over code that was never run before, on vmmd and on Unicorn.

The code is a straight line of random arithmetic with an end, so every instruction is met once.
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path

from rich.table import Table
from unicorn import UC_ARCH_RISCV, UC_MODE_RISCV64, Uc

from vmmd.isa.encoding import IMMEDIATES, RD_AT, RS1_AT, RS2_AT, Format
from vmmd.isa.instructions import BY_NAME, INSTRUCTIONS, Instruction
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.memory.limits import PAGE_SIZE

ORIGIN = 0x8000_0000
SIZES = {1_000: 21, 100_000: 7, 10_000_000: 3}
"""How many instructions, and how often each is measured."""

_ROWS = [row for row in INSTRUCTIONS if row.format in {Format.R, Format.I, Format.SHIFT64, Format.SHIFT32}]


def line_of_code(instructions: int, seed: int) -> bytes:
    """Return so many words: random arithmetic, and a wfi at the end."""
    draw = random.Random(seed)
    words = [_word(draw, row) for row in draw.choices(_ROWS, k=instructions - 1)]
    return b"".join(word.to_bytes(4, "little") for word in [*words, BY_NAME["wfi"].match])


def _word(draw: random.Random, row: Instruction) -> int:
    word = row.match | draw.randrange(32) << RD_AT | draw.randrange(32) << RS1_AT
    if row.format is Format.R:
        return word | draw.randrange(32) << RS2_AT
    immediate = IMMEDIATES[row.format]
    return word | immediate.place(draw.randint(immediate.lowest, immediate.highest))


async def measure() -> Table:
    """Measure every size."""
    table = Table(
        "instructions", "vmmd ms", "Unicorn ms", "vmmd : Unicorn", title="to the exit over fresh code; medians"
    )
    limits = Limits(guest_memory_bytes=1 << 30, vms=1 << 10, vcpus_per_vm=1)
    system = System(engine="translated", cache_dir=Path.home() / ".cache" / "vmmd", workers=2, limits=limits)
    for instructions, runs in SIZES.items():
        vmmd, unicorn = [], []
        for seed in range(runs):
            code = line_of_code(instructions, seed)
            vmmd.append(await _on_vmmd(system, code))
            unicorn.append(_on_unicorn(code))
        ours, theirs = statistics.median(vmmd), statistics.median(unicorn)
        table.add_row(f"{instructions:,}", f"{ours * 1e3:.2f}", f"{theirs * 1e3:.2f}", f"{ours / theirs:.2f}")
    await system.close()
    return table


def _size(code: bytes) -> int:
    return -(-len(code) // PAGE_SIZE) * PAGE_SIZE


async def _on_vmmd(system: System, code: bytes) -> float:
    vm = system.create_vm()
    base = await vm.map_host_memory(_size(code))
    await vm.set_user_memory_region(0, 0, ORIGIN, _size(code), base)
    await vm.write_guest_memory(ORIGIN, code)
    vcpu = await vm.create_vcpu(0)
    await vcpu.set_regs({"pc": ORIGIN})
    start = time.perf_counter()
    await vcpu.run()
    seconds = time.perf_counter() - start
    await system.destroy_vm(vm.id)
    return seconds


def _on_unicorn(code: bytes) -> float:
    machine = Uc(UC_ARCH_RISCV, UC_MODE_RISCV64)
    machine.mem_map(ORIGIN, _size(code))
    machine.mem_write(ORIGIN, code)
    start = time.perf_counter()
    machine.emu_start(ORIGIN, ORIGIN + len(code) - 4)
    return time.perf_counter() - start
