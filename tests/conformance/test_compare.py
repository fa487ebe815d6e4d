"""The comparison, with answers that are written down: what is a difference, and what is the kernel's freedom."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.askable import Askable
from tests.conformance.compare import Comparison, Difference, Tally
from tests.conformance.host import VMMD
from tests.conformance.recording import Answer, Operation
from vmmd.memory.limits import PAGE_SIZE

DONE: Answer = {"errno": "0"}
MEMORY: Answer = {"exits": [], "value": 0}
STORED: Answer = {"exits": []}
LOST: Answer = {"exits": [{"errno": "EFAULT"}]}
MANUAL = {"op": "enable_cap", "cap": "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", "arg": 1}
GET = {"op": "get_dirty_log", "slot": 1}


class Scripted:
    """Answers in order, and then as if all went well."""

    def __init__(self, answers: list[Answer], tables: list[object] | None = None) -> None:
        self.asked: list[Operation] = []
        self._answers = iter(answers)
        self._tables = iter(tables or [])

    async def do(self, operation: Operation) -> Answer:
        self.asked.append(operation)
        plain = {"guest_read": MEMORY, "get_dirty_log": log(0)}
        return next(self._answers, plain.get(operation["op"], DONE))

    async def table(self) -> object:
        return next(self._tables, None)


class Broken(Scripted):
    async def do(self, operation: Operation) -> Answer:
        raise RuntimeError("out of order")


def slot(**fields: Any) -> Operation:
    where = {"at": "b0", "offset": 0}
    plain = {"slot": 1, "flags": 1, "guest_phys_addr": 0, "memory_size": 2 * PAGE_SIZE, "userspace_addr": where}
    return {"op": "set_user_memory_region"} | plain | fields


def load(gpa: int, size: int = 1) -> Operation:
    return {"op": "guest_read", "gpa": gpa, "size": size}


def store(gpa: int, size: int = 1) -> Operation:
    return {"op": "guest_write", "gpa": gpa, "size": size, "value": 0}


def clear(bits: int) -> Operation:
    bitmap = bits.to_bytes(8, "little").hex()
    return {"op": "clear_dirty_log", "slot": 1, "first_page": 0, "num_pages": 2, "bitmap": bitmap}


def log(bits: int) -> Answer:
    return DONE | {"bitmap": bits.to_bytes(8, "little").hex()}


async def compare(steps: list[tuple[Operation, Answer, Answer]]) -> Difference | None:
    kernel, vmmd = Scripted([step[1] for step in steps]), Scripted([step[2] for step in steps])
    return await Comparison(kernel, vmmd, Askable(VMMD), Tally()).run({"ops": [step[0] for step in steps]})


def both(operation: Operation, answer: Answer) -> tuple[Operation, Answer, Answer]:
    return operation, answer, answer


async def test_equal_answers_are_no_difference() -> None:
    assert await compare([both(slot(), DONE), both(store(0), STORED), both(GET, log(1))]) is None


async def test_the_first_other_answer_is_the_difference() -> None:
    found = await compare([both(slot(), DONE), (GET, log(1), DONE), (GET, log(0), DONE)])
    assert found is not None
    assert (found.index, found.operation, found.kernel, found.vmmd) == (1, GET, log(1), DONE)


async def test_what_vmmd_raises_is_its_answer() -> None:
    comparison = Comparison(Scripted([DONE]), Broken([]), Askable(VMMD), Tally())
    found = await comparison.run({"ops": [slot()]})
    assert found is not None
    assert found.vmmd == {"raised": "RuntimeError: out of order"}


@pytest.mark.parametrize(
    "before",
    [
        [both(load(PAGE_SIZE), MEMORY)],
        [both(load(PAGE_SIZE - 4, 8), MEMORY)],
        [both(store(PAGE_SIZE - 4, 8), LOST)],
        [both(load(PAGE_SIZE), MEMORY), both(slot(guest_phys_addr=1 << 16), DONE)],
        [both(MANUAL, DONE), both(load(PAGE_SIZE), MEMORY), both(GET, log(0))],
        [both(load(PAGE_SIZE), MEMORY), both(clear(1), DONE)],
    ],
    ids=["read", "read over a border", "a store that failed", "moved since", "not cleared by GET", "not in the CLEAR"],
)
async def test_a_page_that_the_guest_touched_may_be_marked(before: list[tuple[Operation, Answer, Answer]]) -> None:
    assert await compare([both(slot(), DONE), *before, (GET, log(2), log(0))]) is None


@pytest.mark.parametrize(
    "before",
    [
        [],
        [both(load(0), MEMORY)],
        [both(load(PAGE_SIZE), MEMORY), both(GET, log(0))],
        [both(load(PAGE_SIZE), MEMORY), both(clear(2), DONE)],
        [both(load(PAGE_SIZE), MEMORY), both(slot(flags=0), DONE), both(slot(), DONE)],
        [both(slot(memory_size=0), DONE), both(slot(flags=3), DONE), both(load(PAGE_SIZE), MEMORY)],
    ],
    ids=["untouched", "another page", "cleared by GET", "cleared by CLEAR", "a new log", "a read-only slot"],
)
async def test_any_other_page_that_the_kernel_alone_marks_is_a_difference(
    before: list[tuple[Operation, Answer, Answer]],
) -> None:
    assert await compare([both(slot(), DONE), *before, (GET, log(2), log(0))]) is not None


async def test_a_page_that_vmmd_alone_marks_is_a_difference() -> None:
    assert await compare([both(slot(), DONE), both(load(PAGE_SIZE), MEMORY), (GET, log(0), log(2))]) is not None


async def test_a_refused_call_that_changed_the_table_is_a_difference() -> None:
    refused = slot(memory_size=0)
    kernel, vmmd = Scripted([{"errno": "EINVAL"}]), Scripted([{"errno": "EINVAL"}], ["a table", "another"])
    found = await Comparison(kernel, vmmd, Askable(VMMD), Tally()).run({"ops": [refused]})
    assert found is not None
    assert (found.kernel, found.vmmd, found.is_table) == ("a table", "another", True)


async def test_after_a_refused_call_slot_log_and_memory_are_looked_at() -> None:
    tally = Tally()
    refused = slot(memory_size=PAGE_SIZE)
    answers = [DONE, DONE, {"errno": "EINVAL"}]
    kernel, vmmd = Scripted(answers), Scripted(answers)
    assert await Comparison(kernel, vmmd, Askable(VMMD), tally).run({"ops": [MANUAL, slot(), refused]}) is None
    probes = [slot(), GET, load(0, 8), load(2 * PAGE_SIZE - 8, 8), load(0, 8)]
    assert kernel.asked[3:] == vmmd.asked[3:] == probes
    assert (tally.refused, tally.probes) == (1, 5)


async def test_a_probe_that_finds_another_answer_is_a_difference() -> None:
    answers = [DONE, {"errno": "EINVAL"}, DONE]
    kernel, vmmd = Scripted([*answers, MEMORY]), Scripted([*answers, {"exits": [], "value": 7}])
    found = await Comparison(kernel, vmmd, Askable(VMMD), Tally()).run({"ops": [slot(), slot(memory_size=PAGE_SIZE)]})
    assert found is not None
    assert (found.index, found.probe) == (1, load(0, 8))


@pytest.mark.parametrize(
    ("access", "is_asked"),
    [
        (load(PAGE_SIZE - 4, 8), False),
        (store(PAGE_SIZE - 4, 8), False),
        (load(3 * PAGE_SIZE - 4, 8), True),
        (load(PAGE_SIZE, 8), True),
    ],
    ids=["a load into lost memory", "a store into it", "a load out of it", "a load inside"],
)
async def test_an_access_from_mmio_into_a_lost_page_is_left_out(access: Operation, *, is_asked: bool) -> None:
    lost = {"op": "host_unmap", "userspace_addr": {"at": "b0", "offset": 0}, "length": 2 * PAGE_SIZE}
    kernel, vmmd = Scripted([DONE, {}, LOST]), Scripted([DONE, {}, LOST])
    tally = Tally()
    ops = [slot(guest_phys_addr=PAGE_SIZE), lost, access]
    assert await Comparison(kernel, vmmd, Askable(VMMD), tally).run({"ops": ops}) is None
    assert (access in kernel.asked, access in vmmd.asked, tally.left_out) == (is_asked, is_asked, not is_asked)
