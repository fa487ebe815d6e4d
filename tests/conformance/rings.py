"""Dirty rings asked of both KVMs: random sequences with capabilities in any order, changes of slots, and accesses.

What rings hold is compared as sets, since the kernel has freedoms there. It puts a page in a ring that the guest only
read, since it maps it writable; then the first store finds it logged. When any slot is deleted or moved, all its
translations go, and a page that is in a ring gets there again. And where KVM_DIRTY_LOG_INITIALLY_SET is on, a page that
was written before its slot's log was switched on is in no ring at all. KVM on x86 has no bitmaps beside rings.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.conformance.freedom import Freedom
from tests.conformance.kernel import Kvm
from tests.conformance.oracle import ask_kernel
from tests.conformance.recording import Answer, Operation, Sequence
from tests.conformance.replay import Replay
from tests.conformance.subjects import InProcess
from tests.conformance.table import LOG_DIRTY, Table, pieces_of
from vmmd.kvm.errors import KvmError
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SHIFT, PAGE_SIZE

_MANUAL, _RING = "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", "KVM_CAP_DIRTY_LOG_RING"
_SIZES = [
    1 << 16,
    1 << 16,
    1 << 20,
    (7 << 32) + (1 << 16),
    0,
    3,
    1 << 11,
    5000,
    1 << 21,
    1 << 32,
    (2 << 32) + (1 << 21),
]
"""Ring sizes that are right, or wrong, whatever the processor wants to have reserved."""

_HOST_PAGES = 64
_INITIALLY_SET = 2

Entry = tuple[int, int]


def draw(rng: random.Random) -> Sequence:
    """Draw a sequence: what comes before the vCPU, and what comes after it."""
    early = [_early(rng) for _ in range(rng.randrange(6))]
    if rng.random() < 0.8:
        at = rng.randrange(len(early) + 1)
        early.insert(at, {"op": "enable_cap", "cap": _RING, "arg": 1 << 16})
    host = {"b0": _HOST_PAGES * PAGE_SIZE}
    late = [op for _ in range(rng.randrange(10, 70)) for op in _late(rng)]
    return {"host": host, "holes": {}, "early": early, "ops": late}


def _early(rng: random.Random) -> Operation:
    match rng.randrange(5):
        case 0 | 1:
            return {"op": "enable_cap", "cap": _MANUAL, "arg": rng.choice([0, 1, 3, 3, 2])}
        case 2:
            return {"op": "enable_cap", "cap": _RING, "arg": rng.choice(_SIZES)}
        case _:
            return _set(rng)


def _late(rng: random.Random) -> list[Operation]:
    chance = rng.random()
    if chance < 0.2:
        return [{"op": "harvest"}, _set(rng)] if rng.random() < 0.5 else [_set(rng)]
    if chance < 0.75:
        access = {"gpa": rng.randrange(66) * PAGE_SIZE + rng.choice([0, 8, PAGE_SIZE - 4]), "size": 8}
        if rng.random() < 0.2:
            return [{"op": "guest_read"} | access]
        return [{"op": "guest_write", "value": rng.getrandbits(64)} | access]
    if chance < 0.9:
        # A reset frees what is harvested. Were the kernel's second entry of a page left in the ring by then, nobody
        # could tell it from one that vmmd has lost.
        harvest = {"op": "harvest"}
        return [harvest] if rng.random() < 0.5 else [harvest, {"op": "reset_dirty_rings"}]
    return [{"op": "get_dirty_log", "slot": rng.randrange(3)} if chance < 0.97 else _early(rng)]


def _set(rng: random.Random) -> Operation:
    # Each slot has one size and one place in the host's memory, so that many of these calls are moves and new flags.
    slot = rng.randrange(3)
    return {
        "op": "set_user_memory_region",
        "slot": slot,
        "flags": rng.choice([LOG_DIRTY, LOG_DIRTY, 0]),
        "guest_phys_addr": rng.choice([slot * 20, slot * 20, rng.randrange(_HOST_PAGES)]) * PAGE_SIZE,
        "memory_size": rng.choice([0, 16, 16, 16]) * PAGE_SIZE,
        "userspace_addr": {"at": "b0", "offset": slot * 16 * PAGE_SIZE},
    }


class RingSubject(InProcess):
    """A VM of vmmd's, with rings."""

    def harvest(self) -> Answer:
        """Take all that is in the vCPU's ring; nothing where there is none."""
        ring = self._vm.vcpu(0).context.ring
        return {"entries": [] if ring is None else self._vm.vcpu(0).harvest_dirty_ring(1 << 16)}

    async def reset(self) -> Answer:
        """Free what was harvested."""
        try:
            return {"errno": "0", "count": await self._vm.reset_dirty_rings()}
        except KvmError as error:
            return {"errno": error.name, "count": 0}

    async def ask(self, replay: Replay, op: Operation) -> Answer:
        """Ask an operation, one of rings or any other, and give the answer in the oracle's form."""
        match op["op"]:
            case "harvest":
                return self.harvest()
            case "reset_dirty_rings":
                return await self.reset()
        return await replay.do(op)


