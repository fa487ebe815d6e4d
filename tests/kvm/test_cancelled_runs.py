"""A KVM_RUN that is cancelled loses nothing: an exit that has come meanwhile is the next run's."""

from __future__ import annotations

import asyncio
import errno

import pytest

from tests.kvm.guest import HOLE, SPIN, boot, refusal, until, vcpu_at
from vmmd.kvm.exits import HltExit, MmioExit
from vmmd.kvm.vcpu import Vcpu
from vmmd.kvm.vm import Vm


async def cancelled_at_its_exit(vcpu: Vcpu) -> None:
    """Start a run, and cancel it when its exit has come and nobody has seen it."""
    run = asyncio.create_task(vcpu.run())
    await until(lambda: bool(vcpu.stats().exits))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_an_exit_that_nobody_has_seen_is_returned_by_the_next_run(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE)
    await cancelled_at_its_exit(vcpu)
    with refusal(errno.EINVAL) as blind:
        await vcpu.run(bytes(8))
    assert "KVM_EXIT_MMIO" in blind.value.message
    assert await vcpu.run() == MmioExit(HOLE, 8, is_write=False, data=None)
    assert await vcpu.run(b"\5" + bytes(7)) == HltExit()
    assert (await vcpu.get_regs())["x11"] == 5
    assert vcpu.stats().exits == {"KVM_EXIT_MMIO": 1, "KVM_EXIT_HLT": 1}


async def test_a_run_that_is_cancelled_in_guest_mode_has_no_exit_to_keep(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    run = asyncio.create_task(vcpu.run())
    await until(lambda: vcpu.stats().instructions > 0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    with refusal(errno.EINTR):
        await vcpu.run(timeout_ms=1)


async def test_a_second_cancellation_loses_nothing_either(vm: Vm) -> None:
    await boot(vm, "1: addi a1, a1, 1\n sd a1, 0(a0)\n j 1b")
    vcpu = await vcpu_at(vm, a0=HOLE)
    expected = 1
    for _ in range(200):
        run = asyncio.create_task(vcpu.run())
        await asyncio.sleep(0)
        run.cancel()
        await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        exit_ = await vcpu.run()
        assert isinstance(exit_, MmioExit)
        assert exit_.data == expected.to_bytes(8, "little")
        expected += 1


async def test_another_pc_leaves_nothing_of_an_exit_that_nobody_has_seen(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE)
    await cancelled_at_its_exit(vcpu)
    await vcpu.set_regs({"pc": (await vcpu.get_regs())["pc"] + 4})
    assert await vcpu.run() == HltExit()
