"""The gate before every call that uses memslots: who is inside the hold passes, who is not is refused or waits.

It drives `hold.Holds` on the event loop: the line of those who want a hold, and the count of calls under way without
one, which a kick waits for. It knows nothing of vCPUs and memory.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypedDict

from vmmd.kvm.errors import KvmError, as_kvm_error, in_ioctl
from vmmd.kvm.hold import RESUMED, Hold, Holds, Kick, Step
from vmmd.kvm.observer import HoldEnded, HoldFailed, HoldOpened, Note, ignore, slots_changed
from vmmd.memory.region import Region


class Entry(TypedDict, total=False):
    """What a gated call may ask for at the gate.

    `hold`: the name of the hold that it belongs to. `wait_ms`: for how many milliseconds it waits while somebody else's
    is open. `if_generation`: the generation that the slot table is to have, once the call is let in.
    """

    hold: str | None
    wait_ms: int
    if_generation: int | None


class Passage:
    """A call's way through the gate, in and out. A class and no generator, since every call takes it."""

    __slots__ = ("_entry", "_gate", "_hold", "_ioctl")

    def __init__(self, gate: Gate, entry: Entry, ioctl: str | None) -> None:
        self._gate = gate
        self._entry = entry
        self._ioctl = ioctl
        self._hold: Hold | None = None

    async def __aenter__(self) -> Hold | None:
        # What nearly every call finds comes first: there is no hold, and nothing is asked for.
        if self._entry or not self._gate.is_free:
            with in_ioctl(self._ioctl):
                self._hold = await self._gate.admit(self._entry)
        if self._hold is None:
            self._gate.count(1)
        else:
            self._hold.calls += 1
        return self._hold

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        hold, self._hold = self._hold, None
        if hold is None:
            self._gate.count(-1)
        try:
            self._tell(hold, error)
        finally:
            if hold is not None:
                hold.calls -= 1
                if not hold.calls:
                    self._gate.on_idle(hold)

    def _tell(self, hold: Hold | None, error: BaseException | None) -> None:
        """Fail the hold with an error of the call, and name the ioctl in it."""
        if not isinstance(error, Exception):
            return
        named = as_kvm_error(error, self._ioctl)
        if hold is not None:
            self._gate.fail(hold, named or KvmError(errno.EIO, "an error inside the daemon"))
        if named is not None and named is not error:
            try:
                raise named from None
            finally:
                # An error and the frame that names it are a cycle, and would keep the hold's memory.
                del named, error, hold


