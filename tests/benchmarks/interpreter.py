"""How many guest instructions a second the engines make, loop by loop."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from rich.table import Table

from tests.isa.machine import bare_machine
from tests.isa.turns import run
from vmmd.isa.assembler import assemble
from vmmd.isa.engine import CompiledEngine, Engine, EvaluatedEngine

RUNS = 5
LOOPS = {
    "arithmetic": """
            li a1, 1
        1:  add a0, a0, a1
            xor a2, a0, a1
            slli a3, a2, 3
            sub a4, a3, a0
            addi a1, a1, 1
            bnez a1, 1b
        """,
    "loads and stores": """
            li a2, 0x8000
        2:  li a1, 0x4000
        1:  ld a3, 0(a1)
            addi a3, a3, 1
            sd a3, 0(a1)
            addi a1, a1, 8
            bltu a1, a2, 1b
            j 2b
        """,
    "calls": """
        1:  jal ra, 2f
            j 1b
        2:  addi a0, a0, 1
            ret
        """,
}


def speed(engine: Engine, source: str, instructions: int) -> float:
    """Return the median speed of a loop, in million instructions a second."""
    code = assemble(source).code
    seconds = []
    for _ in range(RUNS):
        machine = bare_machine(engine, code)
        machine.context.record.budget = instructions
        start = time.perf_counter()
        run(engine, machine.context, machine.view)
        seconds.append(time.perf_counter() - start)
    return instructions / statistics.median(seconds) / 1e6


async def measure() -> Table:
    """Measure every loop on both engines."""
    compiled, evaluated = CompiledEngine(Path.home() / ".cache" / "vmmd"), EvaluatedEngine()
    table = Table("loop", "compiled", "evaluated", title="million guest instructions a second, one vCPU")
    for name, source in LOOPS.items():
        table.add_row(name, f"{speed(compiled, source, 50_000_000):.0f}", f"{speed(evaluated, source, 20_000):.3f}")
    return table
