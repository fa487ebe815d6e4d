"""The VM's ioctls: memslots and their dirty logs, host memory, vCPUs, kick and resume.

A change is checked whole and made as a new value; then it is published by one assignment, with no await between check
and publication. Without a hold the call then waits until no vCPU is in an older view; inside a hold no vCPU is in
any.

Every call that uses memslots passes the gate. What a hold did is undone by publishing what was there at the kick.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vmmd.isa.engine import Engine
from vmmd.kvm.errors import KvmError, in_ioctl
from vmmd.kvm.gate import Gate
from vmmd.kvm.hold import Hold, Step, Undo, check_name
from vmmd.kvm.rendezvous import Rendezvous
from vmmd.kvm.requests import KVM_REQ_HOLD, KVM_REQ_VM_DEAD
from vmmd.kvm.scheduler import Scheduler
from vmmd.kvm.uapi import (
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
)
from vmmd.kvm.vcpu import Stats, Vcpu
from vmmd.memory import access
from vmmd.memory.dirty import DirtyBitmap
from vmmd.memory.host import HostSpace, Ledger, Piece
from vmmd.memory.limits import USER_MEM_SLOTS
from vmmd.memory.memslots import Memslot, Memslots, Region
from vmmd.memory.view import View


@dataclass(frozen=True, slots=True)
class Limits:
    """What a VM may use, and how long its calls may wait. Times are milliseconds, memory is bytes."""

    guest_memory_bytes: int
    vms: int
    vcpus_per_vm: int
    wait_ms: int = 1000
    max_wait_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class Kick:
    """What a kick answers. `kicked`: vCPUs inside KVM_RUN then. `renewed`: the hold was open already."""

    hold: str
    kicked: int
    kick_ns: int
    generation: int
    renewed: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """What a resume answers. `pause_ns`: from the kick's first request to the resume."""

    pause_ns: int
    generation: int


