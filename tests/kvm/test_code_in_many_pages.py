"""A guest whose code lies in more pages than can be watched at once, writes to all of them, and changes its code."""

from __future__ import annotations

import pytest

from tests.kvm.guest import CODE, vcpu_at
from vmmd.isa.assembler import assemble
from vmmd.isa.context import JUMPS, WATCHED_PAGES
from vmmd.isa.engine import ENGINES
from vmmd.kvm.exits import HltExit
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

PAGES = WATCHED_PAGES + 12
EVERY = 4
"""How many functions lie between two that are changed."""

FUNCTION = """
    addi a2, a2, 1
    sw a2, 2000(s3)
    ret
"""
STRIDE = PAGE_SIZE + 12
"""From one function to the next: each in a page of its own, with a place of its own in the jump cache."""

MAIN = f"""
pass:
    mv s3, s1
    li s2, {PAGES}
each:
    jalr ra, 0(s3)
    add s3, s3, s4
    addi s2, s2, -1
    bnez s2, each
    sw s6, 0(s5)
    mv s3, s5
    jalr ra, 0(s3)
    add s5, s5, s7
    addi s0, s0, -1
    bnez s0, pass
    wfi
"""


@pytest.mark.parametrize("engine_name", ENGINES, indirect=True)
async def test_what_runs_is_what_was_written_last_in_whichever_page(vm: Vm) -> None:
    functions = CODE + PAGE_SIZE
    jumps = {(functions + index * STRIDE >> 2) % JUMPS for index in range(PAGES)}
    assert len(jumps) == PAGES
    size = functions + (PAGES + 1) * PAGE_SIZE
    base = await vm.map_host_memory(size)
    await vm.set_user_memory_region(0, 0, 0, size, base)
    await vm.write_guest_memory(CODE, assemble(MAIN, CODE).code)
    for index in range(PAGES):
        await vm.write_guest_memory(functions + index * STRIDE, assemble(FUNCTION).code)
    passes = PAGES // EVERY
    changed = int.from_bytes(assemble("addi a2, a2, 100").code, "little")
    registers = {"s0": passes, "s1": functions, "s4": STRIDE, "s5": functions, "s6": changed, "s7": EVERY * STRIDE}
    vcpu = await vcpu_at(vm, **registers)
    assert await vcpu.run() == HltExit()
    # Pass by pass: all functions, of which so many have been changed, and the one that is changed then.
    expected = sum(PAGES + 99 * already + 100 for already in range(passes))
    assert (await vcpu.get_regs())["x12"] == expected
