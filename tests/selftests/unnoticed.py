"""Scenarios in which slots change beside and under what vCPUs use, without a hold, and nothing is lost by that.

Each makes a VM, makes about as many changes as it is told, asserts as it goes, and returns the VM.
"""

from __future__ import annotations

from tests.selftests.guest import add_memory, counted_on, let_run, lines, load, pages_of, served, share
from tests.selftests.old_places import DATA, FAR, POISONED, VCPUS, WORDS_BYTES
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

COUNTING_PAGES = 32
COUNTING = f"""
    # Counts its passes in its own word of every page, and looks that nobody else did.
    slli t0, s2, 3
    add s0, s0, t0
    li s4, {PAGE_SIZE}
    li s5, 0
pass:
    mv a0, s0
    li a1, {COUNTING_PAGES}
page:
    ld t0, 0(a0)
    bne t0, s5, poisoned
    addi t0, t0, 1
    sd t0, 0(a0)
    add a0, a0, s4
    addi a1, a1, -1
    bnez a1, page
    addi s5, s5, 1
    sd s5, 0(s1)
    j pass
    {POISONED}
    j poisoned
"""


async def unrelated(system: System, changes: int) -> Vm:
    """Slots come, move, change and go beside the guests' memory, and its log goes on and off: nobody exits or loses."""
    vm = system.create_vm()
    await load(vm, COUNTING, vcpus=VCPUS, s0=DATA)
    size = COUNTING_PAGES * PAGE_SIZE
    base = await add_memory(vm, 1, DATA, COUNTING_PAGES)
    other = await vm.map_host_memory(4 * PAGE_SIZE)
    log = KVM_MEM_LOG_DIRTY_PAGES
    regions = (
        (2, 0, DATA - PAGE_SIZE, PAGE_SIZE, other),  # a slot right below
        (3, log, DATA + size, 2 * PAGE_SIZE, other),  # one right behind
        (1, log, DATA, size, base),  # the guests' own log
        (3, 0, DATA + size + PAGE_SIZE, 2 * PAGE_SIZE, other),  # a move, with the flags
        (2, 0, 0, 0, 0),
        (3, 0, DATA + size, 2 * PAGE_SIZE, other),
        (1, 0, DATA, size, base),
        (3, 0, 0, 0, 0),
    )
    async with served(vm):
        for turn in range(changes // len(regions)):
            for region in regions:
                await vm.set_user_memory_region(*region)
            mapped = await vm.map_host_memory(PAGE_SIZE)
            await vm.unmap_host_memory(mapped, PAGE_SIZE)
            await let_run(vm, turn)
        await counted_on(vm)
    assert vm.stats().exits == {}
    assert await lines(vm, 1) == [0] * VCPUS, "a vCPU lost a store or found another's"
    return vm


LOGGED_PAGES, PHASES = 64, 4
LOGGED = f"""
    # Once for each epoch, the shared word, at once or at a moment of its own: loads from every page, and stores the
    # epoch to its word in every fourth; neither vCPUs that run side by side nor epochs that follow each other store to
    # the same. The line says which epoch is done.
    slli t0, s2, 3
    add s0, s0, t0
    li s4, {PAGE_SIZE}
    li s5, 0
    li s8, 6364136223846793005
    mv s7, s2
epoch:
    ld t0, 0(s3)
    beq t0, s5, epoch
    mv s5, t0
    andi s6, s5, {PHASES - 1}
    mul s7, s7, s8
    addi s7, s7, 1
    srli t0, s7, 50
    andi t1, s5, {2 * PHASES}
    beqz t1, 2f
1:  addi t0, t0, -1
    bgtz t0, 1b
2:  mv a0, s0
    li a1, 0
    li a2, {LOGGED_PAGES}
page:
    ld t0, 0(a0)
    add t0, a1, s2
    andi t0, t0, {PHASES - 1}
    bne t0, s6, 3f
    sd s5, 0(a0)
3:  add a0, a0, s4
    addi a1, a1, 1
    bne a1, a2, page
    sd s5, 0(s1)
    j epoch
"""


class Account:
    """What a logged slot's pages held when the log named them, and what the next log still has to name."""

    def __init__(self, vm: Vm, userspace_addr: int) -> None:
        self._vm = vm
        self._at = userspace_addr
        self._copies: list[bytes] = [bytes(WORDS_BYTES)] * LOGGED_PAGES
        self._done = [0] * VCPUS
        self.due: set[int] = set()

    async def settle(self, epoch: int) -> None:
        """Fetch the log and compare it with what the pages hold after it.

        A page is stored to once an epoch, so a bit that is lost does not come back with the next store.
        """
        done = await lines(self._vm)
        dirty = pages_of(await self._vm.get_dirty_log(1))
        contents = await self._vm.read_host_memory(self._at, LOGGED_PAGES * PAGE_SIZE)
        # What a vCPU had done before the last log was taken is in that log, and in no other.
        stored_to = {
            (number - index) % PHASES for index in range(VCPUS) for number in range(self._done[index] + 1, epoch + 1)
        }
        self._done = done
        invented = {page for page in dirty if page % PHASES not in stored_to}
        assert not invented, f"bits of pages that nobody has stored to since the last log: {sorted(invented)}"
        assert self.due <= dirty, f"lost bits of pages {sorted(self.due - dirty)}"
        self.due = set()
        for page, copy in enumerate(self._copies):
            now = contents[page * PAGE_SIZE : page * PAGE_SIZE + WORDS_BYTES]
            if page in dirty:
                self._copies[page] = now
            elif now != copy:
                # Stored after the log was taken.
                self.due.add(page)


async def dirty_bits(system: System, changes: int) -> Vm:
    """A logged slot moves, and others come and go around it and over its memory: no bit is lost and none invented."""
    vm = system.create_vm()
    await load(vm, LOGGED, vcpus=VCPUS, s0=DATA)
    size, log = LOGGED_PAGES * PAGE_SIZE, KVM_MEM_LOG_DIRTY_PAGES
    base = await add_memory(vm, 1, DATA, LOGGED_PAGES, log)
    groups = (
        ((2, log, FAR, size, base),),  # an alias, through which nobody stores
        ((3, 0, DATA + size, PAGE_SIZE, base), (3, 0, 0, 0, 0)),
        ((1, log, FAR + size, size, base), (1, log, DATA, size, base)),  # a move: stores fall through, and bits stay
        ((2, 0, FAR, size, base), (2, log, FAR, size, base)),
        ((2, 0, 0, 0, 0),),
    )
    account, epoch, made = Account(vm, base), 0, vm.generation
    async with served(vm):
        while vm.generation - made < changes:
            epoch += 1
            group = groups[(epoch - 1) % len(groups)]
            if vm.memslots.get(2) is not None:
                assert pages_of(await vm.get_dirty_log(2)) == set(), "bits in an alias that nobody stores through"
            if epoch // len(groups) % 2:
                await share(vm, epoch)
            for region in group:
                await vm.set_user_memory_region(*region)
            await share(vm, epoch)
            await let_run(vm, epoch)
            await account.settle(epoch)
    for _ in range(2):
        await account.settle(epoch)
    assert not account.due
    assert set(vm.stats().exits) <= {"KVM_EXIT_MMIO"}
    return vm
