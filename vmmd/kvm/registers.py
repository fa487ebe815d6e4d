"""KVM_GET_REGS and KVM_SET_REGS: the registers of a vCPU by name, with the control and status registers among them.

Nothing here looks whether the vCPU runs; its caller has it outside guest mode.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from vmmd.isa.context import Context
from vmmd.isa.csrs import CSR_NUMBERS, CSRS
from vmmd.isa.encoding import REGISTERS
from vmmd.kvm.errors import KvmError
from vmmd.memory.limits import U64

_PC = "pc"
_SET_REGS = "KVM_SET_REGS"

_X: dict[str, int] = {
    **{f"x{index}": index for index in range(len(REGISTERS))},
    **{name: index for index, name in enumerate(REGISTERS)},
    "fp": 8,
}
"""The general registers by all of their names."""


def read(context: Context) -> dict[str, int]:
    """Return pc, x0 to x31, and the control and status registers by their names."""
    record = context.record
    general = {f"x{index}": int(record.x[index]) for index in range(len(REGISTERS))}
    return {_PC: int(record.pc)} | general | {csr.name: csr.get(context) for csr in CSRS.values()}


def check(regs: Mapping[str, int]) -> dict[str, int]:
    """Return the values by one name for each register.

    Raises:
        KvmError: EINVAL where a name is unknown or given twice, a value is no 64-bit number, or it has bits that the
            register does not have.
    """
    wanted: dict[str, int] = {}
    for name, value in regs.items():
        known = f"x{_X[name]}" if name in _X else name
        if known != _PC and name not in _X and name not in CSR_NUMBERS:
            raise KvmError(errno.EINVAL, f"there is no register {name!r}", _SET_REGS)
        if known in wanted:
            raise KvmError(errno.EINVAL, f"register {name!r} is given twice", _SET_REGS)
        if not 0 <= value <= U64:
            raise KvmError(errno.EINVAL, f"{name} = {value} is no unsigned 64-bit number", _SET_REGS)
        _check_bits(known, value)
        wanted[known] = value
    return wanted


def write(context: Context, wanted: Mapping[str, int]) -> None:
    """Set registers to what `check` has returned, but for mip, which others change at the same time."""
    for name, value in wanted.items():
        if name == _PC:
            context.record.pc = value
        elif name in _X:
            context.record.x[_X[name]] = value
        elif name != "mip":
            csr = CSRS[CSR_NUMBERS[name]]
            csr.set(context, value, csr.user_bits)


def _check_bits(name: str, value: int) -> None:
    if name == "x0" and value:
        raise KvmError(errno.EINVAL, f"x0 is always 0 and cannot become {value:#x}", _SET_REGS)
    if name not in CSR_NUMBERS:
        return
    bits = CSRS[CSR_NUMBERS[name]].user_bits
    if not bits:
        raise KvmError(errno.EINVAL, f"{name} is read-only", _SET_REGS)
    if value & ~bits:
        raise KvmError(errno.EINVAL, f"{name} = {value:#x}: of its bits only {bits:#x} can be set", _SET_REGS)
