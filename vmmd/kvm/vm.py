"""The VM's ioctls: memslots and their dirty logs, host memory, vCPUs, kick and resume.

Every call that uses memslots passes the gate; what it does then is `guest_memory`'s. A kick opens a hold and brings
every vCPU out of guest mode; the resume keeps or undoes what was done inside, and lets them go on.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Unpack

from vmmd.isa.engine import Engine
from vmmd.kvm.clock import Clock, HostClock
from vmmd.kvm.cooperative import Cooperative
from vmmd.kvm.errors import KvmError, in_ioctl
from vmmd.kvm.gate import Entry, Gate
from vmmd.kvm.guest_memory import GuestMemory, Published
from vmmd.kvm.hold import Hold, Kick, Resume, Undo
from vmmd.kvm.kicks import Kicks
from vmmd.kvm.limits import Limits
from vmmd.kvm.observer import Kicked, Note, Observer, Resumed, ignore
from vmmd.kvm.processors import Processors
from vmmd.kvm.rendezvous import Rendezvous
from vmmd.kvm.requests import KVM_REQ_VM_DEAD
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
        cooperative: what its vCPUs run by, where it is a cooperative VM: one with a seed.
        note: tells whoever observes the VM what has happened.
    """

    def __init__(
        self,
        vm_id: str,
        name: str | None,
        *,
        engine: Engine,
        scheduler: Scheduler,
        ledger: Ledger,
        limits: Limits,
        seed: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.id = vm_id
        self.name = name
        self.note: Note = partial(observer.note, vm_id) if observer is not None else ignore
        view = View(Memslots(), HostSpace())
        self._gate = Gate(lambda: self.generation, limits.max_wait_ms, self.note)
        self.cooperative = Cooperative(engine, scheduler, view, self._gate, seed) if seed is not None else None
        self._meet = self.cooperative or Rendezvous(engine, scheduler, view)
        self._memory = GuestMemory(self._meet, engine, ledger, self.note)
        clock: Clock = self.cooperative.clock if self.cooperative else HostClock()
        self._processors = Processors(vm_id, self._meet, clock, limits.vcpus_per_vm)
        self.vcpus: Mapping[int, Vcpu] = self._processors.by_id
        stand_still = self._processors.time_stands_still
        self._kicks = Kicks(self._meet, self._memory, self._gate, self.vcpus, limits, stand_still)

    # Looking, which is never gated.

    @property
    def generation(self) -> int:
        """The slot table's generation: one more for every table published."""
        return self._memory.view.memslots.generation

    @property
    def dirty_log(self) -> str:
        """How logged slots are logged: "bitmap", "ring" (which have none) or "ring_with_bitmap"."""
        return self._memory.dirty_log

    def check_generation(self, wanted: int) -> None:
        """Refuse a call that was made for another slot table, with ESTALE."""
        self._gate.check_generation(wanted)

    def vcpu(self, vcpu_id: int) -> Vcpu:
        """Return a vCPU.

        Raises:
            KvmError: EBADF where there is none of that id.
        """
        return self._processors.get(vcpu_id)

    @property
    def memslots(self) -> Memslots:
        """The slot table of now."""
        return self._memory.view.memslots

    def memory_regions(self, first: int = 0, count: int | None = None) -> tuple[int, list[Memslot]]:
        """Return the generation, and at most `count` slots from the `first` on, in the order of their ids."""
        end = None if count is None else first + count
        return self.generation, list(itertools.islice(self.memslots.by_id(), first, end))

    @property
    def open_hold(self) -> str | None:
        """The name of the hold that is open, failed or expired, if there is one."""
        return self._gate.open_hold

    def stats(self) -> Stats:
        """Return the sums of the vCPUs' counters."""
        return self._processors.stats()

    # Host memory.

    async def map_host_memory(
        self, size: int, name: str | None = None, *, sparse: bool = False, **entry: Unpack[Entry]
    ) -> int:
        """Map `size` bytes of zeroes into the VM's host address space and return their userspace address.

        The size counts against the limit of guest memory; of a sparse mapping only the pages that are touched do.

        Raises:
            KvmError: EINVAL where size is no whole number of pages; ENOMEM where a limit is reached.
        """
        del name  # it is for people who read requests and logs
        async with self._gate.inside(entry):
            return self._memory.map_host(size, sparse=sparse)

    async def unmap_host_memory(self, userspace_addr: int, size: int, **entry: Unpack[Entry]) -> None:
        """Unmap whole pages; no vCPU reaches them any more once this returned.

        Raises:
            KvmError: EINVAL where the range is not of whole pages of userspace addresses.
        """
        async with self._gate.inside(entry) as held:
            await self._memory.unmap_host(userspace_addr, size, _undo(held))

    async def read_host_memory(self, userspace_addr: int, length: int, **entry: Unpack[Entry]) -> bytes:
        """Copy from host memory.

        Raises:
            KvmError: EFAULT where a page is not mapped.
        """
        async with self._gate.inside(entry):
            return access.read_host(self._memory.view, userspace_addr, length)

    async def write_host_memory(self, userspace_addr: int, data: bytes, **entry: Unpack[Entry]) -> None:
        """Copy to host memory; no dirty log takes note.

        Raises:
            KvmError: EFAULT where a page is not mapped; nothing is written then.
        """
        async with self._gate.inside(entry):
            access.write_host(self._memory.view, userspace_addr, data)

    async def read_guest_memory(self, guest_phys_addr: int, length: int, **entry: Unpack[Entry]) -> bytes:
        """Copy from guest memory.

        Raises:
            KvmError: EFAULT where a page has no memslot, or its host mapping is gone.
        """
        async with self._gate.inside(entry):
            return access.read_guest(self._memory.view, guest_phys_addr, length)

    async def write_guest_memory(self, guest_phys_addr: int, data: bytes, **entry: Unpack[Entry]) -> None:
        """Copy to guest memory, and mark what is logged.

        Raises:
            KvmError: EFAULT where a page has no memslot, a read-only one, or no host mapping; nothing is written then.
        """
        await self.write_guest_memory_list([access.Write(guest_phys_addr, data)], **entry)

    async def write_guest_memory_list(self, writes: Sequence[access.Write], **entry: Unpack[Entry]) -> None:
        """Make several writes to guest memory, all or none of them; see `write_guest_memory`."""
        async with self._gate.inside(entry) as held:
            self._memory.write_guest(writes, _undo(held))

    # Memslots and dirty logs.

    async def set_user_memory_region(
        self,
        slot: int,
        flags: int,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        **entry: Unpack[Entry],
    ) -> int:
        """KVM_SET_USER_MEMORY_REGION: create, delete, move or change the flags of a memslot.

        Returns:
            The generation of the table that has it.

        Raises:
            KvmError: EINVAL or EEXIST by the kernel's rules.
        """
        region = Region(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        async with self._gate.inside(entry, "KVM_SET_USER_MEMORY_REGION") as held:
            return await self._memory.set_region(region, _undo(held))

    def set_user_memory_region_at_once(self, region: Region) -> int | None:
        """Do the same, unless somebody has to be waited for: while the VM is held, or a vCPU is inside KVM_RUN.

        Returns:
            The generation; None, with nothing done, where somebody has to be.
        """
        if self._meet.running or not self._gate.is_free:
            return None
        with in_ioctl("KVM_SET_USER_MEMORY_REGION"):
            return self._memory.set_region_at_once(region)

    async def set_user_memory_region_list(
        self,
        regions: Sequence[Region],
        *,
        dry_run: bool = False,
        max_log_bytes: int | None = None,
        **entry: Unpack[Entry],
    ) -> Published:
        """Make several changes of memslots one: in their order, and in one publication, all or nothing.

        Unless it is inside a hold it takes one of its own, so that no vCPU sees anything between before and after. A
        slot id may occur twice. What is in the logs that go with their slots is given back, exact to the last store.

        Args:
            regions: the changes.
            dry_run: check, and change nothing.
            max_log_bytes: how many bytes of logs may be given back.

        Raises:
            KvmError: EINVAL or EEXIST by the kernel's rules, with the `index` of the change; E2BIG where more bytes of
                logs go; ETIMEDOUT where the hold did not come about. Nothing has changed.
        """
        ioctl = "KVM_SET_USER_MEMORY_REGION_LIST"
        if not dry_run and entry.get("hold") is None:
            with in_ioctl(ioctl):
                return await self._kicks.publish(regions, entry, max_log_bytes)
        async with self._gate.inside(entry, ioctl) as held:
            prepared = self._memory.prepare(regions, max_log_bytes)
            dirty = [] if dry_run else self._memory.publish(prepared, _undo(held))
            return Published(self.generation, None, dirty)

    async def get_dirty_log(
        self,
        slot: int,
        *,
        first_page: int | None = None,
        num_pages: int | None = None,
        **entry: Unpack[Entry],
    ) -> bytes:
        """KVM_GET_DIRTY_LOG: the bitmap of a slot, or of `num_pages` from `first_page` on, both multiples of 64.

        Where protection is not manual, the bits are taken: the log is clear behind them.

        Raises:
            KvmError: EINVAL where the slot or the part is out of range; ENOENT where there is no log.
        """
        async with self._gate.inside(entry, "KVM_GET_DIRTY_LOG") as held:
            return await self._memory.get_dirty_log(slot, first_page, num_pages, _undo(held))

    async def clear_dirty_log(
        self,
        slot: int,
        first_page: int,
        num_pages: int,
        bitmap: bytes,
        **entry: Unpack[Entry],
    ) -> None:
        """KVM_CLEAR_DIRTY_LOG: clear the pages that are set in `bitmap`, whose bit 0 is `first_page`.

        Raises:
            KvmError: EINVAL or ENOENT by the kernel's rules; EFAULT where the bitmap is shorter than `num_pages`.
        """
        async with self._gate.inside(entry, "KVM_CLEAR_DIRTY_LOG") as held:
            await self._memory.clear_dirty_log(slot, first_page, num_pages, bitmap, _undo(held))

    async def enable_cap(self, cap: str, args: Sequence[int]) -> None:
        """KVM_ENABLE_CAP on the VM: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_DIRTY_LOG_RING and what belongs to it.

        Raises:
            KvmError: EINVAL where the capability cannot be enabled now or its arguments are not known; E2BIG for a ring
                that is too large; EBUSY in any hold.
        """
        async with self._gate.inside({}, "KVM_ENABLE_CAP"):
            self._memory.enable_cap(cap, args, len(self.vcpus))

    async def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: free every harvested entry, and log the next store to its page again.

        Returns:
            How many entries were freed.

        Raises:
            KvmError: EINVAL where the VM has no rings; EBUSY in any hold.
        """
        async with self._gate.inside({}, "KVM_RESET_DIRTY_RINGS"):
            rings = [vcpu.context.ring for vcpu in self.vcpus.values()]
            count = await self._memory.reset_rings([ring for ring in rings if ring is not None])
            for vcpu in self.vcpus.values():
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
            self._processors.create_irqchip(held=self._kicks.held)

    async def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """KVM_CREATE_VCPU; where the VM is held, it starts held.

        Raises:
            KvmError: EINVAL where the id or the number is too large; EEXIST where the id is taken.
        """
        with in_ioctl("KVM_CREATE_VCPU"):
            self._gate.check_open()
            return self._processors.create(vcpu_id, self._memory.new_ring(), held=self._kicks.held)

    # Kick and resume.

    async def kick_all_running_vcpus(
        self,
        hold: str | None = None,
        *,
        wait_ms: int | None = None,
        lease_ms: int | None = None,
        if_generation: int | None = None,
    ) -> Kick:
        """KVM_KICK_ALL_RUNNING_VCPUS.

        With a hold: answer when no vCPU is in guest mode or reads memslots. It stays so until the resume, or until the
        lease has run out, `lease_ms` milliseconds after this. The same name again, while it is open, renews the lease.

        Without one, as it was proposed: every KVM_RUN ends with EINTR, at once, until the resume; answer when those in
        flight have returned.

        Raises:
            KvmError: ETIMEDOUT where another hold, a call or a vCPU took longer than `wait_ms` milliseconds, and ESTALE
                where the slot table has moved on, with nothing left behind; ECANCELED where the name has failed or
                ended; EINVAL where a raw kick is to wait or to have a lease.
        """
        with in_ioctl("KVM_KICK_ALL_RUNNING_VCPUS"):
            if hold is not None:
                return await self._kicks.kick(hold, wait_ms, lease_ms, if_generation)
            if wait_ms is not None or lease_ms is not None:
                raise KvmError(errno.EINVAL, "without a hold there is no wait_ms and no lease_ms; name a hold")
            self._gate.check_open()
            self._gate.check_generation(if_generation)
            self._meet.check_no_advance("KVM_KICK_ALL_RUNNING_VCPUS")
            kick = await self._kicks.kick_raw()
            self.note(Kicked(kick.kicked, kick.kick_ns))
            return kick

    async def resume_all_kicked_vcpus(self, hold: str | None = None) -> Resume:
        """KVM_RESUME_ALL_KICKED_VCPUS.

        With a hold: what was done inside stands, and the vCPUs go on. Without one: end all raw kicks there have been.

        Raises:
            KvmError: the first error inside, with `rolled_back`, where the hold has failed: all is as it was at the
                kick then, and the vCPUs go on too; ECANCELED where it has ended; EINVAL where it was never opened.
        """
        with in_ioctl("KVM_RESUME_ALL_KICKED_VCPUS"):
            if hold is None:
                self._gate.check_open()
                self._meet.check_no_advance("KVM_RESUME_ALL_KICKED_VCPUS")
                raw = self._kicks.resume_raw()
                self.note(Resumed())
                return raw
            return self._kicks.resume(hold)

    def hold_became(self, hold: str) -> str | None:
        """Tell what became of a hold that has ended; None where it is not remembered."""
        return self._gate.holds.became(hold)

    def abandon_hold(self, hold: str) -> None:
        """Give back a hold that was just opened, and in which nothing was done: its name may be used again."""
        self._kicks.abandon(hold)

    def has_hold(self, hold: str) -> bool:
        """Tell whether the VM is held by that name, failed or not."""
        return self._gate.holds.is_current(hold)

    def end_line(self, error: KvmError) -> None:
        """Open no more holds: whoever waits for one is refused, before or when its turn comes."""
        self._gate.end_line(error)

    def expire_hold(self, hold: str, became: str) -> None:
        """End an open hold whose owner has gone, as if its lease had run out; `became` is what its name tells then."""
        self._kicks.expire(hold, became)

    def fail_hold(self, hold: str, error: KvmError) -> None:
        """Fail an open hold for what is outside the gate: another entry of the batch that opened it."""
        self._kicks.fail(hold, error)

    async def destroy(self) -> None:
        """End every KVM_RUN and every wait with ECANCELED, and give all memory back."""
        self._gate.close(KvmError(errno.ECANCELED, f"VM {self.id} is destroyed"))
        self._kicks.close()
        self._meet.post(KVM_REQ_VM_DEAD, self._meet.contexts)
        for vcpu in self.vcpus.values():
            vcpu.notice(KvmError(errno.ECANCELED, f"VM {self.id} is destroyed"))
            await vcpu.run_over()
        await self._meet.stop_advance()
        self._processors.stop_timers()
        self._memory.drop()


def _undo(hold: Hold | None) -> Undo | None:
    return hold.undo if hold is not None else None
