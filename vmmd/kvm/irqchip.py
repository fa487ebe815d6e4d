"""The in-kernel interrupt controller, in the layout of RISC-V's CLINT: interrupts between vCPUs, and a timer for each.

    0x02000000 + 4 * id       msip: bit 0 makes the software interrupt of that vCPU pending
    0x02004000 + 8 * id       mtimecmp: the timer interrupt is pending while mtime is at least that
    0x0200bff8                mtime: the VM's clock in nanoseconds, read-only

A vCPU that touches it stays inside KVM_RUN. A memslot there wins. Registers are read and written by the byte, so an
access of any size reaches what it covers; where no register is, zeroes are read and nothing is written.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

from vmmd.isa.csrs import SOFTWARE, TIMER
from vmmd.isa.outcome import Mmio
from vmmd.kvm.clock import Clock
from vmmd.memory.limits import U64

CLINT_ADDRESS = 0x0200_0000
CLINT_SIZE = 0x1_0000

_MSIP, _MTIMECMP, _MTIME = 0x0000, 0x4000, 0xBFF8
_NEVER = U64
"""What every mtimecmp is at the start: no time is as late."""


class Lines(Protocol):
    """The interrupt lines of a vCPU; any thread may move them."""

    def raise_interrupts(self, bits: int) -> None:
        """Make interrupts pending, and wake the vCPU."""

    def lower_interrupts(self, bits: int) -> None:
        """Make interrupts pending no more."""


class Irqchip:
    """The controller of one VM; workers use it, and alarms of its clock.

    Args:
        clock: The VM's.
        lines: The lines of every vCPU that there is, by id.
    """

    def __init__(self, clock: Clock, lines: Mapping[int, Lines]) -> None:
        self._clock = clock
        self._lines = lines
        self._alarms = clock.alarms(self._timer_is_due)
        self._lock = threading.Lock()
        self._software: set[int] = set()
        self._compare: dict[int, int] = {}

    def owns(self, access: Mmio) -> bool:
        """Tell whether an access that no memory serves is the controller's: whether it begins in it."""
        return CLINT_ADDRESS <= access.phys_addr < CLINT_ADDRESS + CLINT_SIZE

    def access(self, access: Mmio) -> bytes:
        """Serve a read, or a write, for which nothing is returned."""
        offset = access.phys_addr - CLINT_ADDRESS
        with self._lock:
            if access.data is None:
                return bytes(self._read_byte(offset + index) for index in range(access.size))
            self._write(offset, access.data)
            return b""

    def stop(self) -> None:
        """Let no timer go off: the clock stands still, or the VM is destroyed."""
        self._alarms.stop()

    def go(self) -> None:
        """Let timers go off again."""
        self._alarms.go()

    # Registers, as numbers: which one a byte belongs to, what it holds, and what writing it does.

    def _read_byte(self, offset: int) -> int:
        register, shift = self._place(offset)
        return self._get(register) >> shift & 0xFF if register is not None else 0

    def _write(self, offset: int, data: bytes) -> None:
        values: dict[tuple[int, int], int] = {}
        for index, byte in enumerate(data):
            register, shift = self._place(offset + index)
            if register is not None:
                value = values.get(register, self._get(register))
                values[register] = value & ~(0xFF << shift) | byte << shift
        for register, value in values.items():
            self._set(register, value)

    def _place(self, offset: int) -> tuple[tuple[int, int] | None, int]:
        """Return the register that a byte is in, as (which array, vCPU id), and its place in it, in bits."""
        for start, size, count in (
            (_MTIME, 8, 1),
            (_MTIMECMP, 8, (_MTIME - _MTIMECMP) // 8),
            (_MSIP, 4, _MTIMECMP // 4),
        ):
            index, byte = divmod(offset - start, size)
            if 0 <= index < count:
                exists = start == _MTIME or index in self._lines
                return (start, index) if exists else None, byte * 8
        return None, 0

    def _get(self, register: tuple[int, int]) -> int:
        start, vcpu_id = register
        if start == _MSIP:
            return int(vcpu_id in self._software)
        return self._clock.now_ns() & U64 if start == _MTIME else self._compare.get(vcpu_id, _NEVER)

    def _set(self, register: tuple[int, int], value: int) -> None:
        start, vcpu_id = register
        if start == _MSIP:
            self._set_software(vcpu_id, pending=bool(value & 1))
        elif start == _MTIMECMP:
            self._compare[vcpu_id] = value
            self._lines[vcpu_id].lower_interrupts(1 << TIMER)
            self._look_at_timer(vcpu_id)

    def _set_software(self, vcpu_id: int, *, pending: bool) -> None:
        if pending:
            self._software.add(vcpu_id)
            self._lines[vcpu_id].raise_interrupts(1 << SOFTWARE)
        else:
            self._software.discard(vcpu_id)
            self._lines[vcpu_id].lower_interrupts(1 << SOFTWARE)

    def _look_at_timer(self, vcpu_id: int) -> None:
        compare = self._compare[vcpu_id]
        due = compare <= self._clock.now_ns()
        self._alarms.set(vcpu_id, None if due or compare == _NEVER else compare)
        if due:
            self._lines[vcpu_id].raise_interrupts(1 << TIMER)

    def _timer_is_due(self, vcpu_id: int) -> None:
        # The guest may have set another time meanwhile.
        with self._lock:
            self._look_at_timer(vcpu_id)
