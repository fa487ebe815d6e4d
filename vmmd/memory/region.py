"""A region as KVM_SET_USER_MEMORY_REGION is given it, and what can be checked of it without the slot table."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from vmmd.memory.errors import Refused
from vmmd.memory.limits import (
    ADDRESS_SPACES,
    IN_PAGE_MASK,
    MAX_SLOT_PAGES,
    PAGE_SHIFT,
    PAGE_SIZE,
    U64,
    USER_MEM_SLOTS,
    USERSPACE_END,
)

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
_KNOWN_FLAGS = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY


@dataclass(frozen=True, slots=True)
class Region:
    """The five fields of struct kvm_userspace_memory_region. Sizes are bytes."""

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int

    @property
    def end(self) -> int:
        """The first guest-physical address behind it."""
        return self.guest_phys_addr + self.memory_size


def check_region(region: Region) -> None:
    """Check what can be checked without the table: rows 0c to 9 of the kernel's order.

    Raises:
        Refused: EINVAL, with the rule and the numbers.
    """
    gpa, size, hva = region.guest_phys_addr, region.memory_size, region.userspace_addr
    if region.flags & ~_KNOWN_FLAGS:
        broken = f"flags {region.flags:#x} has bits outside {_KNOWN_FLAGS:#x}"
    elif region.slot & 0xFFFF >= USER_MEM_SLOTS:
        broken = f"slot id {region.slot & 0xFFFF} is not below KVM_CAP_NR_MEMSLOTS, {USER_MEM_SLOTS}"
    elif size & IN_PAGE_MASK:
        broken = f"memory_size {size:#x} is no multiple of the page size {PAGE_SIZE:#x}"
    elif gpa & IN_PAGE_MASK:
        broken = f"guest_phys_addr {gpa:#x} is not aligned to the page size {PAGE_SIZE:#x}"
    elif hva & IN_PAGE_MASK:
        broken = f"userspace_addr {hva:#x} is not aligned to the page size {PAGE_SIZE:#x}"
    elif hva + size > USERSPACE_END:
        broken = f"userspace_addr {hva:#x} plus memory_size {size:#x} ends beyond userspace, {USERSPACE_END:#x}"
    elif region.slot >> 16 >= ADDRESS_SPACES:
        broken = f"address space {region.slot >> 16} in slot {region.slot:#x} is not below {ADDRESS_SPACES}"
    elif gpa + size > U64:
        broken = f"guest_phys_addr {gpa:#x} plus memory_size {size:#x} wraps 64 bits"
    elif size >> PAGE_SHIFT > MAX_SLOT_PAGES:
        broken = f"{size >> PAGE_SHIFT} pages exceed a slot's {MAX_SLOT_PAGES}"
    else:
        return
    raise Refused(errno.EINVAL, broken)
