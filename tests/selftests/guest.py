"""Guests for the scenarios, and the loop around KVM_RUN that stands for their userspace.

Slot 0 is the scenario's own: the program, a page of words that all share, and a page with a cache line of words for
each vCPU. Every vCPU starts with `s1` at its own line, `s2` its index and `s3` at the shared words. The slot lies where
a vCPU keeps its translation in another place than those of the scenarios' memory, so that these are not found anew
each time, and one that is kept too long would show.
"""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.kvm.guest import progress, until
from vmmd.isa.assembler import assemble
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import Exit, HypercallExit, MmioExit
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

OWN = 0x22_0000
CODE, SHARED, LINES = OWN, OWN + 0x1000, OWN + 0x2000
OWN_BYTES = 0x3000
LINE_BYTES = 64

SWEEP = """
    # Over s5 words that lie s4 bytes apart from s0 on: each has to hold s6 and gets s7. s8 counts those that did not.
sweep:
    mv t0, s0
    mv t1, s5
1:  ld t2, 0(t0)
    beq t2, s6, 2f
    addi s8, s8, 1
2:  sd s7, 0(t0)
    add t0, t0, s4
    addi t1, t1, -1
    bnez t1, 1b
    ecall
    j sweep
"""
"""One sweep over memory for each KVM_RUN; the hypercall at its end is the message that it is done."""


async def load(vm: Vm, source: str, *, vcpus: int = 1, **regs: int) -> int:
    """Give the VM slot 0 with a program and vCPUs that begin it; return the userspace address of the slot."""
    base = await vm.map_host_memory(OWN_BYTES)
    await vm.set_user_memory_region(0, 0, OWN, OWN_BYTES, base)
    await vm.write_guest_memory(CODE, assemble(source, CODE).code)
    for index in range(vcpus):
        vcpu = await vm.create_vcpu(index)
        own = {"pc": CODE, "s1": LINES + index * LINE_BYTES, "s2": index, "s3": SHARED}
        await vcpu.set_regs(own | regs)
    return base


async def add_memory(
    vm: Vm, slot: int, guest_phys_addr: int, npages: int, flags: int = 0, *, sparse: bool = False
) -> int:
    """Set a slot over fresh memory and return its userspace address."""
    base = await vm.map_host_memory(npages * PAGE_SIZE, sparse=sparse)
    await vm.set_user_memory_region(slot, flags, guest_phys_addr, npages * PAGE_SIZE, base)
    return base


async def words(vm: Vm, at: int, count: int = 1) -> tuple[int, ...]:
    """Read 64-bit words of guest memory."""
    return struct.unpack(f"<{count}Q", await vm.read_guest_memory(at, 8 * count))


async def lines(vm: Vm, word: int = 0) -> list[int]:
    """Read a word of every vCPU's own line."""
    everything = await words(vm, LINES, len(vm.vcpus) * LINE_BYTES // 8)
    return list(everything[word :: LINE_BYTES // 8])


async def share(vm: Vm, value: int, word: int = 0) -> None:
    """Write a shared word."""
    await vm.write_guest_memory(SHARED + 8 * word, struct.pack("<Q", value))


async def first_words(vm: Vm, at: int, npages: int) -> list[int]:
    """Read the first word of every page of a range of guest memory."""
    contents = await vm.read_guest_memory(at, npages * PAGE_SIZE)
    return memoryview(contents).cast("Q")[:: PAGE_SIZE // 8].tolist()


def pages_of(bitmap: bytes) -> set[int]:
    """Return the pages that a dirty bitmap marks."""
    bits = int.from_bytes(bitmap, "little")
    return {page for page in range(bits.bit_length()) if bits >> page & 1}


async def counted_on(vm: Vm, by: int = 1, word: int = 0) -> None:
    """Wait until every vCPU has counted on in a word of its own line."""
    before = await lines(vm, word)
    async with asyncio.timeout(60):
        while any(now < then + by for now, then in zip(await lines(vm, word), before, strict=True)):
            await asyncio.sleep(0)


async def let_run(vm: Vm, turn: int) -> None:
    """Let the event loop serve exits, and now and then wait until a vCPU has come on."""
    await asyncio.sleep(0)
    if turn % 8 == 0:
        await progress(vm.vcpus[turn // 8 % len(vm.vcpus)])


async def sweep(vcpu: Vcpu, first: int, stride: int, count: int, *, expected: int, left: int) -> None:
    """Have a vCPU that runs `SWEEP` pass over words once; all of them held `expected`, and hold `left` then."""
    await vcpu.set_regs({"s0": first, "s4": stride, "s5": count, "s6": expected, "s7": left, "s8": 0})
    ended = await vcpu.run()
    assert isinstance(ended, HypercallExit), ended
    assert (await vcpu.get_regs())["x24"] == 0, f"words from {first:#x} on did not hold {expected:#x}"


class Served:
    """A vCPU in userspace's loop of KVM_RUN, until something comes that the loop does not know.

    Attributes:
        mmio: the MMIO exits so far. Reads are answered with `answer`, writes are dropped.
        messages: how many hypercalls there were.
        lost_pages: how many KVM_RUNs ended with EFAULT.
        ended: what the loop does not know, once that has come.
    """

    def __init__(self, vcpu: Vcpu, answer: int, retries: Callable[[Exit], bool]) -> None:
        self.vcpu = vcpu
        self.mmio: list[MmioExit] = []
        self.messages = 0
        self.lost_pages = 0
        self.ended: Exit | KvmError | None = None
        self._answer = struct.pack("<Q", answer)
        self._retries = retries
        self._stopping = False
        self.task = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """End the loop and wait for it."""
        self._stopping = True
        self.vcpu.signal()
        await self.task

    async def _serve(self) -> None:
        data: bytes | None = None
        while not self._stopping and self.ended is None:
            try:
                left = await self.vcpu.run(data)
            except KvmError as error:
                data = None
                if error.errno == errno.EFAULT:
                    self.lost_pages += 1
                elif error.errno != errno.EINTR or not self._stopping:
                    self.ended = error
                continue
            data = self._take(left)

    def _take(self, left: Exit) -> bytes | None:
        if isinstance(left, MmioExit):
            self.mmio.append(left)
            return None if left.is_write else self._answer[: left.len]
        if isinstance(left, HypercallExit):
            self.messages += 1
        elif not self._retries(left):
            self.ended = left
        return None


@asynccontextmanager
async def served(
    vm: Vm, *, answer: int = 0, retries: Callable[[Exit], bool] = lambda _: False
) -> AsyncIterator[list[Served]]:
    """Serve every vCPU of a VM, each with instructions retired when the block begins; `retries` knows more exits."""
    before = [vcpu.stats().instructions for vcpu in vm.vcpus.values()]
    loops = [Served(vcpu, answer, retries) for vcpu in vm.vcpus.values()]
    try:
        for loop, retired in zip(loops, before, strict=True):
            await until(lambda loop=loop, retired=retired: loop.vcpu.stats().instructions > retired)  # type: ignore[misc]
        yield loops
    finally:
        for loop in loops:
            await loop.stop()
