"""The kernel's /dev/kvm through ctypes: file descriptors, ioctls, and the memory of this process that slots point into.

An ioctl that fails is an answer here and no exception: `ioctl` returns the negative errno. Nothing in this module
knows what a sequence is.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from types import TracebackType
from typing import Self

DEVICE = "/dev/kvm"

KVM_CREATE_VM = 0xAE01
KVM_CHECK_EXTENSION = 0xAE03
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
KVM_CREATE_VCPU = 0xAE41
KVM_GET_DIRTY_LOG = 0x4010AE42
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_SET_IDENTITY_MAP_ADDR = 0x4008AE48
KVM_RUN = 0xAE80
KVM_GET_REGS = 0x8090AE81
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_SET_CPUID2 = 0x4008AE90
KVM_ENABLE_CAP = 0x4068AEA3
KVM_CLEAR_DIRTY_LOG = 0xC018AEC0
KVM_RESET_DIRTY_RINGS = 0xAEC7

KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_READONLY_MEM = 81
KVM_CAP_MULTI_ADDRESS_SPACE = 118
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
KVM_CAP_DIRTY_LOG_RING = 192

ENABLED_CAPS = {
    "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2": KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    "KVM_CAP_DIRTY_LOG_RING": KVM_CAP_DIRTY_LOG_RING,
}
"""The capabilities that a sequence enables, by name."""

KVM_DIRTY_LOG_PAGE_OFFSET = 64
"""At this page of a vCPU's descriptor its dirty ring is mapped."""

_CPUID_ENTRIES = 256
_CPUID_HEADER = struct.Struct("<II")
_CPUID_ENTRY = struct.Struct("<10I")
_CPUID_ADDRESS_SIZES = 0x8000_0008
_REGION = struct.Struct("<IIQQQ")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_PROT_NONE = 0
_LARGE_PAGE = 1 << 21
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value

Argument = int | bytes | ctypes.Array[ctypes.c_char]


def ioctl(fd: int, request: int, argument: Argument = 0) -> int:
    """Make an ioctl; where it fails, return the negative errno."""
    result = int(_libc.ioctl(fd, request, argument))
    return result if result >= 0 else -ctypes.get_errno()


def errno_name(result: int) -> str:
    """Return "0" for what an ioctl returned on success, and the errno's name otherwise."""
    return "0" if result >= 0 else errno.errorcode[-result]


def must(result: int, what: str) -> int:
    """Return the result of an ioctl that has to succeed.

    Raises:
        OSError: it failed; `what` is said in the error.
    """
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


class Memory:
    """Anonymous memory of this process, outside Python's reach: what a slot's userspace_addr points at.

    It begins at a large page's border, and the host may back it with large pages.
    """

    def __init__(self, size: int, *, reachable: bool = True) -> None:
        protection = mmap.PROT_READ | mmap.PROT_WRITE if reachable else _PROT_NONE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        address = _libc.mmap(None, size + _LARGE_PAGE, protection, flags, -1, 0)
        if address == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), f"mmap of {size:#x} bytes: {os.strerror(ctypes.get_errno())}")
        self._mapped = address
        self.address: int = -(-address // _LARGE_PAGE) * _LARGE_PAGE
        self.size = size
        # It is advice: a host without large pages is as good.
        _libc.madvise(self.address, size, mmap.MADV_HUGEPAGE)

    def read(self, offset: int, length: int) -> bytes:
        """Copy out."""
        return ctypes.string_at(self._place(offset, length), length)

    def write(self, offset: int, data: bytes) -> None:
        """Copy in."""
        ctypes.memmove(self._place(offset, len(data)), data, len(data))

    def lose(self, offset: int, length: int) -> None:
        """Take whole pages away for good; nothing else may take their place in this process."""
        if _libc.mprotect(self._place(offset, length), length, _PROT_NONE):
            raise OSError(ctypes.get_errno(), f"mprotect of {length:#x} bytes at {offset:#x}")

    def close(self) -> None:
        """Unmap it."""
        _libc.munmap(self._mapped, self.size + _LARGE_PAGE)

    def _place(self, offset: int, length: int) -> int:
        if not 0 <= offset <= offset + length <= self.size:
            raise ValueError(f"[{offset:#x}, {offset + length:#x}) leaves the mapping of {self.size:#x} bytes")
        return self.address + offset


class Kvm:
    """/dev/kvm, open."""

    def __init__(self) -> None:
        self._fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: what is said of a capability; 0 where it is not there."""
        return max(ioctl(self._fd, KVM_CHECK_EXTENSION, capability), 0)

    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of struct kvm_run and what follows it."""
        return must(ioctl(self._fd, KVM_GET_VCPU_MMAP_SIZE), "KVM_GET_VCPU_MMAP_SIZE")

    def create_vm(self) -> VmFd:
        """KVM_CREATE_VM."""
        return VmFd(must(ioctl(self._fd, KVM_CREATE_VM), "KVM_CREATE_VM"))

    def supported_cpuid(self) -> bytes:
        """KVM_GET_SUPPORTED_CPUID: struct kvm_cpuid2, as KVM_SET_CPUID2 takes it."""
        buffer = ctypes.create_string_buffer(_CPUID_HEADER.size + _CPUID_ENTRIES * _CPUID_ENTRY.size)
        _CPUID_HEADER.pack_into(buffer, 0, _CPUID_ENTRIES, 0)
        must(ioctl(self._fd, KVM_GET_SUPPORTED_CPUID, buffer), "KVM_GET_SUPPORTED_CPUID")
        count, _ = _CPUID_HEADER.unpack_from(buffer)
        return buffer.raw[: _CPUID_HEADER.size + count * _CPUID_ENTRY.size]


def physical_bits(cpuid: bytes) -> int:
    """Return how many guest-physical bits a struct kvm_cpuid2 gives the guest; 36 where it does not say."""
    for function, _, _, eax, *_ in _CPUID_ENTRY.iter_unpack(cpuid[_CPUID_HEADER.size :]):
        if function == _CPUID_ADDRESS_SIZES:
            all_bits, mapped_bits = eax & 0xFF, eax >> 16 & 0xFF
            return int(mapped_bits or all_bits)
    return 36


class VmFd:
    """A VM's file descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; the VM ends with its last descriptor."""
        os.close(self._fd)

    def ioctl(self, request: int, argument: Argument = 0) -> int:
        """Make a VM ioctl; where it fails, return the negative errno."""
        return ioctl(self._fd, request, argument)

    def set_user_memory_region(self, slot: int, flags: int, gpa: int, size: int, hva: int) -> int:
        """KVM_SET_USER_MEMORY_REGION; sizes are bytes. Return 0, or the negative errno."""
        return self.ioctl(KVM_SET_USER_MEMORY_REGION, _REGION.pack(slot, flags, gpa, size, hva))

    def create_vcpu(self, vcpu_id: int) -> int:
        """KVM_CREATE_VCPU: its file descriptor."""
        return must(self.ioctl(KVM_CREATE_VCPU, vcpu_id), "KVM_CREATE_VCPU")
