"""The VM's ioctls: memslots and their dirty logs, host memory, vCPUs, kick and resume.

Every call that uses memslots passes the gate; what it does then is `guest_memory`'s. A kick opens a hold and brings
every vCPU out of guest mode; the resume keeps or undoes what was done inside, and lets them go on.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import time
from collections.abc import Mapping, Sequence

from vmmd.isa.engine import Engine
from vmmd.kvm.clock import Clock
from vmmd.kvm.errors import KvmError, in_ioctl
from vmmd.kvm.gate import Gate, Passage
from vmmd.kvm.guest_memory import GuestMemory
from vmmd.kvm.hold import Hold, Kick, Resume, Step, Undo, check_name
from vmmd.kvm.irqchip import Irqchip, Lines
from vmmd.kvm.limits import Limits
from vmmd.kvm.rendezvous import Rendezvous
from vmmd.kvm.requests import KVM_REQ_HOLD, KVM_REQ_VM_DEAD
from vmmd.kvm.scheduler import Scheduler
from vmmd.kvm.vcpu import Stats, Vcpu
from vmmd.memory import access
from vmmd.memory.host import HostSpace, Ledger
from vmmd.memory.memslots import Memslot, Memslots
from vmmd.memory.region import Region
from vmmd.memory.view import View


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
        self._meet = Rendezvous(engine, scheduler, View(Memslots(), HostSpace()))
        self._memory = GuestMemory(self._meet, engine, ledger)
        self._gate = Gate()
        self._vcpus: dict[int, Vcpu] = {}
        self._lines: dict[int, Lines] = {}
        self._held = False
        self._clock = Clock()
        self._irqchip: Irqchip | None = None

    # Looking, which is never gated.

    @property
    def vcpus(self) -> Mapping[int, Vcpu]:
        """The vCPUs by their ids."""
        return self._vcpus

    @property
    def generation(self) -> int:
        """The slot table's generation: one more for every table published."""
        return self._memory.view.memslots.generation

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
        return self._memory.view.memslots.get(slot)

    def memory_regions(self, first: int = 0, count: int | None = None) -> tuple[int, list[Memslot]]:
        """Return the generation, and at most `count` slots from the `first` on, in the order of their ids."""
        memslots = self._memory.view.memslots
        end = None if count is None else first + count
        return memslots.generation, list(itertools.islice(memslots.by_id(), first, end))

    def stats(self) -> Stats:
        """Return the sums of the vCPUs' counters."""
        return sum((vcpu.stats() for vcpu in self._vcpus.values()), Stats())

    # Host memory.

    async def map_host_memory(
        self, size: int, name: str | None = None, *, sparse: bool = False, hold: str | None = None, wait_ms: int = 0
    ) -> int:
        """Map `size` bytes of zeroes into the VM's host address space and return their userspace address.

        The size counts against the limit of guest memory; of a sparse mapping only the pages that are touched do.

        Raises:
            KvmError: EINVAL where size is no whole number of pages; ENOMEM where a limit is reached.
        """
        del name  # it is for people who read requests and logs
        async with self._inside(hold, wait_ms):
            return self._memory.map_host(size, sparse=sparse)

    async def unmap_host_memory(
        self, userspace_addr: int, size: int, *, hold: str | None = None, wait_ms: int = 0
    ) -> None:
        """Unmap whole pages; no vCPU reaches them any more once this returned.

        Raises:
            KvmError: EINVAL where the range is not of whole pages of userspace addresses.
        """
        async with self._inside(hold, wait_ms) as held:
            await self._memory.unmap_host(userspace_addr, size, _undo(held))

    async def read_host_memory(
        self, userspace_addr: int, length: int, *, hold: str | None = None, wait_ms: int = 0
    ) -> bytes:
        """Copy from host memory.

        Raises:
            KvmError: EFAULT where a page is not mapped.
        """
        async with self._inside(hold, wait_ms):
            return access.read_host(self._memory.view, userspace_addr, length)

    async def write_host_memory(
        self, userspace_addr: int, data: bytes, *, hold: str | None = None, wait_ms: int = 0
    ) -> None:
        """Copy to host memory; no dirty log takes note.

        Raises:
            KvmError: EFAULT where a page is not mapped; nothing is written then.
        """
        async with self._inside(hold, wait_ms):
            access.write_host(self._memory.view, userspace_addr, data)

    async def read_guest_memory(
        self, guest_phys_addr: int, length: int, *, hold: str | None = None, wait_ms: int = 0
    ) -> bytes:
        """Copy from guest memory.

        Raises:
            KvmError: EFAULT where a page has no memslot, or its host mapping is gone.
        """
        async with self._inside(hold, wait_ms):
            return access.read_guest(self._memory.view, guest_phys_addr, length)

    async def write_guest_memory(
        self, guest_phys_addr: int, data: bytes, *, hold: str | None = None, wait_ms: int = 0
    ) -> None:
        """Copy to guest memory, and mark what is logged.

        Raises:
            KvmError: EFAULT where a page has no memslot, a read-only one, or no host mapping; nothing is written then.
        """
        await self.write_guest_memory_list([access.Write(guest_phys_addr, data)], hold=hold, wait_ms=wait_ms)

    async def write_guest_memory_list(
        self, writes: Sequence[access.Write], *, hold: str | None = None, wait_ms: int = 0
    ) -> None:
        """Make several writes to guest memory, all or none of them; see `write_guest_memory`."""
        async with self._inside(hold, wait_ms) as held:
            self._memory.write_guest(writes, _undo(held))

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
            return await self._memory.set_region(region, _undo(held))

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
            return await self._memory.get_dirty_log(slot, first_page, num_pages, _undo(held))

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
            await self._memory.clear_dirty_log(slot, first_page, num_pages, bitmap, _undo(held))

    async def enable_cap(self, cap: str, args: Sequence[int]) -> None:
        """KVM_ENABLE_CAP on the VM: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_DIRTY_LOG_RING and what belongs to it.

        Raises:
            KvmError: EINVAL where the capability cannot be enabled now or its arguments are not known; E2BIG for a ring
                that is too large; EBUSY in any hold.
        """
        async with self._inside(None, 0, "KVM_ENABLE_CAP"):
            self._memory.enable_cap(cap, args, len(self._vcpus))

    async def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: free every harvested entry, and log the next store to its page again.

        Returns:
            How many entries were freed.

        Raises:
            KvmError: EINVAL where the VM has no rings; EBUSY in any hold.
        """
        async with self._inside(None, 0, "KVM_RESET_DIRTY_RINGS"):
            rings = [vcpu.context.ring for vcpu in self._vcpus.values()]
            count = await self._memory.reset_rings([ring for ring in rings if ring is not None])
            for vcpu in self._vcpus.values():
                vcpu.notice()
            return count

    # vCPUs.

    async def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: add the in-kernel interrupt controller. A `wfi` sleeps inside KVM_RUN then.

        Raises:
            KvmError: EEXIST where there is one; EINVAL where there are vCPUs already.
        """
        with in_ioctl("KVM_CREATE_IRQCHIP"):
            self._gate.check_open()
            if self._irqchip is not None:
                raise KvmError(errno.EEXIST, f"VM {self.id} has an interrupt controller already")
            if self._vcpus:
                raise KvmError(errno.EINVAL, f"it comes before the first vCPU, and VM {self.id} has {len(self._vcpus)}")
            self._irqchip = Irqchip(self._clock, self._lines)
            if self._held:
                self._irqchip.stop()

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
            vcpu = Vcpu(
                self._meet,
                vcpu_id,
                KVM_REQ_HOLD if self._held else 0,
                clock=self._clock,
                irqchip=self._irqchip,
                ring=self._memory.new_ring(),
            )
            self._vcpus[vcpu_id], self._lines[vcpu_id] = vcpu, vcpu.lines
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
            self._stop_clock()
            try:
                await self._meet.stop(KVM_REQ_HOLD, self._meet.contexts, deadline)
            except BaseException as error:
                opened.take(Step.GIVE_UP)
                self._release(None)
                if isinstance(error, TimeoutError):
                    message = f"a vCPU did not leave guest mode within {wait_ms} ms"
                    raise KvmError(errno.ETIMEDOUT, message) from None
                raise
            self._gate.check_open()
            opened.undo = self._memory.begin_undo()
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
            failure, undo = held.error, held.undo
            if undo is not None:
                (self._memory.roll_back if failure else self._memory.keep)(undo)
            self._release("was rolled back" if failure else "was resumed")
            pause_ns = time.monotonic_ns() - held.kicked_at_ns
            if failure is not None:
                data = failure.data | {"rolled_back": True, "pause_ns": pause_ns, "generation": self.generation}
                raise KvmError(failure.errno, failure.message, failure.ioctl, **data)
            return Resume(pause_ns, self.generation)

    def abandon_hold(self, hold: str) -> None:
        """Give back a hold that was just opened, and in which nothing was done: its name may be used again."""
        current = self._gate.holds.current
        if current is not None and current.name == hold and current.undo is not None:
            current.take(Step.RESUME)
            self._release(None)

    def fail_hold(self, hold: str, error: KvmError) -> None:
        """Fail an open hold for what is outside the gate: another entry of the batch that opened it."""
        current = self._gate.holds.current
        if current is not None and current.name == hold and current.undo is not None:
            self._gate.fail(current, error)

    async def destroy(self) -> None:
        """End every KVM_RUN and every wait with ECANCELED, and give all memory back."""
        self._gate.close(KvmError(errno.ECANCELED, f"VM {self.id} is destroyed"))
        self._meet.post(KVM_REQ_VM_DEAD, self._meet.contexts)
        for vcpu in self._vcpus.values():
            vcpu.notice(KvmError(errno.ECANCELED, f"VM {self.id} is destroyed"))
            await vcpu.run_over()
        if self._irqchip is not None:
            self._irqchip.stop()
        self._memory.drop()

    # Inside.

    def _inside(self, hold: str | None, wait_ms: int, ioctl: str | None = None) -> Passage:
        return self._gate.inside(hold, min(wait_ms, self._limits.max_wait_ms), ioctl)

    def _running(self) -> int:
        return sum(vcpu.is_running for vcpu in self._vcpus.values())

    def _stop_clock(self) -> None:
        self._clock.stop()
        if self._irqchip is not None:
            self._irqchip.stop()

    def _release(self, became: str | None) -> None:
        self._held = False
        self._clock.go()
        if self._irqchip is not None:
            self._irqchip.go()
        self._meet.go(KVM_REQ_HOLD, self._meet.contexts)
        self._gate.release(became)


def _undo(hold: Hold | None) -> Undo | None:
    return hold.undo if hold is not None else None
