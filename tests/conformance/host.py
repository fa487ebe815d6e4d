"""What this machine's KVM has, asked of it before anything is drawn, and what it has in common with vmmd.

Hosts differ in slots, address spaces, guest-physical bits, the end of userspace and capabilities. `Common` is what
both have: a sequence drawn inside it has one right answer. Where the kernel keeps records of a slot for each of its
pages (shadow page tables), the largest slots would cost it gigabytes, so they are only made where it does not.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conformance import kernel
from vmmd.kvm.uapi import CAPABILITIES, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
from vmmd.memory.limits import (
    ADDRESS_SPACES,
    GUEST_PHYS_BITS,
    MAX_SLOT_PAGES,
    PAGE_SIZE,
    USER_MEM_SLOTS,
    USERSPACE_END,
)

_TDP_MMU = Path("/sys/module/kvm/parameters/tdp_mmu")
_AFFORDABLE_PAGES = 1 << 20


@dataclass(frozen=True)
class Host:
    """One KVM's numbers.

    Attributes:
        slots: user slot ids an address space has.
        spaces: address spaces.
        slot_bits: a slot ends at or below two to the power of it.
        guest_bits: guest-physical bits that a guest can reach.
        userspace_end: the first address that is no userspace address.
        affordable_pages: pages of the largest slot that may be made here.
        log_modes: the mask of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
        readonly: whether there are KVM_MEM_READONLY slots.
    """

    slots: int = USER_MEM_SLOTS
    spaces: int = ADDRESS_SPACES
    slot_bits: int = GUEST_PHYS_BITS
    guest_bits: int = GUEST_PHYS_BITS
    userspace_end: int = USERSPACE_END
    affordable_pages: int = MAX_SLOT_PAGES
    log_modes: int = CAPABILITIES[KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2]
    readonly: bool = True


VMMD = Host()


class NotAskableError(Exception):
    """There is no KVM on this machine that could be asked; the message says why."""


def ask_host() -> Host:
    """Ask this machine's KVM for its numbers.

    Raises:
        NotAskableError: there is none, or this process may not use it.
    """
    if platform.machine() != "x86_64":
        raise NotAskableError(f"the guest with which it is asked is x86-64's, and this machine is {platform.machine()}")
    try:
        with kernel.Kvm() as kvm, kvm.create_vm() as vm:
            return _ask(kvm, vm)
    except OSError as error:
        raise NotAskableError(f"{kernel.DEVICE} cannot be used: {error.strerror or error}") from None


def _ask(kvm: kernel.Kvm, vm: kernel.VmFd) -> Host:
    def takes(gpa: int, hva: int) -> bool:
        done = vm.set_user_memory_region(0, 0, gpa, PAGE_SIZE, hva) == 0
        return done and vm.set_user_memory_region(0, 0, gpa, 0, hva) == 0

    slot_bits = _last(lambda bits: takes((1 << bits) - PAGE_SIZE, PAGE_SIZE), 32, GUEST_PHYS_BITS)
    last_page = _last(lambda page: takes(0, page * PAGE_SIZE), 1, (1 << 63) // PAGE_SIZE)
    has_no_page_records = _TDP_MMU.exists() and _TDP_MMU.read_text().strip() == "Y"
    return Host(
        slots=kvm.check_extension(kernel.KVM_CAP_NR_MEMSLOTS),
        spaces=max(kvm.check_extension(kernel.KVM_CAP_MULTI_ADDRESS_SPACE), 1),
        slot_bits=slot_bits,
        guest_bits=min(slot_bits, kernel.physical_bits(kvm.supported_cpuid())),
        userspace_end=(last_page + 1) * PAGE_SIZE,
        affordable_pages=MAX_SLOT_PAGES if has_no_page_records else _AFFORDABLE_PAGES,
        log_modes=kvm.check_extension(kernel.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
        readonly=bool(kvm.check_extension(kernel.KVM_CAP_READONLY_MEM)),
    )


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the last number up to `high` for which a condition holds; it holds at `low`, and up to some number."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
