"""The run loop that every VMM has: a coroutine for each vCPU that calls KVM_RUN for good and serves its exits.

port 0x3f8 out: to the console; any other port: nothing written, all ones read
a full dirty ring: waits for its reset
HLT: waits for an interrupt
EINTR by a raw kick: waits for the raw resume
MMIO that nobody owns: counted as stray, then by the policy: stop this vCPU, or go on with all ones read
anything else, and every error: ends this vCPU's loop
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import DirtyRingFullExit, Exit, HltExit, IoExit, MmioExit
from vmmd.kvm.uapi import KVM_EXIT_IO_OUT
from vmmd.kvm.vcpu import Vcpu
from vmmd.machine.console import CONSOLE_PORT, Console
from vmmd.machine.exit_samples import ExitSamples


class StrayPolicy(Enum):
    """What becomes of a vCPU at an MMIO exit that no device owns."""

    STOP = "stop"
    ONES = "ones"


async def run_loop(
    vcpu: Vcpu, owner: object, console: Console, policy: StrayPolicy, samples: ExitSamples
) -> Exit | KvmError:
    """Run a vCPU, as its owner, until an exit or error ends its loop, and return that."""
    data: bytes | None = None
    while True:
        try:
            await vcpu.resumed()
            exit_ = await vcpu.run(data, owner=owner)
            samples.saw(vcpu.id, exit_)
            if isinstance(exit_, DirtyRingFullExit):
                await vcpu.ring_reset()
            elif isinstance(exit_, HltExit):
                await vcpu.interrupt_pending()
        except KvmError as error:
            if error.data.get("kicked"):
                # The run has taken the answer, and keeps it where it could not use it yet.
                data = None
                continue
            return error
        goes_on, data = serve(exit_, vcpu, console.write, policy)
        if not goes_on:
            return exit_


def serve(exit_: Exit, vcpu: Vcpu, write: Callable[[bytes], object], policy: StrayPolicy) -> tuple[bool, bytes | None]:
    """Do what an exit asks for, waiting apart; `write` takes console output.

    Returns:
        Whether the loop goes on, and the answer for the next KVM_RUN.
    """
    match exit_:
        case IoExit(direction=direction, port=port, data=written):
            if direction != KVM_EXIT_IO_OUT:
                return True, b"\xff" * exit_.size
            if port == CONSOLE_PORT:
                write(written or b"")
            return True, None
        case MmioExit(is_write=is_write):
            vcpu.stray_exits += 1
            return policy is not StrayPolicy.STOP, None if is_write else b"\xff" * exit_.len
        case DirtyRingFullExit() | HltExit():
            return True, None
        case _:
            return False, None
