"""KVM_RUN as a call: one at a time, its data, and everything that interrupts it."""

from __future__ import annotations

import asyncio
import errno

import pytest

from tests.kvm.guest import CODE, HOLE, SPIN, boot, let_the_loop_turn, progress, refusal, running, until, vcpu_at
from vmmd.kvm.exits import HltExit, MmioExit
from vmmd.kvm.vm import Vm

LOAD = "ld a1, 0(a0)\n addi a2, a2, 1\n wfi"


async def test_a_second_run_is_busy_and_the_first_goes_on(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    async with running(vcpu) as (run,):
        with refusal(errno.EBUSY) as busy:
            await vcpu.run()
        assert busy.value.ioctl == "KVM_RUN"
        await progress(vcpu)
        assert not run.done()
    assert not vcpu.is_running


@pytest.mark.parametrize("length", [0, 1, 7, 9])
async def test_data_of_the_wrong_length_is_einval_and_the_right_data_still_completes(vm: Vm, length: int) -> None:
    await boot(vm, LOAD)
    vcpu = await vcpu_at(vm, a0=HOLE)
    await vcpu.run()
    with refusal(errno.EINVAL) as wrong:
        await vcpu.run(bytes(length))
    assert f"data has {length} bytes, and 8 bytes are waited for" in wrong.value.message
    assert not vcpu.is_running
    assert await vcpu.run(b"\x05" + bytes(7)) == HltExit()
    assert (await vcpu.get_regs())["x11"] == 5


async def test_data_that_nothing_waits_for_is_einval_and_nothing_runs(vm: Vm) -> None:
    await boot(vm, "sd a1, 0(a0)\n wfi")
    vcpu = await vcpu_at(vm, a0=HOLE)
    with refusal(errno.EINVAL):
        await vcpu.run(bytes(8))
    assert vcpu.stats().instructions == 0
    await vcpu.run()
    with refusal(errno.EINVAL):
        await vcpu.run(bytes(8))
    assert await vcpu.run() == HltExit()


async def test_a_timeout_interrupts_the_run_as_a_signal_does(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    with refusal(errno.EINTR) as interrupted:
        await vcpu.run(timeout_ms=1)
    assert interrupted.value.data["exit_reason"] == "KVM_EXIT_INTR"
    assert not vcpu.is_running


async def test_a_timeout_that_is_over_does_not_interrupt_the_next_run(vm: Vm) -> None:
    await boot(vm, "wfi\n" + SPIN)
    vcpu = await vcpu_at(vm)
    timeout_ms = 200
    assert await vcpu.run(timeout_ms=timeout_ms) == HltExit()
    async with running(vcpu) as (run,):
        later = asyncio.get_running_loop().time() + timeout_ms / 1000
        await until(lambda: asyncio.get_running_loop().time() > later)
        assert not run.done()


async def test_a_signal_without_a_run_does_nothing(vm: Vm) -> None:
    await boot(vm, "wfi")
    vcpu = await vcpu_at(vm)
    vcpu.signal()
    assert await vcpu.run() == HltExit()


async def test_a_signal_completes_what_is_pending_before_it_interrupts(vm: Vm) -> None:
    await boot(vm, "ld a1, 0(a0)\n" + SPIN)
    vcpu = await vcpu_at(vm, a0=HOLE)
    await vcpu.run()
    run = asyncio.create_task(vcpu.run(b"\x07" + bytes(7)))
    await until(lambda: vcpu.is_running)
    vcpu.signal()
    with refusal(errno.EINTR):
        await run
    regs = await vcpu.get_regs()
    assert regs["x11"] >= 7
    assert regs["pc"] > CODE


async def test_the_task_that_awaits_a_run_can_be_cancelled_and_the_vcpu_runs_again(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpu = await vcpu_at(vm)
    for _ in range(3):
        async with running(vcpu) as (run,):
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert not vcpu.is_running
    before = vcpu.stats().instructions
    await let_the_loop_turn()
    assert vcpu.stats().instructions == before


async def test_immediate_exit_ends_a_run_before_its_first_instruction(vm: Vm) -> None:
    await boot(vm, "nop\n wfi")
    vcpu = await vcpu_at(vm)
    vcpu.set_immediate_exit(1)
    for _ in range(2):
        with refusal(errno.EINTR) as interrupted:
            await vcpu.run()
    assert interrupted.value.data["exit_reason"] == "KVM_EXIT_UNKNOWN"
    assert vcpu.stats().instructions == 0
    vcpu.set_immediate_exit(0)
    assert await vcpu.run() == HltExit()


async def test_immediate_exit_completes_the_pending_exit_and_nothing_more(vm: Vm) -> None:
    await boot(vm, LOAD)
    vcpu = await vcpu_at(vm, a0=HOLE)
    await vcpu.run()
    vcpu.set_immediate_exit(1)
    with refusal(errno.EINTR) as interrupted:
        await vcpu.run(b"\x07" + bytes(7))
    assert interrupted.value.data["exit_reason"] == "KVM_EXIT_MMIO"
    regs = await vcpu.get_regs()
    assert (regs["pc"], regs["x11"], regs["x12"]) == (CODE + 4, 7, 0)
    assert vcpu.stats().instructions == 1


async def test_immediate_exit_gives_the_next_piece_of_a_pending_access_first(vm: Vm) -> None:
    await boot(vm, LOAD)
    vcpu = await vcpu_at(vm, a0=HOLE + 4096 - 1)
    await vcpu.run()
    vcpu.set_immediate_exit(1)
    assert await vcpu.run(b"\x01") == MmioExit(HOLE + 4096, 7, is_write=False, data=None)
    with refusal(errno.EINTR):
        await vcpu.run(bytes(7))
    assert (await vcpu.get_regs())["x11"] == 1


async def test_an_answer_stands_when_the_run_that_brought_it_was_interrupted(vm: Vm) -> None:
    await boot(vm, LOAD)
    vcpu = await vcpu_at(vm, a0=HOLE)
    await vcpu.run()
    await vm.kick_all_running_vcpus("hold")
    with refusal(errno.EINTR):
        await vcpu.run(b"\x07" + bytes(7), timeout_ms=1)
    await vm.resume_all_kicked_vcpus("hold")
    assert (await vcpu.get_regs())["pc"] == CODE
    assert await vcpu.run() == HltExit()
    assert (await vcpu.get_regs())["x11"] == 7


async def test_a_new_answer_takes_the_place_of_one_that_stands(vm: Vm) -> None:
    await boot(vm, LOAD)
    vcpu = await vcpu_at(vm, a0=HOLE)
    await vcpu.run()
    await vm.kick_all_running_vcpus("hold")
    with refusal(errno.EINTR):
        await vcpu.run(b"\x07" + bytes(7), timeout_ms=1)
    await vm.resume_all_kicked_vcpus("hold")
    with refusal(errno.EINVAL):
        await vcpu.run(b"\x08")
    assert await vcpu.run(b"\x09" + bytes(7)) == HltExit()
    assert (await vcpu.get_regs())["x11"] == 9


@pytest.mark.parametrize("engine_name", ["compiled"], indirect=True)
async def test_more_vcpus_than_workers_all_get_their_turn(vm: Vm) -> None:
    await boot(vm, SPIN)
    vcpus = [await vcpu_at(vm, index) for index in range(5)]
    async with running(*vcpus):
        for vcpu in vcpus:
            await progress(vcpu)
