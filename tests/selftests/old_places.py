"""Scenarios in which memory that vCPUs hammer is taken away, one change after another, without a hold.

Old places are turned to other use as soon as the call returned: they get poison, which the guests look for in all that
they load and the host looks for when the place's turn comes again, so that one late access shows. Each scenario makes
a VM, makes about as many changes as it is told, asserts as it goes, and returns the VM.
"""

from __future__ import annotations

import struct

from tests.selftests.guest import add_memory, let_run, lines, load, served
from vmmd.isa.assembler import assemble
from vmmd.kvm.exits import InternalErrorExit
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

VCPUS = 3
DATA, FAR = 0x4000_0000, 0x8080_9000
"""Addresses whose translations a vCPU keeps side by side, and beside its code's."""
POISON_HALF = 0xDBDB_DBDB
POISON = struct.pack("<2I", POISON_HALF, POISON_HALF)
POISON_PAGE = POISON * (PAGE_SIZE // 8)

POISONED = """
poisoned:
    ld t0, 8(s1)
    addi t0, t0, 1
    sd t0, 8(s1)
"""
"""The second word of a vCPU's line counts what it must not find."""


def look_at(register: str) -> str:
    """Go to `poisoned` where either half of a register is poison; `s11` is `POISON_HALF`."""
    return f"""
    srli t1, {register}, 32
    beq t1, s11, poisoned
    slli t1, {register}, 32
    srli t1, t1, 32
    beq t1, s11, poisoned
    """


REPLACED = f"""
    # Stores a count to its own word and looks at what was there. The last vCPU's lies over the border of two slots.
    slli t0, s2, 3
    add s0, s0, t0
    li t0, {VCPUS - 1}
    bne s2, t0, again
    li s0, {DATA + PAGE_SIZE - 4}
again:
    ld t0, 0(s0)
    {look_at("t0")}
    sd s4, 0(s0)
    addi s4, s4, 1
    j again
    {POISONED}
    j again
"""


async def replaced(system: System, changes: int) -> Vm:
    """Memory is deleted and other memory put in its place: nobody reads or writes the old once DELETE returned."""
    vm = system.create_vm()
    await load(vm, REPLACED, vcpus=VCPUS, s0=DATA, s11=POISON_HALF)
    backings = []
    for slot in (0, 1):
        backings.append(
            [await add_memory(vm, 1 + slot, DATA + slot * PAGE_SIZE, 1), await vm.map_host_memory(PAGE_SIZE)]
        )
        await vm.write_host_memory(backings[slot][1], POISON_PAGE)
    async with served(vm):
        for turn in range(changes // 2):
            slot = turn % 2
            old, new = backings[slot]
            await vm.set_user_memory_region(1 + slot, 0, 0, 0, 0)
            await vm.write_host_memory(old, POISON_PAGE)
            assert await vm.read_host_memory(new, PAGE_SIZE) == POISON_PAGE, "a vCPU stored to memory of a gone slot"
            await vm.write_host_memory(new, bytes(PAGE_SIZE))
            await vm.set_user_memory_region(1 + slot, 0, DATA + slot * PAGE_SIZE, PAGE_SIZE, new)
            backings[slot].reverse()
            await let_run(vm, turn)
    for _, old in backings:
        assert await vm.read_host_memory(old, PAGE_SIZE) == POISON_PAGE
    assert await lines(vm, 1) == [0] * VCPUS, "a vCPU loaded from memory of a gone slot"
    assert set(vm.stats().exits) <= {"KVM_EXIT_MMIO"}
    return vm


MOVED = f"""
    # Stores a count to its own words at both places, and looks at what was there.
    slli t0, s2, 3
    add s0, s0, t0
    add s4, s4, t0
again:
    ld t0, 0(s0)
    {look_at("t0")}
    sd s5, 0(s0)
    ld t0, 0(s4)
    {look_at("t0")}
    sd s5, 0(s4)
    addi s5, s5, 1
    j again
    {POISONED}
    j again
"""

WORDS_BYTES = 8 * VCPUS


class Words:
    """The words that vCPUs store to through one guest-physical place, in the memory of a slot that may lie there."""

    def __init__(self, vm: Vm, userspace_addr: int) -> None:
        self._vm = vm
        self._at = userspace_addr

    async def bring_in(self) -> None:
        """Before a slot comes: nobody can have reached them while it was away."""
        found = await self._vm.read_host_memory(self._at, WORDS_BYTES)
        assert found == POISON * VCPUS, f"a vCPU stored through a place that the slot had left: {found.hex()}"
        await self._vm.write_host_memory(self._at, bytes(WORDS_BYTES))

    async def leave(self) -> None:
        """After a slot has left: nobody reaches them any more."""
        await self._vm.write_host_memory(self._at, POISON * VCPUS)


async def moved(system: System, changes: int) -> Vm:
    """Two slots exchange their places by way of a third: nobody reaches a slot where it was, once MOVE returned."""
    vm = system.create_vm()
    second_words = PAGE_SIZE // 2
    await load(vm, MOVED, vcpus=VCPUS, s0=DATA, s4=FAR + second_words, s11=POISON_HALF)
    gpas, spare = (DATA, FAR), FAR + (1 << 30)
    bases = [await add_memory(vm, 1 + index, gpas[index], 1) for index in range(2)]
    words = [[Words(vm, base), Words(vm, base + second_words)] for base in bases]
    await words[0][1].leave()
    await words[1][0].leave()

    async def move(slot: int, gpa: int) -> None:
        await vm.set_user_memory_region(1 + slot, 0, gpa, PAGE_SIZE, bases[slot])

    async with served(vm):
        for turn in range(changes // 3):
            # The slot that is at the first place goes to the second, and the other way round.
            here, there = turn % 2, (turn + 1) % 2
            await move(there, spare)
            await words[there][1].leave()
            await words[here][1].bring_in()
            await move(here, gpas[1])
            await words[here][0].leave()
            await words[there][0].bring_in()
            await move(there, gpas[0])
            await let_run(vm, turn)
    assert await lines(vm, 1) == [0] * VCPUS, "a vCPU loaded through a place that the slot had left"
    assert set(vm.stats().exits) <= {"KVM_EXIT_MMIO"}
    return vm


async def slid(system: System, changes: int) -> Vm:
    """A slot moves by a page over its own old range: nobody reaches the page that was there, and nobody exits."""
    vm = system.create_vm()
    await load(vm, MOVED, vcpus=VCPUS, s0=DATA, s4=DATA + PAGE_SIZE // 2, s11=POISON_HALF)
    base = await add_memory(vm, 1, DATA - PAGE_SIZE, 3)
    # Page 1 is at DATA while the slot begins a page before it, and page 2 while it begins two pages before.
    words = [[Words(vm, base + page * PAGE_SIZE + at) for at in (0, PAGE_SIZE // 2)] for page in (1, 2)]
    for each in words[1]:
        await each.leave()
    async with served(vm):
        for turn in range(changes):
            old, new = words[turn % 2], words[(turn + 1) % 2]
            for each in new:
                await each.bring_in()
            await vm.set_user_memory_region(1, 0, DATA - (1 + (turn + 1) % 2) * PAGE_SIZE, 3 * PAGE_SIZE, base)
            for each in old:
                await each.leave()
            await let_run(vm, turn)
    assert await lines(vm, 1) == [0] * VCPUS
    assert vm.stats().exits == {}
    return vm


PROGRAM = "1: addi s5, s5, 1\n nop\n nop\n j 1b\n"
STRANGE_CODE = assemble("addi s9, s9, 1\n" * (PAGE_SIZE // 4)).code


async def code_replaced(system: System, changes: int) -> Vm:
    """Code is deleted and other memory with the same code put in its place: nobody executes what the old becomes."""
    vm = system.create_vm()
    # Slot 0's own page of code is not used: this scenario's lies where it can be replaced.
    await load(vm, "nop", vcpus=VCPUS, s9=0)
    old, new = await add_memory(vm, 1, DATA, 1), await vm.map_host_memory(PAGE_SIZE)
    await vm.write_host_memory(old, assemble(PROGRAM).code)
    for vcpu in vm.vcpus.values():
        await vcpu.set_regs({"pc": DATA})
    async with served(vm, retries=lambda left: isinstance(left, InternalErrorExit)):
        for turn in range(changes // 2):
            await vm.set_user_memory_region(1, 0, 0, 0, 0)
            await vm.write_host_memory(old, STRANGE_CODE)
            await vm.write_host_memory(new, assemble(PROGRAM).code)
            await vm.set_user_memory_region(1, 0, DATA, PAGE_SIZE, new)
            old, new = new, old
            await let_run(vm, turn)
    for vcpu in vm.vcpus.values():
        regs = await vcpu.get_regs()
        assert (regs["x25"], regs["pc"] - DATA in range(16)) == (0, True), "a vCPU executed code of a gone slot"
    assert set(vm.stats().exits) <= {"KVM_EXIT_INTERNAL_ERROR"}
    return vm
