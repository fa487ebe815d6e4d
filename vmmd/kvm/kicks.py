"""Kick and resume of one VM: holds with their leases, and the raw pair as it was proposed.

A kick opens a hold, in line after those that came before, and brings every vCPU out of guest mode; the resume keeps or
undoes what was done inside, and lets them go on. A hold that is neither resumed nor renewed within its lease is undone.
States are `hold`'s, who may call meanwhile is `gate`'s; this drives both on the event loop.

The raw kick knows no owner, no count, no lease and no gate: it sets a request in every vCPU, and waits until every
KVM_RUN in flight has returned.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from vmmd.kvm.errors import KvmError
from vmmd.kvm.gate import Entry, Gate
from vmmd.kvm.guest_memory import GuestMemory, Prepared, Published
from vmmd.kvm.hold import RESUMED, Hold, Kick, Resume, State, Step, check_name
from vmmd.kvm.limits import Limits
from vmmd.kvm.rendezvous import Rendezvous
from vmmd.kvm.requests import KVM_REQ_HOLD, KVM_REQ_USERSPACE_KICK
from vmmd.kvm.vcpu import Vcpu
from vmmd.memory.region import Region

# So many changes are prepared before another call would notice; more go to a thread.
_MANY_REGIONS = 256

EXPIRED = "was rolled back when its lease ran out"


class Kicks:
    """What holds do to a VM.

    Args:
        meet: where its vCPUs are kicked.
        memory: what is rolled back.
        gate: who keeps calls out.
        vcpus: all that there are, by id.
        limits: how long things may take.
        time_stands_still: told with True when a hold begins, and with False when it is over.

    Attributes:
        held: whether vCPUs have to start held.
    """

    def __init__(
        self,
        meet: Rendezvous,
        memory: GuestMemory,
        gate: Gate,
        vcpus: Mapping[int, Vcpu],
        limits: Limits,
        time_stands_still: Callable[[bool], None],
    ) -> None:
        self.held = False
        self._meet = meet
        self._memory = memory
        self._gate = gate
        self._vcpus = vcpus
        self._limits = limits
        self._time_stands_still = time_stands_still
        self._lease: asyncio.TimerHandle | None = None
        self._raw_kicks: list[asyncio.Future[None]] = []
        gate.on_idle = self._end_expired

    async def kick(
        self,
        name: str,
        wait_ms: int | None,
        lease_ms: int | None,
        if_generation: int | None,
        *,
        is_remembered: bool = True,
    ) -> Kick:
        """See `Vm.kick_all_running_vcpus`."""
        check_name(name)
        lease_ms = min(self._limits.lease_ms if lease_ms is None else lease_ms, self._limits.max_lease_ms)
        renewed = self._gate.holds.renew(name, time.monotonic_ns())
        if renewed is not None:
            self._gate.check_generation(if_generation)
            self._start_lease(lease_ms)
            return Kick(name, self._meet.running, 0, self._generation, lease_ms, renewed=True, number=renewed.number)
        wait_ms = min(self._limits.wait_ms if wait_ms is None else wait_ms, self._limits.max_wait_ms)
        deadline = asyncio.get_running_loop().time() + wait_ms / 1000
        opened = await self._gate.acquire(name, wait_ms)
        opened.is_remembered = is_remembered
        try:
            self._gate.check_generation(if_generation)
            opened.kicked_at_ns = time.monotonic_ns()
            kicked = self._meet.running
            self.held = True
            self._time_stands_still(True)
            await self._meet.stop(KVM_REQ_HOLD, self._meet.contexts, deadline)
        except BaseException as error:
            opened.take(Step.GIVE_UP)
            self._release(None)
            if isinstance(error, TimeoutError):
                raise KvmError(errno.ETIMEDOUT, f"a vCPU did not leave guest mode within {wait_ms} ms") from None
            raise
        self._gate.check_open()
        opened.undo = self._memory.begin_undo()
        opened.take(Step.QUIET)
        self._start_lease(lease_ms)
        kick_ns = time.monotonic_ns() - opened.kicked_at_ns
        kick = Kick(name, kicked, kick_ns, self._generation, lease_ms, number=opened.number)
        self._gate.opened(opened, kick)
        return kick

    def resume(self, name: str) -> Resume:
        """See `Vm.resume_all_kicked_vcpus`."""
        held = self._gate.holds.get(name, time.monotonic_ns())
        held.take(Step.RESUME)
        failure = held.error
        self._settle(held, keep=failure is None)
        self._release("was rolled back" if failure else RESUMED)
        pause_ns = time.monotonic_ns() - held.kicked_at_ns
        if failure is not None:
            data = failure.data | {"rolled_back": True, "pause_ns": pause_ns, "generation": self._generation}
            raise KvmError(failure.errno, failure.message, failure.ioctl, **data)
        return Resume(pause_ns, self._generation)

    async def publish(self, regions: Sequence[Region], entry: Entry, max_log_bytes: int | None) -> Published:
        """Make several changes one, in a hold of its own; see `Vm.set_user_memory_region_list`."""
        name = secrets.token_hex(16)
        wait_ms = entry.get("wait_ms")
        if wait_ms == 0:
            self._gate.holds.admit(None, time.monotonic_ns())
            wait_ms = None
        self._gate.check_generation(entry.get("if_generation"))
        prepared: Prepared | None = None
        # What can be refused is refused before the kick, and the guest waits for the publication alone.
        try:
            prepared = await self._prepared(regions, max_log_bytes)
        except KvmError:
            # What somebody else's hold may change yet is judged behind it.
            if self._gate.is_free:
                raise
        await self.kick(name, wait_ms, None, entry.get("if_generation"), is_remembered=False)
        try:
            if prepared is None or not self._memory.is_current(prepared):
                prepared = self._memory.prepare(regions, max_log_bytes)
        except BaseException:
            self.abandon(name)
            raise
        dirty = self._memory.publish(prepared, self._gate.holds.get(name, time.monotonic_ns()).undo)
        resumed = self.resume(name)
        return Published(resumed.generation, resumed.pause_ns, dirty)

    async def _prepared(self, regions: Sequence[Region], max_log_bytes: int | None) -> Prepared:
        """Prepare changes; many of them on a thread, since they take longer than others should wait."""
        if len(regions) <= _MANY_REGIONS:
            return self._memory.prepare(regions, max_log_bytes)
        return await asyncio.to_thread(self._memory.prepare, regions, max_log_bytes)

    def expire(self, name: str, became: str = EXPIRED) -> None:
        """End an open hold that its owner has left: once the calls inside are over, it is rolled back and released."""
        current = self._gate.holds.current
        if current is None or current.name != name or current.undo is None or current.state is State.EXPIRED:
            return
        current.take(Step.EXPIRE)
        current.became = became
        if not current.calls:
            self._end_expired(current)

    def abandon(self, name: str) -> None:
        """See `Vm.abandon_hold`."""
        current = self._gate.holds.current
        if current is not None and current.name == name and current.undo is not None:
            current.take(Step.RESUME)
            self._release(None)

    def fail(self, name: str, error: KvmError) -> None:
        """See `Vm.fail_hold`."""
        current = self._gate.holds.current
        if current is not None and current.name == name and current.undo is not None:
            self._gate.fail(current, error)

    async def kick_raw(self) -> Kick:
        """See `Vm.kick_all_running_vcpus` without a hold."""
        start = time.monotonic_ns()
        runs = [(vcpu, run) for vcpu in self._vcpus.values() if (run := vcpu.run_in_flight) is not None]
        resumed = asyncio.get_running_loop().create_future()
        self._raw_kicks.append(resumed)
        try:
            await self._meet.stop(KVM_REQ_USERSPACE_KICK, self._meet.contexts, overtaken=resumed)
            if not resumed.done():
                # Most have nothing left to complete: they end here, without a worker's turn each.
                for vcpu, run in runs:
                    vcpu.end_kicked(run)
                self._meet.wake(self._meet.contexts)
            # A resume that overtakes the kick lets runs go on that have not seen it: nobody waits for those.
            left = {run.done for _, run in runs if not run.done.done()}
            while left and not resumed.done():
                await asyncio.wait({*left, resumed}, return_when=asyncio.FIRST_COMPLETED)
                left = {done for done in left if not done.done()}
        finally:
            self._raw_kicks.remove(resumed)
        self._gate.check_open()
        return Kick(None, len(runs), time.monotonic_ns() - start, self._generation, None)

    def resume_raw(self) -> Resume:
        """See `Vm.resume_all_kicked_vcpus` without a hold."""
        self._meet.go(KVM_REQ_USERSPACE_KICK, self._meet.contexts)
        for kick in self._raw_kicks:
            if not kick.done():
                kick.set_result(None)
        for vcpu in self._vcpus.values():
            vcpu.notice()
        return Resume(None, self._generation)

    def close(self) -> None:
        """Let go of the lease; the VM is being destroyed."""
        if self._lease is not None:
            self._lease.cancel()

    @property
    def _generation(self) -> int:
        return self._memory.view.memslots.generation

    def _start_lease(self, lease_ms: int) -> None:
        current = self._gate.holds.current
        if current is None:
            return
        if self._lease is not None:
            self._lease.cancel()
        self._lease = asyncio.get_running_loop().call_later(lease_ms / 1000, self.expire, current.name)

    def _end_expired(self, held: Hold) -> None:
        if held.state is State.EXPIRED:
            held.take(Step.ROLL_BACK)
            self._settle(held, keep=False)
            self._release(held.became)

    def _settle(self, held: Hold, *, keep: bool) -> None:
        if held.undo is not None:
            (self._memory.keep if keep else self._memory.roll_back)(held.undo)

    def _release(self, became: str | None) -> None:
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None
        if self.held:
            self.held = False
            self._time_stands_still(False)
        self._meet.go(KVM_REQ_HOLD, self._meet.contexts)
        self._gate.release(became)