class Vm:
    """One virtual machine. Its methods belong to the event loop.

    Attributes:
        id, name: what the system knows it by, and what its creator called it.
        vcpus: by their ids.
    """

    def __init__(
        self, vm_id: str, name: str | None, *, engine: Engine, scheduler: Scheduler, ledger: Ledger, limits: Limits
    ) -> None:
        self.id = vm_id
        self.name = name
        self._limits = limits
        self._ledger = ledger
        self._engine = engine
        self._meet = Rendezvous(engine, scheduler, View(Memslots(), HostSpace()))
        self._gate = Gate()
        self._vcpus: dict[int, Vcpu] = {}
        self._log_mode = 0
        self._held = False

    # Looking, which is never gated.

    @property
    def vcpus(self) -> Mapping[int, Vcpu]:
        """The vCPUs by their ids."""
        return self._vcpus

    @property
    def generation(self) -> int:
        """The slot table's generation: one more for every table published."""
        return self._meet.view.memslots.generation

    def vcpu(self, vcpu_id: int) -> Vcpu:
        """Return a vCPU.

        Raises:
            KvmError: EBADF where there is none of that id.
        """
        if vcpu_id not in self._vcpus:
            raise KvmError(errno.EBADF, f"VM {self.id} has no vCPU {vcpu_id}")
        return self._vcpus[vcpu_id]

    def memslot(self, slot: int) -> Memslot | None:
        """Return the slot of that id, if it is set."""
        return self._meet.view.memslots.get(slot)

    def memory_regions(self, first: int = 0, count: int | None = None) -> tuple[int, list[Memslot]]:
        """Return the generation, and at most `count` slots from the `first` on, in the order of their ids."""
        memslots = self._meet.view.memslots
        end = None if count is None else first + count
        return memslots.generation, list(itertools.islice(memslots.by_id(), first, end))

    def stats(self) -> Stats:
        """Return the sums of the vCPUs' counters."""
        return sum((vcpu.stats() for vcpu in self._vcpus.values()), Stats())

    # Host memory.

    async def map_host_memory(
        self, size: int, name: str | None = None, *, hold: str | None = None, wait_ms: int = 0
    ) -> int:
        """Map `size` bytes of zeroes into the VM's host address space and return their userspace address.

        Raises:
            KvmError: EINVAL where size is no whole number of pages; ENOMEM where a limit is reached.
        """
        del name  # it is for people who read requests and logs
        async with self._inside(hold, wait_ms):
            host, userspace_addr = self._meet.view.host.with_mapping(size, self._ledger)
            self._publish(self._meet.view.memslots, host)
            return userspace_addr

    async def unmap_host_memory(
        self, userspace_addr: int, size: int, *, hold: str | None = None, wait_ms: int = 0
    ) -> None:
        """Unmap whole pages; no vCPU reaches them any more once this returned.

        Raises:
            KvmError: EINVAL where the range is not of whole pages of userspace addresses.
        """
        async with self._inside(hold, wait_ms) as held:
            host, gone = self._meet.view.host.without(userspace_addr, size)
            self._publish(self._meet.view.memslots, host)
            if held is not None:
                _undo(held).unmapped.extend(gone)
                return
            await self._meet.shoot_down()
            _discard(gone, self._meet.view.host)

    async def read_host_memory(
        self, userspace_addr: int, length: int, *, hold: str | None = None, wait_ms: int = 0
    ) -> bytes:
        """Copy from host memory.

        Raises:
            KvmError: EFAULT where a page is not mapped.
        """
        async with self._inside(hold, wait_ms):
            return access.read_host(self._meet.view, userspace_addr, length)

    async def write_host_memory(
        self, userspace_addr: int, data: bytes, *, hold: str | None = None, wait_ms: int = 0
    ) -> None:
        """Copy to host memory; no dirty log takes note.

        Raises:
            KvmError: EFAULT where a page is not mapped; nothing is written then.
        """
        async with self._inside(hold, wait_ms):
            access.write_host(self._meet.view, userspace_addr, data)

    async def read_guest_memory(
        self, guest_phys_addr: int, length: int, *, hold: str | None = None, wait_ms: int = 0
    ) -> bytes:
        """Copy from guest memory.

        Raises:
            KvmError: EFAULT where a page has no memslot, or its host mapping is gone.
        """
        async with self._inside(hold, wait_ms):
            return access.read_guest(self._meet.view, guest_phys_addr, length)

    async def write_guest_memory(
        self, guest_phys_addr: int, data: bytes, *, hold: str | None = None, wait_ms: int = 0
    ) -> None:
        """Copy to guest memory, and mark what is logged.

        Raises:
            KvmError: EFAULT where a page has no memslot, a read-only one, or no host mapping; nothing is written then.
        """
        async with self._inside(hold, wait_ms) as held:
            written = access.write_guest(self._meet.view, guest_phys_addr, data)
            if held is not None:
                _undo(held).written.extend(written)

    # Memslots and dirty logs.

    async def set_user_memory_region(
        self,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        *,
        hold: str | None = None,
        wait_ms: int = 0,
    ) -> int:
        """KVM_SET_USER_MEMORY_REGION: create, delete, move or change the flags of a memslot.

        Returns:
            The generation of the table that has it.

        Raises:
            KvmError: EINVAL or EEXIST by the kernel's rules.
        """
        region = Region(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        async with self._inside(hold, wait_ms, "KVM_SET_USER_MEMORY_REGION") as held:
            before = self._meet.view.memslots
            memslots, _ = before.with_change(region, self._new_bitmap)
            if memslots is not before:
                self._publish(memslots, self._meet.view.host)
                if held is None:
                    await self._meet.shoot_down()
            return memslots.generation

    async def get_dirty_log(
        self,
        slot: int,
        *,
        first_page: int | None = None,
        num_pages: int | None = None,
        hold: str | None = None,
        wait_ms: int = 0,
    ) -> bytes:
        """KVM_GET_DIRTY_LOG: the bitmap of a slot, or of `num_pages` from `first_page` on, both multiples of 64.

        Where protection is not manual, the bits are taken: the log is clear behind them.

        Raises:
            KvmError: EINVAL where the slot or the part is out of range; ENOENT where there is no log.
        """
        async with self._inside(hold, wait_ms, "KVM_GET_DIRTY_LOG") as held:
            _check_slot_id(slot)
            log = self._log(slot)
            first_byte, length = _part(log, first_page, num_pages)
            if self._log_mode & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE:
                return log.snapshot(first_byte, length)
            taken = log.take(first_byte, length)
            await self._settle_log(held, log, first_byte, taken)
            return taken

    async def clear_dirty_log(
        self,
        slot: int,
        first_page: int,
        num_pages: int,
        bitmap: bytes,
        *,
        hold: str | None = None,
        wait_ms: int = 0,
    ) -> None:
        """KVM_CLEAR_DIRTY_LOG: clear the pages that are set in `bitmap`, whose bit 0 is `first_page`.

        Raises:
            KvmError: EINVAL or ENOENT by the kernel's rules; EFAULT where the bitmap is shorter than `num_pages`.
        """
        async with self._inside(hold, wait_ms, "KVM_CLEAR_DIRTY_LOG") as held:
            _check_slot_id(slot)
            if first_page % 64:
                raise KvmError(errno.EINVAL, f"first_page {first_page} is no multiple of 64")
            log = self._log(slot)
            left = log.npages - first_page
            if num_pages > left or (num_pages < left and num_pages % 64):
                rule = "must be a multiple of 64, or reach the slot's end"
                raise KvmError(errno.EINVAL, f"num_pages {num_pages} from {first_page} of {log.npages} {rule}")
            needed = (num_pages + 7) // 8
            if len(bitmap) < needed:
                raise KvmError(errno.EFAULT, f"bitmap has {len(bitmap)} bytes, and {num_pages} pages need {needed}")
            mask = int.from_bytes(bitmap[:needed], "little") & (1 << num_pages) - 1
            gone = log.clear(first_page, mask.to_bytes(needed, "little"))
            await self._settle_log(held, log, first_page // 8, gone)

    async def enable_cap(self, cap: str, args: Sequence[int]) -> None:
        """KVM_ENABLE_CAP on the VM: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.

        Raises:
            KvmError: EINVAL where the capability cannot be enabled or its arguments are not known; EBUSY in any hold.
        """
        async with self._inside(None, 0, "KVM_ENABLE_CAP"):
            if cap != KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
                raise KvmError(errno.EINVAL, f"{cap} is no capability that a VM can enable")
            mode = args[0] if args else 0
            enable, initially = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_DIRTY_LOG_INITIALLY_SET
            if mode not in {0, enable, enable | initially}:
                raise KvmError(errno.EINVAL, f"args[0] {mode:#x} is none of 0, {enable} and {enable | initially}")
            self._log_mode = mode

    # vCPUs.

    async def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """KVM_CREATE_VCPU; where the VM is held, it starts held.

        Raises:
            KvmError: EINVAL where the id or the number is too large; EEXIST where the id is taken.
        """
        with in_ioctl("KVM_CREATE_VCPU"):
            self._gate.check_open()
            if not 0 <= vcpu_id < self._limits.vcpus_per_vm:
                raise KvmError(errno.EINVAL, f"vCPU id {vcpu_id} is not below {self._limits.vcpus_per_vm}")
            if vcpu_id in self._vcpus:
                raise KvmError(errno.EEXIST, f"vCPU {vcpu_id} is there already")
            vcpu = Vcpu(self._meet, vcpu_id, KVM_REQ_HOLD if self._held else 0)
            self._vcpus[vcpu_id] = vcpu
            return vcpu

    # Kick and resume.

    async def kick_all_running_vcpus(self, hold: str, *, wait_ms: int | None = None) -> Kick:
        """KVM_KICK_ALL_RUNNING_VCPUS with a hold: answer when no vCPU is in guest mode or reads memslots.

        It stays so until the resume. The same name again, while it is open, answers at once.

        Raises:
            KvmError: ETIMEDOUT where another hold, a call or a vCPU took longer than `wait_ms` milliseconds, with
            nothing left
                behind; ECANCELED where the name has failed or ended.
        """
        with in_ioctl("KVM_KICK_ALL_RUNNING_VCPUS"):
            check_name(hold)
            if self._gate.holds.renew(hold, time.monotonic_ns()) is not None:
                return Kick(hold, self._running(), 0, self.generation, renewed=True)
            wait_ms = min(self._limits.wait_ms if wait_ms is None else wait_ms, self._limits.max_wait_ms)
            deadline = asyncio.get_running_loop().time() + wait_ms / 1000
            opened = await self._gate.acquire(hold, wait_ms)
            opened.kicked_at_ns = time.monotonic_ns()
            kicked = self._running()
            self._held = True
            try:
                await self._meet.stop(KVM_REQ_HOLD, self._meet.contexts, deadline)
            except BaseException as error:
                opened.take(Step.GIVE_UP)
                self._release("could not be opened")
                if isinstance(error, TimeoutError):
                    message = f"a vCPU did not leave guest mode within {wait_ms} ms"
                    raise KvmError(errno.ETIMEDOUT, message) from None
                raise
            self._gate.check_open()
            opened.undo = Undo(self._meet.view.memslots, self._meet.view.host)
            opened.take(Step.QUIET)
            return Kick(hold, kicked, time.monotonic_ns() - opened.kicked_at_ns, self.generation)

    async def resume_all_kicked_vcpus(self, hold: str) -> Resume:
        """KVM_RESUME_ALL_KICKED_VCPUS with a hold: what was done inside stands, and the vCPUs go on.

        Raises:
            KvmError: the first error inside, with `rolled_back`, where the hold has failed: all is as it was at the
            kick then, and the
                vCPUs go on too; ECANCELED where it has ended; EINVAL where it was never opened.
        """
        with in_ioctl("KVM_RESUME_ALL_KICKED_VCPUS"):
            held = self._gate.holds.get(hold, time.monotonic_ns())
            held.take(Step.RESUME)
            failure = held.error
            if failure is not None:
                self._roll_back(_undo(held))
            else:
                _discard(_undo(held).unmapped, self._meet.view.host)
            self._release("was rolled back" if failure else "was resumed")
            pause_ns = time.monotonic_ns() - held.kicked_at_ns
            if failure is not None:
                data = failure.data | {"rolled_back": True, "pause_ns": pause_ns, "generation": self.generation}
                raise KvmError(failure.errno, failure.message, failure.ioctl, **data)
            return Resume(pause_ns, self.generation)

    def fail_hold(self, hold: str, error: KvmError) -> None:
        """Fail an open hold for what is outside the gate: another entry of the batch that opened it."""
        current = self._gate.holds.current
        if current is not None and current.name == hold and current.undo is not None:
            self._gate.fail(current, error)

    async def destroy(self) -> None:
        """End every KVM_RUN and every wait with ECANCELED, and give all memory back."""
        self._gate.close(KvmError(errno.ECANCELED, f"VM {self.id} is destroyed"))
        self._meet.end_run(KVM_REQ_VM_DEAD, self._meet.contexts)
        for vcpu in self._vcpus.values():
            await vcpu.run_over()
        self._publish(Memslots(), HostSpace())

    # Inside.

    @asynccontextmanager
    async def _inside(self, hold: str | None, wait_ms: int, ioctl: str | None = None) -> AsyncIterator[Hold | None]:
        with in_ioctl(ioctl):
            async with self._gate.inside(hold, min(wait_ms, self._limits.max_wait_ms)) as held:
                with in_ioctl(ioctl):
                    yield held

    def _publish(self, memslots: Memslots, host: HostSpace) -> None:
        self._meet.publish(View(memslots, host, self._meet.view))

    def _running(self) -> int:
        return sum(vcpu.is_running for vcpu in self._vcpus.values())

    def _new_bitmap(self, npages: int) -> DirtyBitmap:
        initially_set = bool(self._log_mode & KVM_DIRTY_LOG_INITIALLY_SET)
        return DirtyBitmap(npages, self._engine, initially_set=initially_set)

    def _log(self, slot: int) -> DirtyBitmap:
        found = self._meet.view.memslots.get(slot)
        if found is None:
            raise KvmError(errno.ENOENT, f"slot {slot} is not set")
        if found.dirty is None:
            raise KvmError(errno.ENOENT, f"slot {slot} has no dirty log: KVM_MEM_LOG_DIRTY_PAGES is off")
        return found.dirty

    async def _settle_log(self, held: Hold | None, log: DirtyBitmap, first_byte: int, gone: bytes) -> None:
        """After bits went: remember them for a rollback, or wait until every store that found one of them set is done.

        A vCPU stores first and looks at its bit after that. One that found the bit set just before it went has its
        store on the way; once it has left guest mode, the store is done, and whoever is told of the page reads it.
        """
        if held is not None:
            _undo(held).taken.append((log, first_byte, gone))
        else:
            await self._meet.all_outside_once()

    def _release(self, became: str) -> None:
        self._held = False
        self._meet.go(KVM_REQ_HOLD, self._meet.contexts)
        self._gate.release(became)

    def _roll_back(self, undo: Undo) -> None:
        view = self._meet.view
        if view.memslots is not undo.memslots or view.host is not undo.host:
            changed = view.memslots is not undo.memslots
            memslots = undo.memslots.renumbered(view.memslots.generation + 1) if changed else undo.memslots
            self._publish(memslots, undo.host)
        for log, first_byte, bits in undo.taken:
            log.put_back(bits, first_byte)
        for start, size in undo.written:
            for slot in self._meet.view.memslots:
                low = max(start, slot.userspace_addr)
                high = min(start + size, slot.userspace_addr + slot.memory_size)
                if slot.dirty is not None and low < high:
                    slot.dirty.mark(low - slot.userspace_addr, high - low)


def _undo(hold: Hold) -> Undo:
    assert hold.undo is not None, "a hold that lets calls in has been opened"  # noqa: S101
    return hold.undo


def _discard(gone: Sequence[Piece], host: HostSpace) -> None:
    """Give back pages of mappings that are still in use; those of others end with their mapping."""
    in_use = {id(piece.mapping) for piece in host.pieces}
    for piece in gone:
        if id(piece.mapping) in in_use:
            piece.discard()


def _check_slot_id(slot: int) -> None:
    if slot >> 16 or slot >= USER_MEM_SLOTS:
        raise KvmError(errno.EINVAL, f"slot {slot:#x} is out of range: ids of the one space are below {USER_MEM_SLOTS}")


def _part(log: DirtyBitmap, first_page: int | None, num_pages: int | None) -> tuple[int, int]:
    """Return the first byte and the length of a part of a log, by default the whole."""
    first = first_page or 0
    if first % 64 or first >= max(log.npages, 1):
        raise KvmError(errno.EINVAL, f"first_page {first} is no multiple of 64 below the slot's {log.npages} pages")
    first_byte = first // 8
    if num_pages is None:
        return first_byte, log.size_bytes - first_byte
    if num_pages <= 0 or num_pages % 64 or num_pages // 8 > log.size_bytes - first_byte:
        rule = f"is no positive multiple of 64 within the {log.size_bytes * 8 - first} from first_page on"
        raise KvmError(errno.EINVAL, f"num_pages {num_pages} {rule}")
    return first_byte, num_pages // 8
