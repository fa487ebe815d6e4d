"""Memory that machine code is run from: filled through one mapping, run through another.

No address of it is ever writable and executable at once. Space is taken from the front and never given back singly: an
arena goes as a whole, once nothing refers to it any more.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_ALIGNMENT = 64
_FAILED = ctypes.c_void_p(-1).value
_MAP_SHARED = 1
_PROT_READ, _PROT_EXEC = 1, 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Arena:
    """So many bytes of executable memory.

    Attributes:
        size: bytes in all.
        used: bytes that are taken.
    """

    def __init__(self, size: int) -> None:
        """Map it.

        Raises:
            OSError: the system gives no such memory.
        """
        self.size = size
        self.used = 0
        self._address = 0
        file = os.memfd_create("vmmd-regions", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, size)
            self._writable = mmap.mmap(file, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            # Python's own mapping does not tell where it lies unless it is writable.
            address = _libc.mmap(None, size, _PROT_READ | _PROT_EXEC, _MAP_SHARED, file, 0)
            if address in (None, _FAILED):
                why = ctypes.get_errno()
                raise OSError(why, f"no {size} bytes of executable memory: {os.strerror(why)}")
            self._address = address
        finally:
            os.close(file)

    def put(self, code: bytes) -> int | None:
        """Copy code in, and return the address to run it at; None where there is no room."""
        start = -(-self.used // _ALIGNMENT) * _ALIGNMENT
        if start + len(code) > self.size:
            return None
        self._writable[start : start + len(code)] = code
        self.used = start + len(code)
        return self._address + start

    def __del__(self) -> None:
        if self._address:
            _libc.munmap(self._address, self.size)
