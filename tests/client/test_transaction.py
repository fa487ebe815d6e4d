import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from vmmd_client import (
    CallTimeout,
    Client,
    HoldFailed,
    InvalidArgument,
    KickTimeout,
    MemFlag,
    MemoryTransport,
    Memslot,
    PlanError,
    SlotOverlap,
    StaleGeneration,
    TransactionRefused,
    Vm,
    VmmdError,
)

from .fake_daemon import FakeDaemon, RefusedError

KICK, RESUME = "vm.kick_all_running_vcpus", "vm.resume_all_kicked_vcpus"
SET, LIST = "vm.set_user_memory_region", "vm.set_user_memory_region_list"
SHRUNK = {"guest_phys_addr": 0, "memory_size": 0x2000, "userspace_addr": 0x7000_0000}
ELSEWHERE = {"guest_phys_addr": 0x10_0000, "memory_size": 0x1000, "userspace_addr": 0x7200_0000}


@pytest.fixture
def vm(daemon: FakeDaemon, vmmd: Client) -> Vm:
    daemon.give_slot(0, 0, 0x4000, 0x7000_0000)
    daemon.give_slot(1, 0x4000, 0x2000, 0x7000_4000)
    daemon.give_slot(2, 0x1_0000, 0x4_0000, 0x7100_0000, MemFlag.LOG_DIRTY_PAGES)
    return vmmd.vm("1")


async def shrink(vm: Vm) -> None:
    """Replace slot 0 by its first half: a deleted range overlaps the added one."""
    async with vm.transaction() as t:
        t.delete(0)
        t.create(0, **SHRUNK)


async def move_away(vm: Vm) -> None:
    """Put slot 1 elsewhere: nothing overlaps."""
    async with vm.transaction() as t:
        t.delete(1)
        t.create(1, **ELSEWHERE)


async def change_and_raise(vm: Vm) -> None:
    async with vm.transaction() as t:
        t.delete(0)
        raise KeyError("x")


async def merge_strangers(vm: Vm) -> None:
    async with vm.transaction() as t:
        t.delete(0)
        t.merge(1, 2)


async def shrink_and_add_slot_5(vm: Vm) -> None:
    async with vm.transaction() as t:
        t.delete(0)
        t.create(0, **SHRUNK)
        t.create(5, **ELSEWHERE)


async def add_7(vm: Vm) -> None:
    async with vm.transaction() as t:
        t.create(7, **ELSEWHERE)


async def delete_1_and_add_7_and_8(vm: Vm) -> None:
    async with vm.transaction() as t:
        t.delete(1)
        t.create(7, **ELSEWHERE)
        t.create(8, **{**ELSEWHERE, "guest_phys_addr": 0x20_0000})


async def delete_0_and_add_7_by_hand(vm: Vm) -> None:
    async with vm.hold() as hold:
        await vm.set_user_memory_region(0, **{**SHRUNK, "memory_size": 0}, hold=hold.name)
        await vm.set_user_memory_region(7, **ELSEWHERE, hold=hold.name)


def params(daemon: FakeDaemon) -> list[dict[str, Any]]:
    return [entry["params"] for entry in daemon.requests[-1]]


async def test_an_update_is_one_batch_of_kick_changes_and_resume(daemon: FakeDaemon, vm: Vm):
    await vm.slot_table()
    planned_on, round_trips = daemon.generation, len(daemon.requests)
    async with vm.transaction(wait_ms=250) as t:
        t.delete(0)
        t.create(0, **SHRUNK)
    assert len(daemon.requests) == round_trips + 1
    assert daemon.last_methods == [KICK, SET, SET, RESUME]
    kick, delete, create, resume = params(daemon)
    assert (kick["if_generation"], kick["wait_ms"]) == (planned_on, 250)
    assert len({call["hold"] for call in (kick, delete, create, resume)}) == 1
    assert (delete["memory_size"], create["memory_size"]) == (0, 0x2000)
    assert (t.result.generation, t.result.pause_ns, t.result.kick_ns) == (daemon.generation, 42_000, 1_500)
    assert t.result.dirty == ()


