"""What KVM_RUN returns: an exit reason with its data, as struct kvm_run holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from vmmd.isa.outcome import Breakpoint, Halt, Hypercall, Mmio, NoAtomic, NoCode, Outcome, Port, Trap
from vmmd.isa.traps import BREAKPOINT
from vmmd.kvm.uapi import KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_INTERNAL_ERROR_EMULATION


@dataclass(frozen=True, slots=True)
class MmioExit:
    """A piece of an access that no memory serves. `data` is what a write writes; the next run answers a read."""

    reason: ClassVar[str] = "KVM_EXIT_MMIO"
    phys_addr: int
    len: int
    is_write: bool
    data: bytes | None


@dataclass(frozen=True, slots=True)
class IoExit:
    """Port I/O. `direction` is KVM_EXIT_IO_IN or KVM_EXIT_IO_OUT; an IN is answered by the next run."""

    reason: ClassVar[str] = "KVM_EXIT_IO"
    direction: int
    size: int
    port: int
    count: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class HypercallExit:
    """The guest called; the next run's data, eight bytes, is the answer."""

    reason: ClassVar[str] = "KVM_EXIT_HYPERCALL"
    nr: int
    args: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HltExit:
    """The guest waits for an interrupt."""

    reason: ClassVar[str] = "KVM_EXIT_HLT"


@dataclass(frozen=True, slots=True)
class ShutdownExit:
    """The guest met an exception that it does not take; `cause` and `value` are RISC-V's."""

    reason: ClassVar[str] = "KVM_EXIT_SHUTDOWN"
    cause: int
    value: int


@dataclass(frozen=True, slots=True)
class InternalErrorExit:
    """The guest cannot go on: it has an instruction, or an atomic access, at `phys_addr`, where no fit memory is."""

    reason: ClassVar[str] = "KVM_EXIT_INTERNAL_ERROR"
    suberror: int
    phys_addr: int


@dataclass(frozen=True, slots=True)
class DirtyRingFullExit:
    """The vCPU's dirty ring is full softly: harvest it and reset, and run again."""

    reason: ClassVar[str] = "KVM_EXIT_DIRTY_RING_FULL"


@dataclass(frozen=True, slots=True)
class DebugExit:
    """A debugger asked for it: an `ebreak` stands at `pc`, or one instruction was done and `pc` comes next.

    `exception` is RISC-V's cause: 3 for an `ebreak`, None for a single step.
    """

    reason: ClassVar[str] = "KVM_EXIT_DEBUG"
    pc: int
    exception: int | None


Exit = MmioExit | IoExit | HypercallExit | HltExit | DebugExit | ShutdownExit | InternalErrorExit | DirtyRingFullExit

KVM_EXIT_UNKNOWN = "KVM_EXIT_UNKNOWN"
"""The reason before there was any."""

KVM_EXIT_INTR = "KVM_EXIT_INTR"
"""The reason that comes with EINTR by a signal."""

_EXITS: dict[type, Callable[[Any], Exit]] = {
    Mmio: lambda mmio: MmioExit(mmio.phys_addr, mmio.size, mmio.data is not None, mmio.data),
    Port: lambda io: IoExit(KVM_EXIT_IO_IN if io.data is None else KVM_EXIT_IO_OUT, io.size, io.port, 1, io.data),
    Hypercall: lambda call: HypercallExit(call.number, call.arguments),
    Halt: lambda _: HltExit(),
    Breakpoint: lambda stopped: DebugExit(stopped.pc, BREAKPOINT),
    Trap: lambda trap: ShutdownExit(trap.cause, trap.value),
    NoCode: lambda missing: InternalErrorExit(KVM_INTERNAL_ERROR_EMULATION, missing.phys_addr),
    NoAtomic: lambda missing: InternalErrorExit(KVM_INTERNAL_ERROR_EMULATION, missing.phys_addr),
}


def exit_of(outcome: Outcome) -> Exit:
    """Return the exit that userspace sees; a lost page is an error and no exit."""
    return _EXITS[type(outcome)](outcome)
