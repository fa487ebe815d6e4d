"""The guest with which the kernel's KVM is asked: one load or store of x86 in 64-bit mode, at privilege level 3.

At level 3 the processor itself makes the access, not KVM's emulator. Each access is a few bytes of code that end in an
OUT. Page tables map each gpa that a sequence may touch at the virtual address of
its low 47 bits, in pages of 2 MiB; a touch anywhere else would end the guest.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable

PAGE_SIZE = 4096
LARGE_PAGE = 1 << 21

DONE_PORT = 0x80
_OUT_DONE = bytes([0xE6, DONE_PORT])

_MOVES = {
    ("read", 1): "8a03",  # mov (%rbx),%al
    ("read", 2): "668b03",
    ("read", 4): "8b03",
    ("read", 8): "488b03",
    ("write", 1): "8803",  # mov %al,(%rbx)
    ("write", 2): "668903",
    ("write", 4): "8903",
    ("write", 8): "488903",
}
_STRIDE = 16
ENTRIES = {access: _STRIDE * index for index, access in enumerate(_MOVES)}
"""Where the code of an access begins, in bytes from the start of the code page."""

CODE = b"".join((bytes.fromhex(move) + _OUT_DONE).ljust(_STRIDE, b"\x90") for move in _MOVES.values())

_LOW_47 = (1 << 47) - 1
_TABLE = 0x27  # present, writable, user, accessed
_LARGE = 0xE7  # the same, dirty, and a large page: the processor has no bit left to set
_ENTRIES_OF_TABLE = 512

_REGS = struct.Struct("<18Q")
_RAX, _RBX, _RIP, _RFLAGS = 0, 1, 16, 17
_IOPL_3 = 0x3002

_SREGS_SIZE = 0x138
_SEGMENT = struct.Struct("<QIH10B")
_CONTROL = struct.Struct("<6Q")
_CONTROL_OFFSET = 224
_CODE_SEGMENT = (0, 0xFFFF_FFFF, 0x33, 11, 1, 3, 0, 1, 1, 1, 0, 0, 0)
_DATA_SEGMENT = (0, 0xFFFF_FFFF, 0x2B, 3, 1, 3, 1, 1, 0, 1, 0, 0, 0)
_TASK_SEGMENT_OFFSET = 6 * _SEGMENT.size
_CR0_PG_NE_ET_PE, _CR4_PAE, _EFER_LMA_LME = 0x8000_0031, 0x20, 0x500


def virtual_address(gpa: int) -> int:
    """Return the virtual address at which the page tables map a gpa."""
    return gpa & _LOW_47


def page_tables(gpa: int, windows: Iterable[range]) -> bytes:
    """Return page tables, their root first, that lie at `gpa` and map windows of whole large pages."""
    tables: list[list[int]] = [[0] * _ENTRIES_OF_TABLE]

    def below(table: int, index: int) -> int:
        if not tables[table][index]:
            tables[table][index] = gpa + len(tables) * PAGE_SIZE | _TABLE
            tables.append([0] * _ENTRIES_OF_TABLE)
        return (tables[table][index] - gpa) // PAGE_SIZE

    for window in windows:
        for page in range(window.start, window.stop, LARGE_PAGE):
            virtual = virtual_address(page)
            directory = below(below(0, virtual >> 39), virtual >> 30 & 511)
            tables[directory][virtual >> 21 & 511] = page | _LARGE
    return b"".join(struct.pack(f"<{_ENTRIES_OF_TABLE}Q", *table) for table in tables)


def registers(code_gpa: int, access: tuple[str, int], gpa: int, value: int) -> bytes:
    """Return struct kvm_regs for one access: ("read" or "write", bytes), where, and with what value."""
    regs = [0] * 18
    regs[_RAX], regs[_RBX] = value, virtual_address(gpa)
    regs[_RIP], regs[_RFLAGS] = virtual_address(code_gpa) + ENTRIES[access], _IOPL_3
    return _REGS.pack(*regs)


def rax(regs: bytes) -> int:
    """Return rax of a struct kvm_regs."""
    value: int = _REGS.unpack(regs)[_RAX]
    return value


def enter_long_mode(sregs: ctypes.Array[ctypes.c_char], root_gpa: int, task_gpa: int) -> None:
    """Change a struct kvm_sregs to 64-bit mode at level 3.

    Args:
        sregs: what KVM_GET_SREGS gave.
        root_gpa: where the page tables lie.
        task_gpa: where a page of zeroes lies: a task state that allows all ports. Where KVM emulates the OUT, it may
            look there and not at the I/O privilege level.
    """
    for index in range(6):
        _SEGMENT.pack_into(sregs, index * _SEGMENT.size, *(_DATA_SEGMENT if index else _CODE_SEGMENT))
    task = (virtual_address(task_gpa), PAGE_SIZE - 1, 0x40, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    _SEGMENT.pack_into(sregs, _TASK_SEGMENT_OFFSET, *task)
    _CONTROL.pack_into(sregs, _CONTROL_OFFSET, _CR0_PG_NE_ET_PE, 0, root_gpa, _CR4_PAE, 0, _EFER_LMA_LME)


def sregs_buffer() -> ctypes.Array[ctypes.c_char]:
    """Return room for a struct kvm_sregs."""
    return ctypes.create_string_buffer(_SREGS_SIZE)


def regs_buffer() -> ctypes.Array[ctypes.c_char]:
    """Return room for a struct kvm_regs."""
    return ctypes.create_string_buffer(_REGS.size)