async def test_every_transaction_has_an_unguessable_hold_of_its_own(daemon: FakeDaemon, vm: Vm):
    holds = set()
    for size in (0x1000, 0x2000, 0x3000):
        async with vm.transaction() as t:
            t.delete(0)
            t.create(0, **{**SHRUNK, "memory_size": size})
        holds.add(params(daemon)[0]["hold"])
    assert len(holds) == 3
    assert min(map(len, holds)) >= 20


async def test_an_exception_in_the_block_sends_nothing(daemon: FakeDaemon, vm: Vm):
    await vm.slot_table()
    round_trips = len(daemon.requests)
    with pytest.raises(KeyError):
        await change_and_raise(vm)
    assert len(daemon.requests) == round_trips


async def test_a_change_that_cannot_be_meant_sends_nothing(daemon: FakeDaemon, vm: Vm):
    await vm.slot_table()
    round_trips = len(daemon.requests)
    with pytest.raises(PlanError):
        await merge_strangers(vm)
    assert len(daemon.requests) == round_trips


async def test_changes_outside_the_block_are_refused_and_there_is_no_result_before_its_end(vm: Vm):
    t = vm.transaction()
    with pytest.raises(VmmdError, match="no result"):
        _ = t.result
    with pytest.raises(VmmdError, match="inside its block"):
        t.delete(0)
    async with t:
        pass
    with pytest.raises(VmmdError, match="inside its block"):
        t.delete(0)


async def test_no_change_is_no_batch_and_the_generation_that_stands(daemon: FakeDaemon, vm: Vm):
    await vm.slot_table()
    round_trips = len(daemon.requests)
    async with vm.transaction() as t:
        pass
    assert len(daemon.requests) == round_trips
    assert (t.result.generation, t.result.pause_ns) == (daemon.generation, None)


async def test_a_logged_slots_bitmap_comes_with_its_delete_before_the_resume_is_sent(daemon: FakeDaemon, vm: Vm):
    async with vm.transaction() as t:
        t.delete(2)
    fetched, changed = daemon.requests[-2:]
    assert [entry["method"] for entry in fetched] == [KICK, LIST]
    assert [entry["method"] for entry in changed] == [KICK, RESUME]
    assert len({entry["params"]["hold"] for entry in (*fetched, *changed)}) == 1
    (dirty,) = t.result.dirty
    assert (dirty.slot, dirty.guest_phys_addr, list(dirty.dirty_pages())) == (2, 0x1_0000, [0x1_0000])


async def test_where_no_vcpu_could_see_it_there_is_no_kick(daemon: FakeDaemon, vm: Vm):
    await vm.slot_table()
    planned_on = daemon.generation
    async with vm.transaction() as t:
        t.delete(1)
        t.create(1, **ELSEWHERE)
    sent = daemon.requests[-2:]
    assert [call["method"] for call in sent] == [SET, SET]
    assert [call["params"]["if_generation"] for call in sent] == [planned_on, planned_on + 1]
    assert all("hold" not in call["params"] for call in sent)
    assert (t.result.generation, t.result.pause_ns) == (planned_on + 2, None)


async def test_a_hold_can_be_forced(daemon: FakeDaemon, vm: Vm):
    async with vm.transaction(hold=True) as t:
        t.create(7, **ELSEWHERE)
    assert daemon.last_methods == [KICK, SET, RESUME]


async def test_one_transaction_after_another_asks_for_the_table_once(daemon: FakeDaemon, vm: Vm):
    async with vm.transaction() as t:
        t.merge(0, 1)
    async with vm.transaction() as t:
        t.create(7, **ELSEWHERE)
    async with vm.transaction() as t:
        t.delete(0)
        t.delete(7)
    asked = [entry["method"] for body in daemon.requests for entry in (body if isinstance(body, list) else [body])]
    assert asked.count("vm.get_memory_regions") == 1
    assert sorted(daemon.slots) == [2]


