"""Atomic updates that are hit by a fault at every place there is, and what has to be so afterwards.

The update merges two slots that a running vCPU loads from, and splits them again. It is made by single calls in a hold,
by one call with a list, and by one batch. Afterwards the map is the old one or the new one, the guest has seen neither
a hole nor a wrong value and goes on, nobody is held, nobody waits, and no memory is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tests.faults.inject import FAULTS, Fault, Faulty
from vmmd.isa.assembler import assemble
from vmmd.isa.engine import CompiledEngine, ContextGroup, EvaluatedEngine
from vmmd.kvm.errors import KvmError
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import Region

CODE, DATA = 0x1000, 0x20_0000
READER = "1: ld a1, 0(a0)\n bne a1, s1, 2f\n ld a2, 0(a3)\n beq a2, s2, 1b\n 2: ebreak"
LEASE_MS = 20
WAIT_MS = 20_000
LATE = 3
"""How often a vCPU is not seen outside guest mode before it is, so that every wait really waits."""


class LateEngine:
    """An engine on which every wait for vCPUs takes a few looks."""

    def __init__(self, engine: CompiledEngine | EvaluatedEngine) -> None:
        self._engine = engine
        self._looks = 0

    def wait_outside(self, group: ContextGroup, view_number: int, yields: int) -> int:
        self._looks += 1
        if self._looks % (LATE + 1):
            return 1
        return self._engine.wait_outside(group, view_number, yields)

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


@dataclass
class Subject:
    """A VM with a vCPU that reads the two pages for good."""

    vm: Vm
    base: int
    run: asyncio.Task[object]
    number: int = 0

    @property
    def split(self) -> list[Region]:
        """The two slots, each a page."""
        return [
            Region(1, 0, DATA, PAGE_SIZE, self.base),
            Region(2, 0, DATA + PAGE_SIZE, PAGE_SIZE, self.base + PAGE_SIZE),
        ]

    @property
    def merged(self) -> list[Region]:
        """The one slot."""
        return [Region(1, 0, DATA, 2 * PAGE_SIZE, self.base)]

    def map(self) -> list[Region]:
        """What is set now, but for the code."""
        return [
            Region(slot.slot, slot.flags, slot.guest_phys_addr, slot.memory_size, slot.userspace_addr)
            for slot in self.vm.memory_regions()[1]
            if slot.slot
        ]

    def changes(self) -> tuple[list[Region], list[Region]]:
        """Return the calls of the next update, and the map after it."""
        now = self.map()
        after = self.merged if len(now) == 2 else self.split
        return [Region(region.slot, 0, 0, 0, 0) for region in now] + after, after

    def name(self) -> str:
        self.number += 1
        return f"update {self.number}"


async def subject(system: System) -> Subject:
    """Make one, with its vCPU running."""
    vm = system.create_vm()
    vm._meet.engine = LateEngine(vm._meet.engine)
    code = await vm.map_host_memory(PAGE_SIZE)
    base = await vm.map_host_memory(2 * PAGE_SIZE)
    await vm.set_user_memory_region(0, 0, CODE, PAGE_SIZE, code)
    made = Subject(vm, base, asyncio.create_task(asyncio.sleep(0)))
    await vm.set_user_memory_region_list(made.split)
    await vm.write_guest_memory(CODE, assemble(READER, CODE).code)
    for page, value in ((0, 5), (1, 6)):
        await vm.write_guest_memory(DATA + page * PAGE_SIZE, value.to_bytes(8, "little"))
    vcpu = await vm.create_vcpu(0)
    await vcpu.set_regs({"pc": CODE, "a0": DATA, "a3": DATA + PAGE_SIZE, "s1": 5, "s2": 6})
    made.run = asyncio.create_task(vcpu.run())
    await _progress(made)
    return made


async def single_calls(subject: Subject, regions: Sequence[Region], calls: int | None = None) -> None:
    """Update by a kick, a call for each change, and a resume; or by the first so many of these calls, and no more."""
    vm, hold = subject.vm, subject.name()

    def change(region: Region) -> Callable[[], Awaitable[object]]:
        return lambda: vm.set_user_memory_region(
            region.slot,
            region.flags,
            region.guest_phys_addr,
            region.memory_size,
            region.userspace_addr,
            hold=hold,
            wait_ms=WAIT_MS,
        )

    steps: list[Callable[[], Awaitable[object]]] = [
        lambda: vm.kick_all_running_vcpus(hold, wait_ms=WAIT_MS, lease_ms=LEASE_MS),
        *(change(region) for region in regions),
        lambda: vm.resume_all_kicked_vcpus(hold),
    ]
    for step in steps[:calls]:
        await step()
        # Where the client is, there is always a wait.
        await asyncio.sleep(0)


async def one_list(subject: Subject, regions: Sequence[Region]) -> None:
    """Update by one call."""
    await subject.vm.set_user_memory_region_list(regions, wait_ms=WAIT_MS)


Update = Callable[[Subject, Sequence[Region]], Awaitable[None]]
UPDATES: dict[str, Update] = {"calls in a hold": single_calls, "one list call": one_list}


@dataclass
class Row:
    """What one kind of update came to under one kind of fault."""

    update: str
    fault: str
    positions: int = 0
    old: int = 0
    new: int = 0


async def at_every_wait(system: System, update: str, fault: str) -> Row:
    """Hit an update at its first wait, another at its second, and so on, until one has no more waits."""
    row = Row(update, fault)
    made = await subject(system)
    while True:
        regions, after = made.changes()
        before = made.map()
        faulty = Faulty(UPDATES[update](made, regions), row.positions, FAULTS[fault])
        with suppress(Fault, asyncio.CancelledError, KvmError):
            await faulty
        if not faulty.was_reached:
            break
        row.positions += 1
        await _settle(made, before, after, row)
    await _end(system, made)
    return row


async def behind_every_call(system: System) -> Row:
    """Have a client that makes the first so many calls of an update and is never heard of again."""
    row = Row("calls in a hold", "killed client")
    made = await subject(system)
    calls = len(made.changes()[0]) + 2
    for count in range(calls):
        regions, after = made.changes()
        before = made.map()
        await single_calls(made, regions, count)
        row.positions += 1
        await _settle(made, before, after, row)
    await _end(system, made)
    return row


async def _settle(made: Subject, before: list[Region], after: list[Region], row: Row) -> None:
    """Wait until nobody is held, and look at everything."""
    await made.vm.read_guest_memory(DATA, 8, wait_ms=WAIT_MS)
    now = made.map()
    assert now in (before, after), (row, now)
    row.old += now == before
    row.new += now == after
    await _progress(made)
    assert not made.run.done(), made.run.result()
    used = made.vm._memory._ledger.used_bytes
    assert used == 3 * PAGE_SIZE, f"{used} bytes are used"
    regions, _ = made.changes()
    await single_calls(made, regions)
    await _progress(made)


async def _progress(made: Subject) -> None:
    before = made.vm.stats().instructions
    while made.vm.stats().instructions == before:
        assert not made.run.done(), made.run.result()
        await asyncio.sleep(0)


async def _end(system: System, made: Subject) -> None:
    await system.destroy_vm(made.vm.id)
    with suppress(KvmError):
        await made.run
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in left if "vmmd" in repr(task)], left
