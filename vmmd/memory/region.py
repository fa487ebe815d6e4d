"""A region as KVM_SET_USER_MEMORY_REGION is given it, and what can be checked of it without the slot table."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from vmmd.memory.errors import Refused
from vmmd.memory.limits import (
    ADDRESS_SPACES,
    MAX_SLOT_PAGES,
    PAGE_SHIFT,
    PAGE_SIZE,
    U64,
    USER_MEM_SLOTS,
    USERSPACE_END,
    is_page_aligned,
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


_Rule = tuple[Callable[[Region], bool], Callable[[Region], str]]

_RULES: tuple[_Rule, ...] = (
    (
        lambda region: not region.flags & ~_KNOWN_FLAGS,
        lambda region: f"flags {region.flags:#x} has bits outside {_KNOWN_FLAGS:#x}",
    ),
    (
        lambda region: region.slot & 0xFFFF < USER_MEM_SLOTS,
        lambda region: f"slot id {region.slot & 0xFFFF} is not below KVM_CAP_NR_MEMSLOTS, {USER_MEM_SLOTS}",
    ),
    (
        lambda region: is_page_aligned(region.memory_size),
        lambda region: f"memory_size {region.memory_size:#x} is no multiple of the page size {PAGE_SIZE:#x}",
    ),
    (
        lambda region: is_page_aligned(region.guest_phys_addr),
        lambda region: f"guest_phys_addr {region.guest_phys_addr:#x} is not aligned to the page size {PAGE_SIZE:#x}",
    ),
    (
        lambda region: is_page_aligned(region.userspace_addr),
        lambda region: f"userspace_addr {region.userspace_addr:#x} is not aligned to the page size {PAGE_SIZE:#x}",
    ),
    (
        lambda region: region.userspace_addr + region.memory_size <= USERSPACE_END,
        lambda region: (
            f"userspace_addr {region.userspace_addr:#x} plus memory_size {region.memory_size:#x} "
            f"ends beyond userspace, {USERSPACE_END:#x}"
        ),
    ),
    (
        lambda region: region.slot >> 16 < ADDRESS_SPACES,
        lambda region: f"address space {region.slot >> 16} in slot {region.slot:#x} is not below {ADDRESS_SPACES}",
    ),
    (
        lambda region: region.end <= U64,
        lambda region: (
            f"guest_phys_addr {region.guest_phys_addr:#x} plus memory_size {region.memory_size:#x} wraps 64 bits"
        ),
    ),
    (
        lambda region: region.memory_size >> PAGE_SHIFT <= MAX_SLOT_PAGES,
        lambda region: f"{region.memory_size >> PAGE_SHIFT} pages exceed a slot's {MAX_SLOT_PAGES}",
    ),
)
"""What can be checked without the table: rows 0c to 9 of the kernel's order, and what to say where one is broken."""


def check_region(region: Region) -> None:
    """Check what can be checked without the table.

    Raises:
        Refused: EINVAL, with the rule and the numbers.
    """
    for kept, sentence in _RULES:
        if not kept(region):
            raise Refused(errno.EINVAL, sentence(region))