async def test_another_clients_change_is_stale_and_the_next_attempt_sees_it(daemon: FakeDaemon, vm: Vm):
    await vm.slot_table()
    daemon.give_slot(9, 0x8_0000, 0x1000, 0x7300_0000)
    before = dict(daemon.slots)
    with pytest.raises(StaleGeneration):
        await shrink(vm)
    assert daemon.slots == before
    async with vm.transaction() as t:
        t.delete(0)
        t.create(0, **SHRUNK)
    assert sorted((await vm.slot_table()).slots) == [0, 1, 2, 9]


async def test_another_clients_change_is_stale_without_a_hold_too_and_nothing_is_done(daemon: FakeDaemon, vm: Vm):
    await vm.slot_table()
    daemon.give_slot(9, 0x8_0000, 0x1000, 0x7300_0000)
    before = dict(daemon.slots)
    with pytest.raises(StaleGeneration):
        await move_away(vm)
    assert daemon.slots == before


async def test_a_refused_step_is_named_and_all_is_rolled_back(daemon: FakeDaemon, vm: Vm):
    before = (await vm.slot_table()).slots
    overlap = {"ioctl": "KVM_SET_USER_MEMORY_REGION"}
    daemon.refuse[5] = RefusedError(errno.EEXIST, "slot 5 overlaps slot 2", **overlap)
    with pytest.raises(TransactionRefused, match=r"step 2 .*create slot 5.*rolled back.*overlaps slot 2") as caught:
        await shrink_and_add_slot_5(vm)
    assert (caught.value.step, caught.value.rolled_back) == (2, True)
    assert caught.value.what == "create slot 5 [0x100000, 0x101000)"
    assert isinstance(caught.value.__cause__, SlotOverlap)
    assert (await vm.slot_table()).slots == before


async def test_where_a_step_without_a_hold_is_refused_those_before_it_are_undone(daemon: FakeDaemon, vm: Vm):
    before = (await vm.slot_table()).slots
    daemon.refuse[7] = RefusedError(errno.EINVAL, "no", ioctl="KVM_SET_USER_MEMORY_REGION")
    with pytest.raises(TransactionRefused, match="were undone, the map is as it was") as caught:
        await delete_1_and_add_7_and_8(vm)
    assert (caught.value.step, caught.value.rolled_back) == (1, True)
    assert isinstance(caught.value.__cause__, InvalidArgument)
    assert (await vm.slot_table()).slots == before


async def test_a_refused_first_step_without_a_hold_is_a_refused_transaction_too(daemon: FakeDaemon, vm: Vm):
    daemon.refuse[7] = RefusedError(errno.EINVAL, "no", ioctl="KVM_SET_USER_MEMORY_REGION")
    with pytest.raises(TransactionRefused) as caught:
        await add_7(vm)
    assert isinstance(caught.value.__cause__, InvalidArgument)
    assert "nothing was done" in str(caught.value)


async def test_a_turn_that_did_not_come_changes_nothing(daemon: FakeDaemon, vm: Vm):
    before = (await vm.slot_table()).slots

    def busy(params: object) -> object:
        raise RefusedError(errno.ETIMEDOUT, "the hold 'x' is open")

    daemon.answers[KICK] = busy
    with pytest.raises(KickTimeout):
        await shrink(vm)
    assert (await vm.slot_table()).slots == before


async def test_a_resume_that_fails_by_itself_is_raised(daemon: FakeDaemon, vm: Vm):
    def gone(params: object) -> object:
        raise RefusedError(errno.ECANCELED, "the lease has run out", rolled_back=True)

    daemon.answers[RESUME] = gone
    with pytest.raises(HoldFailed, match="lease") as caught:
        await shrink(vm)
    assert caught.value.rolled_back


async def test_a_plan_can_be_looked_at_before_the_block_ends(vm: Vm):
    async with vm.transaction() as t:
        t.merge(0, 1)
        plan = t.plan()
        assert plan.needs_hold
        assert [str(step) for step in plan.steps] == [
            "delete slot 0 [0x0, 0x4000)",
            "delete slot 1 [0x4000, 0x6000)",
            "create slot 0 [0x0, 0x6000)",
        ]


