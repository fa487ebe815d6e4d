"""Calls of every kind at once on running vCPUs: all come back, and the guest notices nothing."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable

import pytest

from tests.kvm.guest import DATA, HOLE, STORE_FOREVER, WAIT_S, boot, vcpu_at
from vmmd.kvm.errors import KvmError
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import KVM_MEM_LOG_DIRTY_PAGES

ROUNDS = 60
LONG_MS = 20_000


async def run_interrupted(vcpu: Vcpu, rng: random.Random) -> None:
    """One KVM_RUN that ends by a timeout or a signal, and by nothing else."""
    run = asyncio.create_task(vcpu.run(timeout_ms=rng.randrange(4)))
    if rng.random() < 0.5:
        await asyncio.sleep(0)
        vcpu.signal()
    with pytest.raises(KvmError) as interrupted:
        await run
    assert interrupted.value.errno == errno.EINTR


async def hold_briefly(vm: Vm, name: str, base: int, rng: random.Random) -> None:
    """A hold in which the guest's slot goes and comes back, resumed or rolled back."""
    await vm.kick_all_running_vcpus(name, wait_ms=LONG_MS)
    await vm.set_user_memory_region(1, 0, 0, 0, 0, hold=name)
    if rng.random() < 0.5:
        vm.fail_hold(name, KvmError(errno.EIO, "on purpose"))
        with pytest.raises(KvmError, match="on purpose"):
            await vm.resume_all_kicked_vcpus(name)
        return
    await vm.set_user_memory_region(1, KVM_MEM_LOG_DIRTY_PAGES, HOLE, PAGE_SIZE, base + DATA, hold=name)
    await vm.resume_all_kicked_vcpus(name)


async def use_registers(vcpu: Vcpu, rng: random.Random) -> None:
    if rng.random() < 0.5:
        await vcpu.set_regs({"s1": rng.getrandbits(64)})
    else:
        await vcpu.get_regs()


async def change_another_slot(vm: Vm, base: int) -> None:
    await vm.set_user_memory_region(5, 0, 2 * HOLE, PAGE_SIZE, base, wait_ms=LONG_MS)
    await vm.set_user_memory_region(5, 0, 0, 0, 0, wait_ms=LONG_MS)


async def map_and_unmap(vm: Vm) -> None:
    address = await vm.map_host_memory(PAGE_SIZE, wait_ms=LONG_MS)
    await vm.unmap_host_memory(address, PAGE_SIZE, wait_ms=LONG_MS)


@pytest.mark.parametrize("seed", [1, 2])
async def test_calls_of_every_kind_all_come_back_and_no_vcpu_falls_through(vm: Vm, seed: int) -> None:
    rng = random.Random(seed)
    base = await boot(vm, STORE_FOREVER)
    await vm.set_user_memory_region(1, KVM_MEM_LOG_DIRTY_PAGES, HOLE, PAGE_SIZE, base + DATA)
    vcpus = [await vcpu_at(vm, index, a0=HOLE + index * 8) for index in range(3)]

    async def repeat(call: Callable[[int], Awaitable[object]]) -> None:
        for number in range(ROUNDS):
            await call(number)
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)

    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(
            *(repeat(lambda _, vcpu=vcpu: run_interrupted(vcpu, rng)) for vcpu in vcpus),  # type: ignore[misc]
            repeat(lambda number: hold_briefly(vm, f"a {number}", base, rng)),
            repeat(lambda number: hold_briefly(vm, f"b {number}", base, rng)),
            repeat(lambda _: use_registers(rng.choice(vcpus), rng)),
            repeat(lambda _: change_another_slot(vm, base)),
            repeat(lambda _: map_and_unmap(vm)),
            repeat(lambda _: vm.get_dirty_log(1, wait_ms=LONG_MS)),
        )
    assert vm.stats().exits == {}
    for index, vcpu in enumerate(vcpus):
        stored = int.from_bytes(await vm.read_guest_memory(HOLE + index * 8, 8), "little")
        assert stored in {(await vcpu.get_regs())["x11"], (await vcpu.get_regs())["x11"] - 1}
