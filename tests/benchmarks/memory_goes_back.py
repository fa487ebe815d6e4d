"""Host memory that goes while guests use it: lost pages are EFAULT, and what nobody reaches is the system's again.

`python -m tests.benchmarks.memory_goes_back` makes 1,000 VMs of 64 MiB one after another, every page of them touched,
and thousands of unmaps of pages that vCPUs hammer; it prints what was left of the process's resident memory.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import random
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.kvm.guest import errno_of, progress, until
from tests.selftests.guest import add_memory, lines, load, served
from tests.selftests.old_places import POISON, POISON_HALF, POISON_PAGE, POISONED, look_at
from vmmd.kvm.exits import HypercallExit, MmioExit
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

VMS, UNMAPS = 1000, 10_000
VM_BYTES = 64 << 20
LIMITS = Limits(guest_memory_bytes=VM_BYTES + (1 << 20), vms=2, vcpus_per_vm=4)
"""Room for one VM of that size and no second: what one keeps, the next one lacks."""

DATA, HOLE = 0x4000_0000, 0x8080_0000

TOUCH_ALL = f"""
    # Stores to every page of s4 bytes from s0 on, tells userspace, and goes on to s5: to load from there for ever.
    add s4, s4, s0
    li t0, {PAGE_SIZE}
1:  sd s4, 0(s0)
    add s0, s0, t0
    bltu s0, s4, 1b
    ecall
2:  ld t1, 0(s5)
    j 2b
