"""The shrinker, and the whole way to it: a fault put into a subject is found among drawn sequences, and laid bare."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise

import pytest

from tests.conformance.askable import Askable
from tests.conformance.compare import Tally
from tests.conformance.generate import sequences
from tests.conformance.host import VMMD
from tests.conformance.live import Live
from tests.conformance.recording import Operation, Sequence
from tests.conformance.replay import Failure, Replay, Subject
from tests.conformance.shrink import Shrinker
from tests.conformance.subjects import InProcess, in_process
from vmmd.kvm.system import System
from vmmd.memory.limits import PAGE_SIZE


def write(gpa: int, value: int = 0) -> Operation:
    return {"op": "guest_write", "gpa": gpa, "size": 8, "value": value}


async def test_what_the_difference_does_not_need_is_left_out_and_made_plain() -> None:
    async def shows(sequence: Sequence) -> bool:
        writes = pairwise(op for op in sequence["ops"] if op["op"] == "guest_write")
        return any(a["gpa"] == b["gpa"] - PAGE_SIZE and b["value"] > 20 for a, b in writes)

    noise: list[Operation] = [{"op": "guest_read", "gpa": gpa, "size": 4} for gpa in range(20)]
    ops = [*noise, write(5 * PAGE_SIZE, 99), write(6 * PAGE_SIZE, 1 << 40), *noise]
    shortest = await Shrinker(shows).shrink({"ops": ops})
    # 32 is the plainest above 20: no bit of it can be left out.
    assert [(op["gpa"], op["value"]) for op in shortest["ops"]] == [(0, 0), (PAGE_SIZE, 32)]


async def test_it_gives_up_after_so_many_tries_with_the_best_that_it_has() -> None:
    tries = 0

    async def shows(sequence: Sequence) -> bool:
        nonlocal tries
        tries += 1
        return len(sequence["ops"]) >= 5

    shortest = await Shrinker(shows, most_tries=4).shrink({"ops": [write(0)] * 16})
    assert tries == 4
    assert 5 <= len(shortest["ops"]) < 16


class LosesTheTail(InProcess):
    """A log reads as if the last page of a slot with more than 64 of them had never been marked."""

    async def get_dirty_log(self, slot: int) -> bytes:
        bitmap = await super().get_dirty_log(slot)
        bits = int.from_bytes(bitmap, "little")
        return (bits & ~(1 << 64)).to_bytes(len(bitmap), "little")


class RefusesToMoveOverItself(InProcess):
    async def set_user_memory_region(self, slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
        old = self._vm.memslots.get(slot)
        if old is not None and (flags, size, hva) == (old.flags, old.memory_size, old.userspace_addr):
            by = abs(gpa - old.guest_phys_addr)
            if 0 < by < size and by % PAGE_SIZE == 0:
                raise Failure("EEXIST")
        await super().set_user_memory_region(slot, flags, gpa, size, hva)


@asynccontextmanager
async def as_kernel(system: System, sequence: Sequence) -> AsyncIterator[Replay]:
    async with in_process(system) as subject:
        replay = Replay(subject)
        await replay.begin(sequence)
        yield replay


@asynccontextmanager
async def faulty(system: System, fault: type[InProcess]) -> AsyncIterator[Subject]:
    vm = system.create_vm()
    try:
        await vm.create_vcpu(0)
        yield fault(vm)
    finally:
        await system.destroy_vm(vm.id)


@pytest.fixture
def engine_name() -> str:
    return "evaluated"


def live(system: System, fault: type[InProcess]) -> Live:
    return Live(partial(as_kernel, system), partial(faulty, system, fault), Askable(VMMD))


async def test_a_fault_in_a_log_is_found_and_laid_bare(system: System) -> None:
    found = await live(system, LosesTheTail).ask_all(sequences(Askable(VMMD), "a seed", 200), Tally())
    assert len(found) == 1
    assert found[0].comes_again
    names = [op["op"] for op in found[0].shortest["ops"]]
    assert len(names) <= 4
    assert "set_user_memory_region" in names
    region = next(op for op in found[0].shortest["ops"] if op["op"] == "set_user_memory_region")
    assert region["memory_size"] == 65 * PAGE_SIZE


async def test_a_wrong_refusal_is_found_and_laid_bare(system: System) -> None:
    found = await live(system, RefusesToMoveOverItself).ask_all(sequences(Askable(VMMD), "a seed", 200), Tally())
    create, move = found[0].shortest["ops"]
    assert create["memory_size"] == 2 * PAGE_SIZE
    assert {create["guest_phys_addr"], move["guest_phys_addr"]} == {0, PAGE_SIZE}
    assert move | {"guest_phys_addr": create["guest_phys_addr"]} == create


async def test_two_that_are_the_same_never_differ(system: System) -> None:
    tally = Tally()
    assert await live(system, InProcess).ask_all(sequences(Askable(VMMD), "a seed", 60), tally) == []
    assert tally.sequences == 60