async def test_a_hold_is_kicked_and_resumed_around_its_block(daemon: FakeDaemon, vm: Vm):
    async with vm.hold(wait_ms=5) as hold:
        assert daemon.last_methods == [KICK]
        assert hold.kick.kicked == 4
        await vm.set_user_memory_region(7, **ELSEWHERE, hold=hold.name)
    assert daemon.last_methods == [RESUME]
    assert hold.resume.pause_ns == 42_000
    assert (await vm.slot_table()).slots[7] == Memslot(7, 0, 0x10_0000, 0x1000, 0x7200_0000)


async def test_a_hold_is_resumed_after_an_exception_too(daemon: FakeDaemon, vm: Vm):
    with pytest.raises(KeyError):
        async with vm.hold():
            raise KeyError("x")
    assert daemon.last_methods == [RESUME]


async def test_a_call_refused_inside_a_hold_is_raised_with_a_note_of_the_rollback(daemon: FakeDaemon, vm: Vm):
    daemon.refuse[7] = RefusedError(errno.EINVAL, "no such thing", ioctl="KVM_SET_USER_MEMORY_REGION")
    before = (await vm.slot_table()).slots
    with pytest.raises(InvalidArgument) as caught:
        await delete_0_and_add_7_by_hand(vm)
    assert "resume answered" in caught.value.__notes__[0]
    assert (await vm.slot_table()).slots == before


async def test_a_hold_has_no_answers_before_it_has_them(vm: Vm):
    hold = vm.hold()
    with pytest.raises(VmmdError, match="not open"):
        _ = hold.kick
    with pytest.raises(VmmdError, match="no result"):
        _ = hold.resume


class Unanswered:
    """A way to the daemon on which every kick is carried out, and its answer is lost."""

    def __init__(self, daemon: FakeDaemon, lose: Callable[[], Awaitable[None]]) -> None:
        self._daemon = daemon
        self._lose = lose

    def vm(self) -> Vm:
        return Client(MemoryTransport(self._answer)).vm("1")

    async def _answer(self, body: bytes) -> bytes:
        answer = await self._daemon.answer(body)
        if self._daemon.last_methods == [KICK]:
            await self._lose()
        return answer


async def hold_and_do_nothing(vm: Vm) -> None:
    async with vm.hold():
        pass


async def test_a_hold_whose_kick_was_cancelled_is_resumed(daemon: FakeDaemon):
    kicked = asyncio.Event()

    async def hang() -> None:
        kicked.set()
        await asyncio.Event().wait()

    holding = asyncio.create_task(hold_and_do_nothing(Unanswered(daemon, hang).vm()))
    await kicked.wait()
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    kick, resume = daemon.requests
    assert (kick["method"], resume["method"]) == (KICK, RESUME)
    assert kick["params"]["hold"] == resume["params"]["hold"]


@pytest.mark.parametrize("refused", [False, True])
async def test_a_hold_whose_kick_has_no_answer_is_resumed_and_only_the_kicks_error_is_told(
    daemon: FakeDaemon, refused: bool
):
    def refuse(params: object) -> object:
        raise RefusedError(errno.EINVAL, "no such hold")

    async def time_out() -> None:
        raise CallTimeout("no answer")

    if refused:
        daemon.answers[RESUME] = refuse
    with pytest.raises(CallTimeout, match="no answer"):
        await hold_and_do_nothing(Unanswered(daemon, time_out).vm())
    assert daemon.last_methods == [RESUME]


async def test_a_hold_whose_kick_was_refused_has_nothing_to_resume(daemon: FakeDaemon, vm: Vm):
    def busy(params: object) -> object:
        raise RefusedError(errno.ETIMEDOUT, "the hold 'x' is open")

    daemon.answers[KICK] = busy
    with pytest.raises(KickTimeout):
        await hold_and_do_nothing(vm)
    assert daemon.last_methods == [KICK]
