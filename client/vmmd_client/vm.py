"""A VM as an object: one typed method for each method of the wire.

A `Vm` holds the VM's id, and with all handles of its client on that VM what `shared_vm` says. It owns nothing in the
daemon: a handle that is dropped destroys nothing.
"""

from collections.abc import Iterable
from typing import Literal, Unpack

from vmmd.api.holds import KickResult, ResumeResult
from vmmd.api.machine import AdvanceResult, ConsoleResult, LoadElfResult
from vmmd.api.memslots import RegionListResult
from vmmd.api.vcpus import StatsResult

from .changes.dirty_log import DirtyLog
from .changes.hold import Hold
from .changes.shared_vm import forget_vm, shared_vm
from .changes.transaction import DEFAULT_WAIT_MS, Transaction
from .errors import VmmdError
from .events import Events, Place
from .slots.memslots import Memslot, SlotMap, SlotTable, with_call
from .vcpu import Vcpu
from .vm_memory import VmMemory
from .wire import calls
from .wire.call_options import BytesLike, ChangeOptions, GatedChangeOptions
from .wire.channel import Channel, Progress


class Vm(VmMemory):
    """One VM. `slot_table` is fetched once and kept up to date by this client's own changes."""

    def __init__(self, channel: Channel, vm: str) -> None:
        """Name a VM; whether it exists is for the first call to tell."""
        super().__init__(channel, vm)
        self.shared = shared_vm(channel, vm)
        self.dirty = DirtyLog(channel, vm, self.shared)

    def vcpu(self, vcpu: int) -> Vcpu:
        """Name one of the VM's vCPUs."""
        return Vcpu(self._channel, self.id, vcpu)

    def with_timeout(self, timeout_s: float) -> "Vm":
        """Give a handle on the same VM whose calls may take `timeout_s` seconds each."""
        return Vm(self._channel.with_timeout(timeout_s), self.id)

    @property
    def timeout_s(self) -> float:
        """How long a call may take, in seconds, beyond its own `wait_ms`; a block waits as long for its turn."""
        return self._channel.timeout_s

    # Memslots and their dirty log.

    async def set_user_memory_region(
        self,
        slot: int,
        *,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        flags: int = 0,
        **options: Unpack[GatedChangeOptions],
    ) -> int:
        """KVM_SET_USER_MEMORY_REGION: create, move, re-flag, or with size 0 delete one memslot.

        Returns:
            The slot table's generation behind the call.

        Raises:
            InvalidArgument: a field breaks a rule that the message names.
            SlotOverlap: the range overlaps another slot's.
        """
        region = Memslot(slot, int(flags), guest_phys_addr, memory_size, userspace_addr)
        generation = await self._channel.send(calls.set_user_memory_region(self.id, region, **options))
        if self.shared.table is not None:
            if self.shared.table.generation + 1 == generation:
                self.know_slot_table(generation, with_call(self.shared.table.slots, region))
            elif self.shared.table.generation != generation:
                self.forget_slot_table()
        return generation

    async def set_user_memory_region_list(
        self, regions: Iterable[Memslot], *, dry_run: bool = False, **options: Unpack[GatedChangeOptions]
    ) -> RegionListResult:
        """Make several changes one, all or nothing, in a hold of its own unless it is given one.

        Args:
            regions: the changes, in their order; a size of 0 deletes, and an id may occur twice.
            dry_run: check everything, and change nothing.
            **options: see `call_options.GatedChangeOptions`.

        Raises:
            InvalidArgument: a field breaks a rule; the error's data has the change's `index`.
            SlotOverlap: a range overlaps another slot's.
        """
        self.forget_slot_table()
        call = calls.set_user_memory_region_list(self.id, regions, dry_run=dry_run, **options)
        return await self._channel.send(call)

    async def get_memory_regions(self) -> SlotTable:
        """Fetch the slot table from the daemon."""
        known = self.shared.table
        reply = await self._channel.send(calls.get_memory_regions(self.id))
        slots = {
            region.slot: Memslot(
                region.slot, region.flags, region.guest_phys_addr, region.memory_size, region.userspace_addr
            )
            for region in reply.regions
        }
        table = SlotTable(reply.generation, slots)
        # Who has changed the map meanwhile knows it better than an answer that may be older.
        if self.shared.table is known:
            self.shared.table = table
        return table

    async def slot_table(self) -> SlotTable:
        """Give the slot table as this client knows it; fetched where it does not.

        Another client's changes are not seen here, nor those of a batch or of `Client.call`. A transaction notices them
        by the generation, and raises StaleGeneration, or a PlanError for what the known table has no room for; after
        any error in its block the next call of this method fetches anew.
        """
        return self.shared.table if self.shared.table is not None else await self.get_memory_regions()

    def know_slot_table(self, generation: int, slots: SlotMap) -> None:
        """Take the table that a change of this client's has left."""
        self.shared.table = SlotTable(generation, slots)

    def forget_slot_table(self) -> None:
        """Have the next `slot_table` fetch."""
        self.shared.table = None

    async def get_dirty_log(
        self,
        slot: int,
        *,
        first_page: int | None = None,
        num_pages: int | None = None,
        **options: Unpack[GatedChangeOptions],
    ) -> bytes:
        """KVM_GET_DIRTY_LOG: fetch a slot's dirty bitmap (and clear it, in KVM's default mode).

        Args:
            slot: the slot's id.
            first_page: the first page, a multiple of 64; with `num_pages` it takes a part of a large bitmap.
            num_pages: how many pages, a multiple of 64 or up to the slot's end.
            **options: see `call_options.GatedChangeOptions`.

        Returns:
            The bitmap: bit j of byte k is page 8k+j, in whole 64-bit words.

        Raises:
            NoSuchSlot: there is no such slot, or it does not log.
            TooBig: take it in parts.
        """
        return await self._channel.send(calls.get_dirty_log(self.id, slot, first_page, num_pages, **options))

    async def clear_dirty_log(
        self, slot: int, first_page: int, num_pages: int, bitmap: BytesLike, **options: Unpack[GatedChangeOptions]
    ) -> None:
        """KVM_CLEAR_DIRTY_LOG: clear the bits that `bitmap` has set, from `first_page` on.

        Raises:
            InvalidArgument: not whole words of 64 pages, or beyond the slot.
            NoSuchSlot: there is no such slot, or it does not log.
        """
        await self._channel.send(calls.clear_dirty_log(self.id, slot, first_page, num_pages, bitmap, **options))

    async def enable_cap(self, cap: str, args: Iterable[int] = (), **options: Unpack[ChangeOptions]) -> None:
        """KVM_ENABLE_CAP.

        Args:
            cap: "KVM_CAP_…".
            args: up to four 64-bit arguments.
            **options: see `call_options.ChangeOptions`.

        Raises:
            InvalidArgument: no such capability, or one that cannot be switched on.
            HoldConflict: a hold is open.
        """
        await self._channel.send(calls.enable_cap(self.id, cap, args, **options))

    async def reset_dirty_rings(self, **options: Unpack[ChangeOptions]) -> int:
        """KVM_RESET_DIRTY_RINGS: harvested entries are free again, and the next store to their pages is logged.

        Returns:
            How many entries, of all vCPUs.

        Raises:
            InvalidArgument: the VM has no dirty rings.
            HoldConflict: a hold is open.
        """
        return await self._channel.send(calls.reset_dirty_rings(self.id, **options))

    # Kick and resume.

    async def kick_all_running_vcpus(
        self,
        hold: str | None = None,
        *,
        wait_ms: int | None = None,
        lease_ms: int | None = None,
        **options: Unpack[ChangeOptions],
    ) -> KickResult:
        """Open a hold of a name of one's own, or renew it; without a name, kick as it was proposed.

        Args:
            hold: the hold's name; None: every KVM_RUN ends with EINTR until the raw resume.
            wait_ms: how long the kick waits for its turn and for the vCPUs; left out: the daemon's setting.
            lease_ms: for how long the hold stays open without a renewal; left out: the daemon's setting.
            **options: see `call_options.ChangeOptions`.

        Raises:
            KickTimeout: the turn or the vCPUs did not come in time.
            HoldFailed: the name has failed or ended.
            StaleGeneration: the slot table has moved on since `if_generation`.
        """
        return await self._channel.send(calls.kick_all_running_vcpus(self.id, hold, wait_ms, lease_ms, **options))

    async def resume_all_kicked_vcpus(self, hold: str | None = None) -> ResumeResult:
        """KVM_RESUME_ALL_KICKED_VCPUS: end the hold.

        Raises:
            KvmError: the hold had failed; the first error inside it, and all is rolled back.
            HoldFailed: the hold has ended already.
        """
        try:
            return await self._channel.send(calls.resume_all_kicked_vcpus(self.id, hold))
        except VmmdError:
            # What was changed inside is perhaps undone, and the known table has it.
            self.forget_slot_table()
            raise

    def hold(self, *, wait_ms: int = DEFAULT_WAIT_MS, lease_ms: int | None = None) -> Hold:
        """Open a hold for a block: `async with vm.hold() as hold`.

        Args:
            wait_ms: how long to wait for its turn, in milliseconds.
            lease_ms: for how long it stays open without `Hold.renew`, in milliseconds; None: the daemon's setting.
        """
        return Hold(self, self._channel, wait_ms=wait_ms, lease_ms=lease_ms)

    def transaction(self, *, hold: bool = False, dry_run: bool = False, wait_ms: int = DEFAULT_WAIT_MS) -> Transaction:
        """Collect changes of the memory map and make them one: `async with vm.transaction() as t`.

        Args:
            hold: True takes a hold also where no vCPU could see the difference.
            dry_run: True has the daemon check the changes when the block ends, and changes nothing.
            wait_ms: how long to wait for a turn, in milliseconds.

        Transactions, holds and fetches of dirty pages of one client take turns: only another client is a conflict.

        Raises (nothing is done, unless it says otherwise; `VmmdError.outcome` tells):
            PlanError: a change that cannot be meant, when it is made; nothing is sent.
            NestedTurn, TurnTimeout: it is inside another block of this VM, or waited too long for one.
            StaleGeneration: another client has changed the map.
            KickTimeout, HoldConflict: the turn at the daemon did not come.
            TransactionRefused: the daemon refused a step, which is named; it says what stands.
            TransactionUnsettled: the answer is lost, and so is that to the question what became of it.
            TransportError, ProtocolError: the answer is lost; it was asked after, and nothing was done.
            PlanTooLarge: it goes into no body that the daemon takes.
        """
        return Transaction(self, self._channel, hold=hold, dry_run=dry_run, wait_ms=wait_ms)

    # vCPUs and the run loop.

    async def create_irqchip(self, **options: Unpack[ChangeOptions]) -> None:
        """Add the in-kernel interrupt controller (KVM_CREATE_IRQCHIP), before the first vCPU.

        Raises:
            AlreadyExists: There is one.
            InvalidArgument: There are vCPUs already.
        """
        await self._channel.send(calls.create_irqchip(self.id, **options))

    async def create_vcpu(self, vcpu: int, **options: Unpack[ChangeOptions]) -> Vcpu:
        """KVM_CREATE_VCPU.

        Raises:
            AlreadyExists: the id is taken.
            InvalidArgument: over the limit.
        """
        return self.vcpu(await self._channel.send(calls.create_vcpu(self.id, vcpu, **options)))

    async def start(self, mmio: Literal["stop", "ones"] = "stop", **options: Unpack[ChangeOptions]) -> None:
        """Start a run loop a vCPU, which calls KVM_RUN for good and serves the console.

        Args:
            mmio: what a stray MMIO exit does: "stop" ends that vCPU's loop, "ones" has loads read all ones.
            **options: see `call_options.ChangeOptions`.

        Raises:
            HoldConflict: the loops run already.
        """
        await self._channel.send(calls.start(self.id, mmio, **options))

    async def advance(
        self,
        instructions: int,
        *,
        mmio: Literal["stop", "ones"] | None = None,
        wait_ms: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[ChangeOptions],
    ) -> AdvanceResult:
        """Let a cooperative VM go on for so many retired instructions, in the order that its seed decides.

        An advance ends with its connection, part done, so it is not sent again when that is lost.

        Args:
            instructions: how many, of all vCPUs; a long advance wants `progress`, or a handle `with_timeout`.
            mmio: what a stray MMIO exit does meanwhile, as of `start`; left out: "stop".
            wait_ms: how long to wait while the VM is held or advanced; left out: not at all.
            progress: `progress(done, total)` is called some four times a second, in instructions. The call then goes by
                a WebSocket of its own, also where others go by HTTP, and its time is that between two of these calls;
                what the function raises ends the advance.
            **options: see `call_options.ChangeOptions`.

        Raises:
            InvalidArgument: the VM is parallel.
            HoldConflict: it is held, or being advanced.
            KickTimeout: `deadline_ms` has passed.
        """
        return await self._channel.send(calls.advance(self.id, instructions, mmio, wait_ms, **options), progress)

    async def stop(self, **options: Unpack[ChangeOptions]) -> None:
        """End all run loops, and an advance; idempotent."""
        await self._channel.send(calls.stop(self.id, **options))

    async def load_elf(
        self, data: BytesLike, vcpu: int | None = None, **options: Unpack[GatedChangeOptions]
    ) -> LoadElfResult:
        """Load an ELF64 executable for RISC-V through the memslots, all of it or nothing.

        Args:
            data: the file, compiled with -march=rv64ima_zicsr_zifencei -mabi=lp64 and linked statically.
            vcpu: the id of the vCPU whose pc becomes the entry; left out: none's.
            **options: see `call_options.GatedChangeOptions`.

        Returns:
            The entry, and the addresses of functions, objects and labels by their names.

        Raises:
            InvalidArgument: the file is no such executable; the message and the data say which part of it is wrong.
            BadAddress: a part of a segment has no memory, or is read-only.
            BadVm: there is no such vCPU.
            TooBig: the symbols do not fit in the answer.
        """
        return await self._channel.send(calls.load_elf(self.id, data, vcpu, **options))

    async def read_console(self, since: int = 0) -> ConsoleResult:
        """Read what the guest wrote to port 0x3f8, from position `since` on; `next` is where to go on."""
        return await self._channel.send(calls.read_console(self.id, since))

    async def get_stats(self) -> StatsResult:
        """Give the counters, summed over the VM's vCPUs."""
        return await self._channel.send(calls.get_vm_stats(self.id))

    def events(self, since: Place | None = None) -> Events:
        """Iterate over what happens in this VM; see `Client.events`."""
        return Events(self._channel, self.id, since)

    async def destroy(self) -> None:
        """Destroy the VM; whoever waits for anything in it gets HoldFailed."""
        await self._channel.send(calls.destroy_vm(self.id))
        forget_vm(self._channel, self.id)