async def first_difference(kvm: Kvm, windows: Iterable[range], vm: Vm, sequence: Sequence) -> str | None:
    """Ask both KVMs a sequence, with a fresh VM of vmmd's, and say where their answers first differ."""
    subject, freedom = RingSubject(vm), RingFreedom()
    replay = Replay(subject)
    await replay.map_host(sequence)
    asked: list[Operation] = []

    def differs(op: Operation, kernel: Answer, vmmd: Answer) -> str | None:
        asked.append(op)
        return f"{asked}: the kernel {kernel}, vmmd {vmmd}" if freedom.differ(op, kernel, vmmd) else None

    async with ask_kernel(kvm, windows, sequence) as oracle:
        for op, answer in zip(sequence["early"], oracle.early, strict=True):
            if found := differs(op, answer, await subject.ask(replay, op)):
                return found
        await vm.create_vcpu(0)
        await replay.place_guest()
        for op in sequence["ops"]:
            if found := differs(op, await oracle.do(op), await subject.ask(replay, op)):
                return found
    return None


class RingFreedom:
    """Where two answers may differ. Each pair is given to `differ` in the order in which it was asked."""

    def __init__(self) -> None:
        self._table = Table()
        self._bitmaps = Freedom(self._table)
        self._harvested: tuple[set[Entry], set[Entry]] = (set(), set())
        self._counts = [0, 0]
        self._read: set[Entry] = set()
        self._unprotected: set[int] = set()
        self._rings_are_empty = True

    def differ(self, op: Operation, kernel: Answer, vmmd: Answer) -> bool:
        """Tell whether two answers to an operation are not as good as equal, and follow it."""
        match op["op"]:
            case "harvest":
                return self._harvest_differs(kernel["entries"], vmmd["entries"])
            case "reset_dirty_rings":
                wanted, self._counts = self._counts, [0, 0]
                self._harvested, self._read = (set(), set()), set()
                differs = kernel["errno"] != vmmd["errno"]
                return differs or [kernel["count"], vmmd["count"]] != wanted
            case "guest_read" | "guest_write":
                self._rings_are_empty = False
                self._read |= self._entries_of(op) if op["op"] == "guest_read" else set()
        differs = kernel != vmmd and not (op["op"] == "get_dirty_log" and self._bitmaps.covers(op, kernel, vmmd))
        self._bitmaps.take(op, kernel)
        if op["op"] in {"set_user_memory_region", "enable_cap"} and kernel["errno"] == "0":
            self._follow(op)
        return differs

    def _harvest_differs(self, kernel: list[Entry], vmmd: list[Entry]) -> bool:
        self._rings_are_empty = True
        before_kernel, before_vmmd = self._harvested
        more, less = set(kernel) - set(vmmd), set(vmmd) - set(kernel)
        self._harvested = (before_kernel | set(kernel), before_vmmd | set(vmmd))
        self._counts = [self._counts[0] + len(kernel), self._counts[1] + len(vmmd)]
        lost = more - before_vmmd - self._read
        invented = {entry for entry in less - before_kernel if entry[0] not in self._unprotected}
        return bool(lost or invented)

    def _follow(self, op: Operation) -> None:
        if op["op"] == "set_user_memory_region":
            old = self._table.slots.get(op["slot"])
            switched_on = old is not None and op["memory_size"] and not old.is_logged and op["flags"] & LOG_DIRTY
            if switched_on and self._table.log_mode & _INITIALLY_SET:
                self._unprotected.add(op["slot"])
        elif op["cap"] != _MANUAL:
            return
        if self._table.take(op) not in {None, "nothing"} and self._rings_are_empty:
            # Both put every page of a slot that was changed itself in a ring again.
            kernel, vmmd = ({entry for entry in entries if entry[0] != op["slot"]} for entries in self._harvested)
            self._harvested = kernel, vmmd

    def _entries_of(self, access: Operation) -> set[Entry]:
        found = [(self._table.find(gpa), gpa) for gpa in pieces_of(access)]
        return {(hit[0], gpa - hit[1].gpa >> PAGE_SHIFT) for hit, gpa in found if hit is not None and hit[1].is_logged}