"""


def resident_bytes() -> int:
    """Return how much memory of the process is resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def touched_vm(system: System, size: int, *, flags: int = 0, sparse: bool = False) -> tuple[Vm, int]:
    """Make a VM whose guest has stored to each page of a slot, and return it with the slot's userspace address."""
    vm = system.create_vm()
    await load(vm, TOUCH_ALL, s0=DATA, s4=size, s5=HOLE)
    base = await add_memory(vm, 1, DATA, size // PAGE_SIZE, flags, sparse=sparse)
    assert isinstance(await vm.vcpus[0].run(), HypercallExit)
    return vm, base


async def end_at_rest(system: System, vm: Vm) -> None:
    """Destroy a VM whose vCPU is outside KVM_RUN."""
    await system.destroy_vm(vm.id)


async def end_with_a_pending_exit(system: System, vm: Vm) -> None:
    """Destroy a VM whose vCPU waits for the answer to a load."""
    assert isinstance(await vm.vcpus[0].run(), MmioExit)
    await system.destroy_vm(vm.id)


async def end_running(system: System, vm: Vm, *, held: bool = False) -> None:
    """Destroy a VM whose vCPU is in guest mode, or parked in a hold in which its memory was unmapped."""
    await vm.vcpus[0].set_regs({"s5": DATA})
    run = asyncio.create_task(errno_of(vm.vcpus[0].run()))
    await progress(vm.vcpus[0])
    if held:
        await vm.kick_all_running_vcpus("last", wait_ms=30_000)
        slot = vm.memslots.get(1)
        assert slot is not None
        await vm.unmap_host_memory(slot.userspace_addr, slot.memory_size // 2, hold="last")
    await system.destroy_vm(vm.id)
    assert await run == errno.ECANCELED


async def end_held(system: System, vm: Vm) -> None:
    """Destroy a VM inside a hold."""
    await end_running(system, vm, held=True)


ENDS = (end_at_rest, end_with_a_pending_exit, end_running, end_held)


@dataclass(frozen=True, slots=True)
class Lives:
    """How much was resident before the first VM, behind the last, and at most with one alive."""

    before: int
    after: int
    most: int


async def one_after_another(system: System, vms: int, *, size: int = VM_BYTES, sparse: bool = False) -> Lives:
    """Make VMs, touch all of their memory, and destroy them in every state; all of it is back after each."""
    for end in ENDS:
        # The interpreter's own memory grows with what is done for the first time.
        vm, _ = await touched_vm(system, size, flags=KVM_MEM_LOG_DIRTY_PAGES, sparse=sparse)
        await end(system, vm)
        del vm
    before = most = resident_bytes()
    for turn in range(vms):
        # Every end with a log and without one.
        flags = KVM_MEM_LOG_DIRTY_PAGES if turn // len(ENDS) % 2 else 0
        vm, _ = await touched_vm(system, size, flags=flags, sparse=sparse)
        most = max(most, resident_bytes())
        await ENDS[turn % len(ENDS)](system, vm)
        del vm
        assert system.guest_memory_bytes == 0, "something still holds memory of a VM that was destroyed"
    return Lives(before, resident_bytes(), most)


WINDOW_PAGES = 8
VCPUS = 3
HAMMER = f"""
    # Goes over its own word of every page of the window, and counts each in its line. The last vCPU's words lie over
    # the borders of pages.
    li s4, {PAGE_SIZE}
    li s6, {WINDOW_PAGES}
    slli t0, s2, 3
    add s0, s0, t0
    li t0, {VCPUS - 1}
    bne s2, t0, window
    li s0, {DATA + PAGE_SIZE - 4}
    addi s6, s6, -1
window:
    mv a0, s0
    mv a1, s6
page:
    ld t0, 0(a0)
    {look_at("t0")}
    addi t0, t0, 1
    sd t0, 0(a0)
    addi s5, s5, 1
    sd s5, 0(s1)
    add a0, a0, s4
    addi a1, a1, -1
    bnez a1, page
    j window
    {POISONED}
    j window
"""


@dataclass(slots=True)
class Unmaps:
    """How many unmaps there were, and how many KVM_RUNs ended with EFAULT."""

    calls: int = 0
    lost_pages: int = 0


class Window:
    """Host memory under a slot that vCPUs hammer. It comes back to its address once all of it is unmapped."""

    def __init__(self, vm: Vm, userspace_addr: int, *, sparse: bool) -> None:
        self.size = WINDOW_PAGES * PAGE_SIZE
        self.calls = 0
        self._vm = vm
        self._at = userspace_addr
        self._sparse = sparse

    async def unmap(self, first: int, npages: int) -> None:
        """Unmap pages; those that are unmapped already do not matter."""
        await self._vm.unmap_host_memory(self._at + first * PAGE_SIZE, npages * PAGE_SIZE)
        self.calls += 1

    async def map(self) -> None:
        """Map all of it, of which nothing is mapped."""
        assert await self._vm.map_host_memory(self.size, sparse=self._sparse) == self._at


async def unmap_under_guests(system: System, unmaps: int, *, sparse: bool = False, seed: int = 1) -> Unmaps:
    """Unmap pages that vCPUs hammer, whole, in part and page by page, and map them again, until there were so many.

    Once all of it is gone, each vCPU gets EFAULT and comes no further, and another VM's memory, which the system may
    well put in the same place, stays as it is.
    """
    rng = random.Random(seed)
    vm, other = system.create_vm(), system.create_vm()
    await load(vm, HAMMER, vcpus=VCPUS, s0=DATA, s11=POISON_HALF)
    window = Window(vm, await add_memory(vm, 1, DATA, WINDOW_PAGES, sparse=sparse), sparse=sparse)
    async with served(vm) as guests:
        while window.calls < unmaps:
            pieces = rng.choice((1, 2, WINDOW_PAGES))
            for first in range(0, WINDOW_PAGES, WINDOW_PAGES // pieces):
                await window.unmap(first, WINDOW_PAGES // pieces)
            if pieces == 2:
                # Over a range of which nothing is left.
                await window.unmap(rng.randrange(WINDOW_PAGES), 1)
            counts = await lines(vm)
            bait = await other.map_host_memory(window.size)
            await other.write_host_memory(bait, POISON_PAGE * WINDOW_PAGES)
            lost = [guest.lost_pages for guest in guests]
            await until(
                lambda lost=lost: all(guest.lost_pages > then for guest, then in zip(guests, lost, strict=True))  # type: ignore[misc]
            )
            # A vCPU that was kicked between a store and its count still counts it.
            assert all(now <= then + 1 for now, then in zip(await lines(vm), counts, strict=True))
            assert await other.read_host_memory(bait, window.size) == POISON * (window.size // 8)
            await other.unmap_host_memory(bait, window.size)
            await window.map()
            await progress(vm.vcpus[rng.randrange(VCPUS)])
    assert await lines(vm, 1) == [0] * VCPUS, "a vCPU loaded from another VM's memory"
    assert vm.stats().exits == {}
    for each in (vm, other):
        await system.destroy_vm(each.id)
    return Unmaps(window.calls, sum(guest.lost_pages for guest in guests))


async def measure(vms: int = VMS, unmaps: int = UNMAPS) -> Table:
    """Make so many VMs and unmaps."""
    table = Table("what", "how many", "seconds", "resident before", "with one", "after", title="MiB of the process")
    system = System(engine="compiled", cache_dir=Path.home() / ".cache" / "vmmd", workers=2, limits=LIMITS)
    start = time.perf_counter()
    lives = await one_after_another(system, vms)
    seconds = time.perf_counter() - start
    sizes = [f"{size / (1 << 20):.1f}" for size in (lives.before, lives.most, lives.after)]
    table.add_row("VMs of 64 MiB, every page touched", f"{vms:,}", f"{seconds:.1f}", *sizes)
    before, start = resident_bytes(), time.perf_counter()
    made = await unmap_under_guests(system, unmaps)
    seconds = time.perf_counter() - start
    sizes = [f"{size / (1 << 20):.1f}" for size in (before, resident_bytes())]
    table.add_row(f"unmaps under {VCPUS} vCPUs", f"{made.calls:,}", f"{seconds:.1f}", sizes[0], "", sizes[1])
    table.caption = f"{made.lost_pages:,} KVM_RUNs ended with EFAULT"
    await system.close()
    return table


def main() -> None:
    """Make as many as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory_goes_back", description=__doc__)
    parser.add_argument("--vms", type=int, default=VMS, help=f"by default {VMS:,}")
    parser.add_argument("--unmaps", type=int, default=UNMAPS, help=f"by default {UNMAPS:,}")
    arguments = parser.parse_args()
    Console().print(asyncio.run(measure(arguments.vms, arguments.unmaps)))


if __name__ == "__main__":
    main()
