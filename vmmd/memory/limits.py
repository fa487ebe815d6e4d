"""The numbers that bound guest memory, all in one place. Where hosts differ, these are vmmd's."""

from __future__ import annotations

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
"""Bytes in a page, guest and host alike."""

IN_PAGE_MASK = PAGE_SIZE - 1
"""The bits of an address that lie within its page."""

U64 = (1 << 64) - 1
"""The largest unsigned 64-bit number. Python integers never wrap, so every wrap is written out with it."""

USER_MEM_SLOTS = 32764
"""Memslot ids a VM may use: KVM_CAP_NR_MEMSLOTS, as on x86."""

ADDRESS_SPACES = 1
"""KVM_CAP_MULTI_ADDRESS_SPACE is 0: the high 16 bits of a slot field are 0."""

MAX_SLOT_PAGES = (1 << 31) - 1
"""Pages of the largest memslot."""

GUEST_PHYS_BITS = 52
"""A slot ends at or below 2^52."""

USERSPACE_END = (1 << 47) - PAGE_SIZE
"""The first address that is no userspace address, as on x86 with four-level paging."""


def is_page_aligned(value: int) -> bool:
    """Tell whether an address or a size in bytes is a whole number of pages."""
    return value & IN_PAGE_MASK == 0
