"""Asks the kernel and vmmd the same sequence, step by step, and says where they first differ.

After each call that the kernel refused both are looked at: vmmd's slot table and its generation have to be those from
before, and a few further operations on both, which should change nothing, have to find the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from tests.conformance.askable import Askable
from tests.conformance.freedom import Freedom
from tests.conformance.recording import Answer, Operation, Sequence
from tests.conformance.table import Slot, Table, pieces_of

_PROBED_PAGES = 1 << 12
_PROBED_BYTES = 8


class Kernel(Protocol):
    """What answers as the kernel."""

    async def do(self, operation: Operation) -> Answer:
        """Return the kernel's answer to one operation."""


class Vmmd(Protocol):
    """What answers as vmmd."""

    async def do(self, operation: Operation) -> Answer:
        """Return vmmd's answer to one operation."""

    async def table(self) -> object:
        """Return the slot table with its generation, as a value to compare."""


@dataclass
class Tally:
    """What was asked.

    Attributes:
        sequences: how many were begun.
        answers: operations by their name and the kernel's answer.
        changes: kinds of change to the slots.
        refused: calls that the kernel refused, after which both were looked at, with so many `probes`.
        left_out: accesses that were not asked.
        freedom: logs in which the kernel had bits that it is free to set.
    """

    sequences: int = 0
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    probes: int = 0
    refused: int = 0
    left_out: int = 0
    freedom: int = 0

    @property
    def operations(self) -> int:
        """How many operations both were asked, probes aside."""
        return self.answers.total()


@dataclass(frozen=True)
class Difference:
    """Where the two first differ. `probe` is what showed it, where it was no operation of the sequence itself."""

    index: int
    operation: Operation
    kernel: object
    vmmd: object
    probe: Operation | None = None
    is_table: bool = False

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [f"operation {self.index}: {json.dumps(self.operation)}"]
        if self.is_table:
            lines.append("the kernel refused it, and vmmd's slot table is not what it was")
            return "\n".join([*lines, f"  before: {self.kernel}", f"  after:  {self.vmmd}"])
        if self.probe is not None:
            lines.append(f"the kernel refused it, and after that they differ on {json.dumps(self.probe)}")
        return "\n".join([*lines, f"  kernel: {json.dumps(self.kernel)}", f"  vmmd:   {json.dumps(self.vmmd)}"])


class Comparison:
    """One sequence asked of both. `askable` says what a guest may touch; `tally` counts what is asked."""

    def __init__(self, kernel: Kernel, vmmd: Vmmd, askable: Askable, tally: Tally) -> None:
        self._kernel = kernel
        self._vmmd = vmmd
        self._askable = askable
        self._tally = tally
        self._table = Table()
        self._freedom = Freedom(self._table)

    async def run(self, sequence: Sequence) -> Difference | None:
        """Ask all of it, up to the first difference."""
        self._tally.sequences += 1
        for index, operation in enumerate(sequence["ops"]):
            found = await self._step(index, operation)
            if found is not None:
                return found
        return None

    async def _step(self, index: int, op: Operation) -> Difference | None:
        if is_left_out(op, self._table):
            self._tally.left_out += 1
            return None
        # The kernel is asked first: only where it refuses does vmmd's table have to be looked at before and after.
        kernel = await self._kernel.do(op)
        is_refused = kernel.get("errno", "0") != "0"
        before = await self._vmmd.table() if is_refused else None
        vmmd = await self._ask_vmmd(op)
        self._tally.answers[op["op"], summary(kernel)] += 1
        if not self._agree(op, kernel, vmmd):
            return Difference(index, op, kernel, vmmd)
        change = self._follow(op, kernel)
        if change is not None:
            self._tally.changes[change] += 1
        if is_refused:
            self._tally.refused += 1
            after = await self._vmmd.table()
            if after != before:
                return Difference(index, op, before, after, is_table=True)
            return await self._probe(index, op)
        return None

    async def _probe(self, index: int, refused: Operation) -> Difference | None:
        for probe in probes(refused, self._table, self._askable):
            if is_left_out(probe, self._table):
                continue
            self._tally.probes += 1
            kernel, vmmd = await self._kernel.do(probe), await self._ask_vmmd(probe)
            if not self._agree(probe, kernel, vmmd):
                return Difference(index, refused, kernel, vmmd, probe)
            self._follow(probe, kernel)
        return None

    async def _ask_vmmd(self, op: Operation) -> Answer:
        """Ask vmmd; where that raises what is no answer, this is what it answered."""
        try:
            return await self._vmmd.do(op)
        except Exception as error:
            return {"raised": f"{type(error).__name__}: {error}"}

    def _agree(self, op: Operation, kernel: Answer, vmmd: Answer) -> bool:
        if kernel == vmmd:
            return True
        is_free = op["op"] == "get_dirty_log" and self._freedom.covers(op, kernel, vmmd)
        self._tally.freedom += is_free
        return is_free

    def _follow(self, op: Operation, answer: Answer) -> str | None:
        """Take note of an answer; return what kind of change to the slots it was, if any."""
        self._freedom.take(op, answer)
        return self._table.take(op) if answer.get("errno", "0") == "0" else None


def is_left_out(op: Operation, table: Table) -> bool:
    """Tell whether an operation has two right answers: T64 has a rule of its own there, and the kernel follows x86.

    It is an access over a page's border whose first piece is MMIO, and whose second lies in a slot without its host
    page. T64 gives EFAULT before anything is done. x86's instruction is emulated from its first piece on, and KVM's
    emulator takes what it cannot write or read for MMIO: both pieces are exits.
    """
    if op["op"] not in {"guest_read", "guest_write"}:
        return False
    writing = op["op"] == "guest_write"
    first, *rest = pieces_of(op)
    return (
        table.is_mmio(first, writing=writing)
        and bool(rest)
        and table.is_lost(rest[0])
        and not table.is_mmio(rest[0], writing=writing)
    )


def probes(refused: Operation, table: Table, askable: Askable) -> Iterator[Operation]:
    """Give operations that find out whether a refused call changed something, and should change nothing themselves.

    They are about the slot that the call named and the slots that it would have met: the same region again, which is
    no change, its log where that is not cleared by reading, and loads at its first and last address; and a load where
    the call would have put something.
    """
    about = {refused["slot"]} if "slot" in refused else set(list(table.slots)[:1])
    if refused["op"] == "set_user_memory_region":
        about |= set(list(table.meeting(refused["guest_phys_addr"], refused["memory_size"]))[:2])
    for slot_id in sorted(about & table.slots.keys()):
        slot = table.slots[slot_id]
        yield slot.operation(slot_id)
        if slot.is_logged and table.is_manual and slot.npages <= _PROBED_PAGES:
            yield {"op": "get_dirty_log", "slot": slot_id}
        yield from _loads(slot, askable)
    gpa = refused.get("guest_phys_addr")
    if gpa is not None and askable.reaches(gpa, _PROBED_BYTES):
        yield {"op": "guest_read", "gpa": gpa, "size": _PROBED_BYTES}


def _loads(slot: Slot, askable: Askable) -> Iterator[Operation]:
    for gpa in (slot.gpa, slot.end - _PROBED_BYTES):
        if askable.reaches(gpa, _PROBED_BYTES):
            yield {"op": "guest_read", "gpa": gpa, "size": _PROBED_BYTES}


def summary(answer: Answer) -> str:
    """Return an answer in a word or two, to count it by."""
    if "exits" not in answer:
        return str(answer.get("errno", "done"))
    return " ".join(exit_.get("errno") or exit_["reason"] for exit_ in answer["exits"]) or "memory"
