"""The kernel as oracle: one sequence under way on this machine's KVM, with answers in the recording's form.

A VM without an in-kernel interrupt controller, one vCPU, and the guest of `x86_guest`. Its code and page tables lie at
CODE_GPA, as the code of vmmd's guest does; what Intel's KVM wants for itself (a task state, an identity map) lies in
the same two megabytes, so that no drawn slot meets it. It refuses nothing: what must not be asked is for `askable` to
keep away.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager, closing

from tests.conformance import kernel, x86_guest
from tests.conformance.kernel import Kvm, Memory, errno_name, ioctl, must
from tests.conformance.recording import Answer, Operation, Sequence
from tests.conformance.replay import CODE_GPA, CODE_SIZE, CODE_SLOT, MMIO_BYTE, U64, padded_bitmap
from vmmd.memory.dirty import bitmap_bytes
from vmmd.memory.ring import ENTRY, KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_RESET

_TABLES_GPA = CODE_GPA + x86_guest.PAGE_SIZE
_TASK_GPA = CODE_GPA + CODE_SIZE - x86_guest.PAGE_SIZE
_TSS_GPA = CODE_GPA + (1 << 20)
_IDENTITY_MAP_GPA = _TSS_GPA + (1 << 19)

_EXIT_IO, _EXIT_MMIO = 2, 6
_EXIT_NAMES = {8: "SHUTDOWN", 9: "FAIL_ENTRY", 17: "INTERNAL_ERROR"}

_IMMEDIATE_EXIT = 1
_EXIT_REASON = struct.Struct("<8xI")
_IO = struct.Struct("<32xBBH")
_MMIO = struct.Struct("<32xQ8sIB")
_MMIO_DATA = slice(40, 48)
_SUBERROR = struct.Struct("<32xI")
_OUT = 1


class Oracle:
    """One sequence under way. `windows` are the gpas that its guest may touch.

    Attributes:
        early: the answers to the sequence's "early" operations, asked before there are the guest's code and its vCPU.
    """

    def __init__(self, kvm: Kvm, windows: Iterable[range], sequence: Sequence) -> None:
        self._slot_pages: dict[int, int] = {}
        with ExitStack() as opened:
            self._memory = {
                name: opened.enter_context(closing(Memory(size, reachable=name in sequence["host"])))
                for name, size in (sequence["host"] | sequence.get("holes", {})).items()
            }
            code = opened.enter_context(closing(Memory(CODE_SIZE)))
            self._vm = opened.enter_context(kvm.create_vm())
            self._ring_bytes = self._harvested = 0
            self.early = [self._ask(operation) for operation in sequence.get("early", ())]
            self._place_guest(code, windows)
            self._vcpu = self._vm.create_vcpu(0)
            opened.callback(os.close, self._vcpu)
            self._run = opened.enter_context(mmap.mmap(self._vcpu, kvm.vcpu_mmap_size()))
            self._set_up_vcpu(kvm.supported_cpuid())
            if self._ring_bytes:
                offset = kernel.KVM_DIRTY_LOG_PAGE_OFFSET * mmap.PAGESIZE
                self._ring = opened.enter_context(mmap.mmap(self._vcpu, self._ring_bytes, offset=offset))
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End the VM and give its memory back."""
        self._opened.close()

    async def do(self, operation: Operation) -> Answer:
        """Ask the kernel one operation; nothing is waited for that takes an event loop."""
        return self._ask(operation)

    def _ask(self, operation: Operation) -> Answer:
        ask: Callable[[Operation], Answer] = getattr(self, f"_{operation['op']}")
        return ask(operation)

    def _place_guest(self, code: Memory, windows: Iterable[range]) -> None:
        self._vm.ioctl(kernel.KVM_SET_TSS_ADDR, _TSS_GPA)
        self._vm.ioctl(kernel.KVM_SET_IDENTITY_MAP_ADDR, struct.pack("<Q", _IDENTITY_MAP_GPA))
        own = range(CODE_GPA, CODE_GPA + x86_guest.LARGE_PAGE)
        code.write(0, x86_guest.CODE)
        code.write(_TABLES_GPA - CODE_GPA, x86_guest.page_tables(_TABLES_GPA, (own, *windows)))
        must(self._vm.set_user_memory_region(CODE_SLOT, 0, CODE_GPA, CODE_SIZE, code.address), "the code's slot")

    def _set_up_vcpu(self, cpuid: bytes) -> None:
        must(ioctl(self._vcpu, kernel.KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2")
        sregs = x86_guest.sregs_buffer()
        must(ioctl(self._vcpu, kernel.KVM_GET_SREGS, sregs), "KVM_GET_SREGS")
        x86_guest.enter_long_mode(sregs, _TABLES_GPA, _TASK_GPA)
        must(ioctl(self._vcpu, kernel.KVM_SET_SREGS, sregs), "KVM_SET_SREGS")

    def _hva(self, where: int | dict[str, int | str]) -> int:
        if isinstance(where, int):
            return where
        return self._memory[str(where["at"])].address + int(where["offset"]) & U64

    def _set_user_memory_region(self, op: Operation) -> Answer:
        slot, size = op["slot"], op["memory_size"]
        hva = self._hva(op["userspace_addr"])
        result = self._vm.set_user_memory_region(slot, op["flags"], op["guest_phys_addr"], size, hva)
        if result == 0:
            self._slot_pages[slot] = size // x86_guest.PAGE_SIZE
        return {"errno": errno_name(result)}

    def _enable_cap(self, op: Operation) -> Answer:
        argument = struct.pack("<II4Q64x", kernel.ENABLED_CAPS[op["cap"]], 0, op["arg"], 0, 0, 0)
        result = self._vm.ioctl(kernel.KVM_ENABLE_CAP, argument)
        if result == 0 and op["cap"] == "KVM_CAP_DIRTY_LOG_RING":
            self._ring_bytes = op["arg"] & 0xFFFF_FFFF
        return {"errno": errno_name(result)}

    def _harvest(self, _op: Operation) -> Answer:
        entries = []
        while self._ring_bytes:
            at = self._harvested * ENTRY.size % self._ring_bytes
            flags, slot, page = ENTRY.unpack_from(self._ring, at)
            if flags != KVM_DIRTY_GFN_F_DIRTY:
                break
            ENTRY.pack_into(self._ring, at, KVM_DIRTY_GFN_F_RESET, slot, page)
            self._harvested += 1
            entries.append((slot, page))
        return {"entries": entries}

    def _reset_dirty_rings(self, _op: Operation) -> Answer:
        result = self._vm.ioctl(kernel.KVM_RESET_DIRTY_RINGS)
        return {"errno": errno_name(result), "count": max(result, 0)}

    def _get_dirty_log(self, op: Operation) -> Answer:
        # The kernel writes as much as the slot needs, so the room is measured by the slot and not by the operation.
        size = bitmap_bytes(self._slot_pages.get(op["slot"], 0))
        bitmap = ctypes.create_string_buffer(size + 8)
        argument = struct.pack("<IIQ", op["slot"], 0, ctypes.addressof(bitmap))
        result = self._vm.ioctl(kernel.KVM_GET_DIRTY_LOG, argument)
        return {"errno": errno_name(result)} | ({"bitmap": bitmap.raw[:size].hex()} if result >= 0 else {})

    def _clear_dirty_log(self, op: Operation) -> Answer:
        bitmap = ctypes.create_string_buffer(padded_bitmap(op))
        argument = struct.pack("<IIQQ", op["slot"], op["num_pages"], op["first_page"], ctypes.addressof(bitmap))
        return {"errno": errno_name(self._vm.ioctl(kernel.KVM_CLEAR_DIRTY_LOG, argument))}

    def _host_unmap(self, op: Operation) -> Answer:
        where = op["userspace_addr"]
        self._memory[where["at"]].lose(where["offset"], op["length"])
        return {}

    def _host_write(self, op: Operation) -> Answer:
        where = op["userspace_addr"]
        self._memory[where["at"]].write(where["offset"], bytes.fromhex(op["data"]))
        return {}

    def _host_read(self, op: Operation) -> Answer:
        where = op["userspace_addr"]
        return {"data": self._memory[where["at"]].read(where["offset"], op["length"]).hex()}

    def _guest_write(self, op: Operation) -> Answer:
        return {"exits": self._access(("write", op["size"]), op["gpa"], op["value"])[0]}

    def _guest_read(self, op: Operation) -> Answer:
        exits, is_done = self._access(("read", op["size"]), op["gpa"], 0)
        if not is_done:
            return {"exits": exits}
        regs = x86_guest.regs_buffer()
        must(ioctl(self._vcpu, kernel.KVM_GET_REGS, regs), "KVM_GET_REGS")
        return {"exits": exits, "value": x86_guest.rax(regs.raw)}

    def _access(self, access: tuple[str, int], gpa: int, value: int) -> tuple[list[Answer], bool]:
        """Let the guest make one access; return every exit on the way, and whether the access was made."""
        regs = x86_guest.registers(CODE_GPA, access, gpa, value)
        must(ioctl(self._vcpu, kernel.KVM_SET_REGS, regs), "KVM_SET_REGS")
        exits: list[Answer] = []
        while True:
            result = ioctl(self._vcpu, kernel.KVM_RUN)
            if result == -errno.EINTR:
                continue
            if result < 0:
                return [*exits, {"errno": errno_name(result)}], False
            (reason,) = _EXIT_REASON.unpack_from(self._run)
            if reason == _EXIT_MMIO:
                exits.append(self._mmio())
            elif reason == _EXIT_IO and _IO.unpack_from(self._run) == (_OUT, 1, x86_guest.DONE_PORT):
                self._complete()
                return exits, True
            else:
                (suberror,) = _SUBERROR.unpack_from(self._run)
                return [*exits, {"reason": _EXIT_NAMES.get(reason, f"exit {reason}"), "suberror": suberror}], False

    def _mmio(self) -> Answer:
        phys_addr, data, length, is_write = _MMIO.unpack_from(self._run)
        answer: Answer = {"reason": "MMIO", "phys_addr": phys_addr, "len": length, "is_write": is_write}
        if is_write:
            answer["data"] = data[:length].hex()
        else:
            self._run[_MMIO_DATA] = MMIO_BYTE * 8
        return answer

    def _complete(self) -> None:
        """Have the OUT completed and nothing more run."""
        self._run[_IMMEDIATE_EXIT] = 1
        ioctl(self._vcpu, kernel.KVM_RUN)
        self._run[_IMMEDIATE_EXIT] = 0


@asynccontextmanager
async def ask_kernel(kvm: Kvm, windows: Iterable[range], sequence: Sequence) -> AsyncIterator[Oracle]:
    """Make a VM for a sequence, for as long as a block lasts."""
    with closing(Oracle(kvm, windows, sequence)) as oracle:
        yield oracle