class Gate:
    """The gate of one VM.

    Args:
        generation: gives the slot table's generation.
        max_wait_ms: for how long a call may wait at most, in milliseconds.
        note: told what becomes of holds, behind their pause: when the event loop comes round.

    Attributes:
        holds: the state machine that it asks.
        on_idle: told of a hold when the last call inside it is over.
    """

    def __init__(self, generation: Callable[[], int], max_wait_ms: int, note: Note = ignore) -> None:
        self._note = note
        self.holds = Holds()
        self.on_idle: Callable[[Hold], None] = lambda _hold: None
        self._generation = generation
        self._max_wait_ms = max_wait_ms
        self._under_way = 0
        self._changed: asyncio.Future[None] | None = None
        self._closed: KvmError | None = None
        self._last: KvmError | None = None

    @property
    def is_free(self) -> bool:
        """Whether there is no hold, and the VM is not being destroyed."""
        return self.holds.current is None and self._closed is None

    def inside(self, entry: Entry, ioctl: str | None = None) -> Passage:
        """Be inside for the length of a call: `async with gate.inside(…) as hold`; None where there is no hold.

        What fails inside fails the hold, and errors carry the ioctl's name.

        Raises:
            KvmError: as `Holds.admit`; EBUSY for a held VM only after `wait_ms` milliseconds; ESTALE where the slot
                table has moved on, which fails the hold too.
        """
        return Passage(self, entry, ioctl)

    def count(self, calls: int) -> None:
        """Count calls under way outside any hold, up or down; whoever waits for them looks again."""
        self._under_way += calls
        if calls < 0:
            self._wake()

    def fail(self, hold: Hold, error: KvmError) -> None:
        """Note that something inside a hold failed; the first error stands."""
        hold.take(Step.FAIL)
        if hold.error is None:
            hold.error = error
            asyncio.get_running_loop().call_soon(self._note, HoldFailed(hold.number, error.errno))

    async def acquire(self, name: str, wait_ms: int) -> Hold:
        """Open a hold, in line after those who came before, and wait for the calls under way.

        Raises:
            KvmError: ETIMEDOUT after `wait_ms` milliseconds, with nothing left behind.
        """
        deadline = asyncio.get_running_loop().time() + wait_ms / 1000
        self._check_takes_holds()
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self.holds.stand_in_line(ticket, name):
            await self._wait_in_line(ticket, name, deadline, wait_ms)
        hold = self.holds.current
        assert hold is not None, "the line opens the hold of its first"  # noqa: S101
        try:
            while self._under_way:
                self.check_open()
                if not await self._change(deadline):
                    raise KvmError(errno.ETIMEDOUT, f"{self._under_way} calls were still under way after {wait_ms} ms")
        except BaseException:
            hold.take(Step.GIVE_UP)
            self.release(None)
            raise
        return hold

    def opened(self, hold: Hold, kick: Kick) -> None:
        """Tell that a hold is open."""
        asyncio.get_running_loop().call_soon(self._tell_opened, hold.number, kick)

    def release(self, became: str | None) -> None:
        """Forget the current hold, which has ended, and let the next one in line open."""
        hold = self.holds.current
        if hold is not None and hold.undo is not None and became is not None:
            loop, pause_ns = asyncio.get_running_loop(), time.monotonic_ns() - hold.kicked_at_ns
            loop.call_soon(self._tell_ended, hold, became, pause_ns, hold.undo.changed, self._generation())
        self.holds.end(time.monotonic_ns(), became)
        ticket = self.holds.admit_next()
        if isinstance(ticket, asyncio.Future):
            ticket.set_result(None)
        self._wake()

    def end_line(self, error: KvmError) -> None:
        """Open no more holds: whoever stands in line is refused when its turn comes."""
        self._last = error

    def close(self, error: KvmError) -> None:
        """Refuse everybody from now on, those who wait too."""
        self._closed = error
        hold = self.holds.current
        while hold is not None:
            self.release("went with its VM")
            hold = self.holds.current
        self._wake()

    @asynccontextmanager
    async def alone(self, wait_ms: int, if_generation: int | None, refusal: str) -> AsyncIterator[None]:
        """Be inside with nobody else: calls under way are over, and others stay out, as of a held VM, and are told why.

        Raises:
            KvmError: EBUSY while the VM is held, after `wait_ms` milliseconds; ESTALE where the table has moved on.
        """
        await self.admit({"wait_ms": wait_ms, "if_generation": if_generation})
        hold = await self.acquire(f"alone {secrets.token_hex(8)}", self._max_wait_ms)
        hold.refusal = refusal
        try:
            yield
        finally:
            if self.holds.current is hold:
                hold.take(Step.GIVE_UP)
                self.release(None)

    @property
    def open_hold(self) -> str | None:
        """The name of the hold that was opened and is not over; None also while its kick still waits."""
        current = self.holds.current
        return current.name if current is not None and current.undo is not None else None

    async def admit(self, entry: Entry) -> Hold | None:
        """Let a call in, now or as soon as it may; see `inside`."""
        wait_ms = min(entry.get("wait_ms", 0), self._max_wait_ms)
        deadline = asyncio.get_running_loop().time() + wait_ms / 1000
        while True:
            self.check_open()
            try:
                hold = self.holds.admit(entry.get("hold"), time.monotonic_ns())
                break
            except KvmError as error:
                if error.errno != errno.EBUSY:
                    raise
                if not await self._change(deadline):
                    raise self._waited_out(error, entry.get("wait_ms", 0)) from None
        try:
            self.check_generation(entry.get("if_generation"))
        except KvmError as stale:
            if hold is not None:
                self.fail(hold, stale)
            raise
        return hold

    def _waited_out(self, busy: KvmError, asked_ms: int) -> KvmError:
        """Say to a caller who asked for more time than there is that it was less."""
        if asked_ms <= self._max_wait_ms:
            return busy
        cut = f"it waited {self._max_wait_ms} ms of the {asked_ms} it asked for, as long as limits.max_wait_ms allows"
        return KvmError(busy.errno, f"{busy.message}; {cut}")

    def check_generation(self, wanted: int | None) -> None:
        """Refuse a call that was made for another slot table.

        Raises:
            KvmError: ESTALE.
        """
        generation = self._generation()
        if wanted is not None and wanted != generation:
            raise KvmError(
                errno.ESTALE,
                f"the slot table has generation {generation} and not {wanted}; read it with vm.get_memory_regions",
                generation=generation,
            )

    async def _wait_in_line(self, ticket: asyncio.Future[None], name: str, deadline: float, wait_ms: int) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(ticket)
            self._check_takes_holds()
        except BaseException as error:
            if ticket.done():
                # Its turn came while it was going away.
                if self.holds.current is not None:
                    self.holds.current.take(Step.GIVE_UP)
                    self.release(None)
            else:
                self.holds.step_out(ticket)
                ticket.cancel()
            if isinstance(error, TimeoutError):
                advice = "wait longer with wait_ms, or resume it"
                if wait_ms >= self._max_wait_ms:
                    advice = (
                        f"nobody waits longer than limits.max_wait_ms = {self._max_wait_ms}; resume it, or raise it"
                    )
                message = f"another hold was open for {wait_ms} ms; {advice}"
                raise KvmError(errno.ETIMEDOUT, message) from None
            raise

    def check_open(self) -> None:
        """Refuse where the VM is being destroyed.

        Raises:
            KvmError: ECANCELED.
        """
        if self._closed is not None:
            raise KvmError(self._closed.errno, self._closed.message)

    def _check_takes_holds(self) -> None:
        self.check_open()
        if self._last is not None:
            raise KvmError(self._last.errno, self._last.message)

    def _tell_opened(self, number: int, kick: Kick) -> None:
        self._note(HoldOpened(number, kick.kicked, kick.kick_ns, kick.lease_ms, kick.generation))

    def _tell_ended(self, hold: Hold, became: str, pause_ns: int, changed: list[Region], generation: int) -> None:
        kept = became == RESUMED
        if kept and changed:
            self._note(slots_changed(generation, changed, hold.number))
        expired = hold.became is not None
        self._note(HoldEnded(hold.number, not kept, expired, became, pause_ns, generation))

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None

    async def _change(self, deadline: float) -> bool:
        """Wait until something has changed; tell whether it did before the deadline."""
        loop = asyncio.get_running_loop()
        if loop.time() >= deadline:
            return False
        if self._changed is None:
            self._changed = loop.create_future()
        await asyncio.wait([self._changed], timeout=deadline - loop.time())
        return True
