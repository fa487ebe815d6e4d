"""Guests for the tests of the ioctls: RAM from address 0 on, code at `CODE`, and how to wait for what they do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest

from vmmd.isa.assembler import assemble
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import Exit
from vmmd.kvm.system import System
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE

CODE = 0x1000
DATA = 0x4000
RAM_PAGES = 8
RAM_BYTES = RAM_PAGES * PAGE_SIZE
HOLE = 0x10_0000
"""An address that no memslot of a booted guest holds."""

SPIN = """
1:  addi a1, a1, 1
    j 1b
"""

STORE_FOREVER = """
1:  addi a1, a1, 1
    sd a1, 0(a0)
    j 1b
"""

WAIT_S = 20.0


async def boot(vm: Vm, source: str, *, flags: int = 0) -> int:
    """Give the VM RAM in slot 0 with `source` in it, and return the RAM's userspace address."""
    base = await vm.map_host_memory(RAM_BYTES)
    await vm.set_user_memory_region(0, flags, 0, RAM_BYTES, base)
    await vm.write_host_memory(base + CODE, assemble(source, CODE).code)
    return base


async def vcpu_at(vm: Vm, vcpu_id: int = 0, pc: int = CODE, **regs: int) -> Vcpu:
    """Create a vCPU that begins at `pc`."""
    vcpu = await vm.create_vcpu(vcpu_id)
    await vcpu.set_regs({"pc": pc, **regs})
    return vcpu


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, letting the event loop run."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WAIT_S
    while not condition():
        assert loop.time() < deadline, "it did not come about"
        await asyncio.sleep(0)


async def let_the_loop_turn() -> None:
    """Let everything that is ready on the event loop run, several times over."""
    for _ in range(50):
        await asyncio.sleep(0)


async def released(vm: Vm) -> None:
    """Wait until nobody holds the VM."""
    await vm.read_guest_memory(CODE, 1, wait_ms=20_000)


async def lease_has_run_out(system: System, lease_ms: int) -> None:
    """Wait until a lease of another VM, taken now, has run out: any that is as long and older would have before it."""
    witness = system.create_vm()
    await boot(witness, SPIN)
    await witness.kick_all_running_vcpus("witness", lease_ms=lease_ms)
    await released(witness)
    await system.destroy_vm(witness.id)


async def progress(vcpu: Vcpu) -> None:
    """Wait until a vCPU has retired another instruction."""
    before = vcpu.stats().instructions
    await until(lambda: vcpu.stats().instructions > before)


@asynccontextmanager
async def running(*vcpus: Vcpu) -> AsyncIterator[list[asyncio.Task[Exit]]]:
    """Have vCPUs in KVM_RUN, each with an instruction retired; end what is left of it."""
    before = [vcpu.stats().instructions for vcpu in vcpus]
    runs = [asyncio.create_task(vcpu.run()) for vcpu in vcpus]
    try:
        for vcpu, retired in zip(vcpus, before, strict=True):
            await until(lambda vcpu=vcpu, retired=retired: vcpu.stats().instructions > retired)  # type: ignore[misc]
        yield runs
    finally:
        for run in runs:
            run.cancel()
            with suppress(asyncio.CancelledError, KvmError):
                await run


@contextmanager
def refusal(number: int) -> Iterator[pytest.ExceptionInfo[KvmError]]:
    """Expect a `KvmError` of an errno."""
    with pytest.raises(KvmError) as caught:
        yield caught
    assert caught.value.errno == number, str(caught.value)


async def errno_of(call: Awaitable[object]) -> int:
    """Await a call that fails and give its errno, keeping neither the error nor its frames."""
    try:
        await call
    except KvmError as error:
        return error.errno
    return 0
