"""Traps: how a guest takes an exception or an interrupt, and comes back from it.

A trap goes to the guest where `mtvec` is set: mepc, mcause and mtval tell of it, and interrupts are off until `mret`.
With `mtvec` 0 nobody takes it: an exception ends the run, as a triple fault does, and an interrupt stays pending.

Source: the RISC-V privileged specification, machine mode, direct mode of mtvec.
"""

from __future__ import annotations

from vmmd.isa.context import Context, ContextRecord
from vmmd.isa.csrs import EXTERNAL, MSTATUS_MIE, MSTATUS_MPIE, SOFTWARE, TIMER
from vmmd.memory.dirty import Words

MISALIGNED_FETCH, ILLEGAL_INSTRUCTION, BREAKPOINT, LOAD_MISALIGNED, STORE_MISALIGNED = 0, 2, 3, 4, 6
ENVIRONMENT_CALL = 11
"""Causes of exceptions."""

INTERRUPT = 1 << 63
"""The bit of mcause that tells an interrupt from an exception."""

_PRIORITY = (EXTERNAL, SOFTWARE, TIMER)
"""Which of several pending interrupts is taken first."""


def take_trap(context: Context, cause: int, value: int) -> bool:
    """Let the guest take a trap before the instruction at pc; False where it has no handler, and nothing changed."""
    record = context.record
    if not record.mtvec:
        return False
    # Whoever sets pc may set any; mepc has no low bits.
    record.mepc, record.mcause, record.mtval = record.pc & ~3, cause, value
    before = MSTATUS_MPIE if record.mstatus & MSTATUS_MIE else 0
    record.mstatus = record.mstatus & ~(MSTATUS_MIE | MSTATUS_MPIE) | before
    record.pc = record.mtvec
    context.end_reservation()
    return True


def return_from_trap(context: Context) -> int:
    """Do what `mret` does to the interrupts, and return where the guest goes on."""
    record = context.record
    before = MSTATUS_MIE if record.mstatus & MSTATUS_MPIE else 0
    record.mstatus = record.mstatus & ~MSTATUS_MIE | MSTATUS_MPIE | before
    context.end_reservation()
    return int(record.mepc)


def interrupt_waits(context: Context) -> bool:
    """Tell whether an interrupt is pending and enabled by `mie`, whatever MIE says: what ends a `wfi`."""
    return bool(context.record.mip & context.record.mie)


def interrupt_is_due(context: Context) -> bool:
    """Tell whether the guest takes an interrupt before its next instruction, where it has a handler."""
    return interrupt_waits(context) and bool(context.record.mstatus & MSTATUS_MIE)


def take_interrupt(context: Context, words: Words) -> bool:
    """Let the guest take the interrupt that is due, if there is one; an external one is no longer pending then."""
    record = context.record
    waiting = record.mip & record.mie
    if not waiting or not record.mstatus & MSTATUS_MIE:
        return False
    number = next(number for number in _PRIORITY if waiting >> number & 1)
    if not take_trap(context, INTERRUPT | number, 0):
        return False
    if number == EXTERNAL:
        words.clear(pending_word(context), (1 << EXTERNAL).to_bytes(8, "little"))
    return True


def pending_word(context: Context) -> int:
    """Return the host address of mip, which more than one thread changes, by atomic steps."""
    return context.address + ContextRecord.mip.offset
