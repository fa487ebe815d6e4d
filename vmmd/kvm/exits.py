"""What KVM_RUN returns: an exit reason with its data, as struct kvm_run holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


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


Exit = MmioExit | IoExit | HypercallExit | HltExit | ShutdownExit | InternalErrorExit | DirtyRingFullExit

KVM_EXIT_UNKNOWN = "KVM_EXIT_UNKNOWN"
"""The reason before there was any."""

KVM_EXIT_INTR = "KVM_EXIT_INTR"
"""The reason that comes with EINTR by a signal."""
