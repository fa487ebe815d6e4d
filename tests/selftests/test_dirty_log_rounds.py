"""dirty_log_test: guests write the round's number to random pages, and every round's log is right about every page.

For each page and round the kernel's test demands: where the bit is set, the page holds this round's number or the one
before; where it is clear, it holds no later number than this round's, and where it holds this round's, the bit is set
in the next round. So no store goes without its bit, and no bit stands for an old store.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.selftests.guest import add_memory, counted_on, first_words, load, pages_of, served, share
from vmmd.kvm.uapi import (
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
)
from vmmd.kvm.vm import Vm
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

ROUNDS = 32
VCPUS = 2
DATA, NPAGES = 1 << 30, 2048 + 3
"""Not a whole number of 64-bit words of the log."""
LOG_BYTES = (NPAGES + 63) // 64 * 8
STORES_A_PASS = 256
WINDOW, WINDOW_STEP = 512, 97
"""Pages that a round stores to, so that others stay clear, and how far the next round's lie beyond them."""

RANDOM_PAGES = f"""
    # Writes the shared word to random pages of the window that it stands for; the line holds the passes.
    addi s4, s2, 1
    li s5, {WINDOW}
    li s7, {WINDOW_STEP}
    li s8, {NPAGES - WINDOW + 1}
pass:
    li s6, {STORES_A_PASS}
page:
    ld t1, 0(s3)
    mul t2, t1, s7
    remu t2, t2, s8
    slli t0, s4, 13
    xor s4, s4, t0
    srli t0, s4, 7
    xor s4, s4, t0
    slli t0, s4, 17
    xor s4, s4, t0
    remu t0, s4, s5
    add t0, t0, t2
    slli t0, t0, 12
    add t0, t0, s0
    sd t1, 0(t0)
    addi s6, s6, -1
    bnez s6, page
    ld t0, 0(s1)
    addi t0, t0, 1
    sd t0, 0(s1)
    j pass
"""


@dataclass
class Ledger:
    """What the log has to tell."""

    due: set[int] = field(default_factory=set)
    seen: int = 0
    clear: int = 0

    def check(self, number: int, log: bytes, contents: list[int]) -> None:
        """Compare a round's log with what the pages held afterwards."""
        assert len(log) == LOG_BYTES
        dirty = pages_of(log)
        assert all(page < NPAGES for page in dirty), "a bit behind the slot's end"
        assert self.due <= dirty, f"round {number} misses {sorted(self.due - dirty)}"
        for page, value in enumerate(contents):
            if page in dirty:
                assert value in {number, number - 1}, f"page {page} is stale: {value} in round {number}"
            else:
                assert value <= number
        self.due = {page for page, value in enumerate(contents) if value == number and page not in dirty}
        self.seen += len(dirty)
        self.clear += NPAGES - len(dirty)


@pytest.mark.parametrize(
    "mode",
    [0, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET],
    ids=["plain", "clear", "clear, initially set"],
)
async def test_every_rounds_log_is_right_about_every_page(vm: Vm, mode: int) -> None:
    await vm.enable_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, [mode])
    await load(vm, RANDOM_PAGES, vcpus=VCPUS, s0=DATA)
    await add_memory(vm, 1, DATA, NPAGES, KVM_MEM_LOG_DIRTY_PAGES)
    ledger = Ledger()

    async def fetch(turn: int) -> bytes:
        log = await vm.get_dirty_log(1)
        if mode:
            # In one call to the odd end, and in two that meet on a whole word.
            middle = 0 if turn % 2 else NPAGES // 2 & -64
            if middle:
                await vm.clear_dirty_log(1, 0, middle, log[: middle // 8])
            await vm.clear_dirty_log(1, middle, NPAGES - middle, log[middle // 8 :])
        return log

    await share(vm, 1)
    async with served(vm):
        for number in range(1, ROUNDS + 1):
            await share(vm, number)
            # Whoever had read the number before has stored it by then, and has begun a pass with this one.
            await counted_on(vm)
            log = await fetch(number)
            ledger.check(number, log, await first_words(vm, DATA, NPAGES))
    ledger.check(ROUNDS + 1, await fetch(0), await first_words(vm, DATA, NPAGES))
    assert not pages_of(await fetch(0))
    assert vm.stats().exits == {}
    # Each round had pages of both kinds.
    assert ledger.seen > ROUNDS * WINDOW // 4
    assert ledger.clear > ROUNDS * WINDOW
