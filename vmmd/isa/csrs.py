"""The control and status registers of T64, by number: which bits can be written, and what is read.

Any other number is an illegal instruction, and so is a write to a read-only one. Numbers and bits are those of the
RISC-V privileged specification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmmd.isa.context import Context
from vmmd.memory.limits import U64

MSTATUS_MIE, MSTATUS_MPIE = 1 << 3, 1 << 7
"""Bits of mstatus: interrupts are on, and they were on before the trap."""

SOFTWARE, TIMER, EXTERNAL = 3, 7, 11
"""Bits of mip and mie, and causes of interrupts."""

INTERRUPTS = 1 << SOFTWARE | 1 << TIMER | 1 << EXTERNAL


@dataclass(frozen=True, slots=True)
class Csr:
    """One register: what it reads as, and the bits that can be written to its field of the context."""

    name: str
    get: Callable[[Context], int]
    field: str | None = None
    guest_bits: int = 0
    user_bits: int = 0

    def set(self, context: Context, value: int, bits: int) -> None:
        """Write those bits; a register without a field has none, and mip is left alone where none are."""
        if self.field is not None and bits:
            before = int(getattr(context.record, self.field))
            setattr(context.record, self.field, before & ~bits | value & bits)


def _held(name: str, guest_bits: int, user_bits: int | None = None) -> Csr:
    """Describe a register that is a field of the context; `user_bits` are for KVM_SET_REGS."""
    return Csr(
        name,
        lambda context: int(getattr(context.record, name)),
        name,
        guest_bits,
        guest_bits if user_bits is None else user_bits,
    )


CSRS: dict[int, Csr] = {
    0x300: _held("mstatus", MSTATUS_MIE | MSTATUS_MPIE),
    0x304: _held("mie", INTERRUPTS),
    # Direct mode only: the low two bits stay 0. An instruction lies at a multiple of four, so mepc's do too.
    0x305: _held("mtvec", U64 & ~3),
    0x340: _held("mscratch", U64),
    0x341: _held("mepc", U64 & ~3),
    0x342: _held("mcause", U64),
    0x343: _held("mtval", U64),
    # What is pending is for the interrupt controller to say, and for who restores a vCPU.
    0x344: _held("mip", 0, INTERRUPTS),
    0xC00: Csr("cycle", lambda context: int(context.record.retired)),
    0xC01: Csr("time", lambda context: context.clock() & U64),
    0xC02: Csr("instret", lambda context: int(context.record.retired)),
    0xF14: Csr("mhartid", lambda context: context.hart),
}

CSR_NUMBERS: dict[str, int] = {csr.name: number for number, csr in CSRS.items()}
"""Their numbers by their names."""


def is_read_only(number: int) -> bool:
    """Tell whether a number is of those that the specification keeps read-only: its top two bits are set."""
    return number >> 10 == 0b11
