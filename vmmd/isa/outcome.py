"""What one evaluated instruction can come to, other than to retire: the reasons to leave the guest.

These are T64's own; which KVM exit or error each becomes is settled in `vmmd.kvm`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mmio:
    """A piece of an access that no memory serves. `data` holds what a store writes; a load waits for `size` bytes."""

    phys_addr: int
    size: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Port:
    """Port I/O. `data` holds what is written; a read waits for `size` bytes."""

    port: int
    size: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Hypercall:
    """An `ecall`: its number and arguments; it waits for eight bytes, the answer."""

    number: int
    arguments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """A `wfi`, which has retired."""


@dataclass(frozen=True, slots=True)
class Trap:
    """An exception that the guest does not take: RISC-V's cause and value. Nothing has retired."""

    cause: int
    value: int


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """An `ebreak` that is for a debugger outside. Nothing has retired."""

    pc: int


@dataclass(frozen=True, slots=True)
class NoCode:
    """An instruction fetch where no memslot is. Nothing has retired."""

    phys_addr: int


@dataclass(frozen=True, slots=True)
class NoAtomic:
    """An AMO, lr or sc where no writable memory is. Nothing has retired."""

    phys_addr: int


@dataclass(frozen=True, slots=True)
class LostPage:
    """An access to a memslot that has no host memory, and why not. Nothing has retired."""

    phys_addr: int
    why: str


Awaiting = Mmio | Port | Hypercall
"""Outcomes that userspace completes; the instruction retires then."""

Outcome = Mmio | Port | Hypercall | Halt | Trap | Breakpoint | NoCode | NoAtomic | LostPage
