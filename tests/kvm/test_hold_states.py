"""The state machine of holds, without a VM: every step from every state, admission, the line, and ended names."""

from __future__ import annotations

import errno
from itertools import product

import pytest

from tests.kvm.guest import refusal
from vmmd.kvm.errors import KvmError
from vmmd.kvm.hold import MAX_NAME, MAX_REMEMBERED, REMEMBERED_NS, TRANSITIONS, Hold, Holds, State, Step, check_name

LEGAL = {
    (State.OPENING, Step.QUIET): State.OPEN,
    (State.OPENING, Step.GIVE_UP): State.ENDED,
    (State.OPEN, Step.CALL): State.OPEN,
    (State.OPEN, Step.RENEW): State.OPEN,
    (State.OPEN, Step.FAIL): State.FAILED,
    (State.OPEN, Step.RESUME): State.ENDED,
    (State.FAILED, Step.FAIL): State.FAILED,
    (State.FAILED, Step.RESUME): State.ENDED,
    (State.OPEN, Step.EXPIRE): State.EXPIRED,
    (State.FAILED, Step.EXPIRE): State.EXPIRED,
    (State.EXPIRED, Step.FAIL): State.EXPIRED,
    (State.EXPIRED, Step.ROLL_BACK): State.ENDED,
}
ILLEGAL = [pair for pair in product(State, Step) if pair not in LEGAL]
ERRNOS = {
    State.OPENING: errno.EBUSY,
    State.OPEN: errno.EINVAL,
    State.FAILED: errno.ECANCELED,
    State.EXPIRED: errno.ECANCELED,
    State.ENDED: errno.ECANCELED,
}


def opened(holds: Holds, name: str) -> Hold:
    hold = holds.open(name)
    hold.take(Step.QUIET)
    return hold


def names(pair: tuple[State, Step]) -> str:
    return f"{pair[0].name}-{pair[1].name}"


def test_the_table_has_every_legal_step_and_no_other() -> None:
    assert TRANSITIONS == LEGAL


@pytest.mark.parametrize("pair", LEGAL, ids=names)
def test_a_legal_step_leads_where_the_table_says(pair: tuple[State, Step]) -> None:
    state, step = pair
    hold = Hold("a", state=state)
    hold.take(step)
    assert hold.state is LEGAL[pair]


@pytest.mark.parametrize("pair", ILLEGAL, ids=names)
def test_an_illegal_step_is_refused_and_changes_nothing(pair: tuple[State, Step]) -> None:
    state, step = pair
    error = KvmError(errno.EEXIST, "the first error")
    hold = Hold("a", state=state, kicked_at_ns=3, error=error)
    before = (hold.name, hold.state, hold.kicked_at_ns, hold.undo, hold.error)
    with refusal(ERRNOS[state]) as refused:
        hold.take(step)
    assert "hold 'a'" in refused.value.message
    assert (hold.name, hold.state, hold.kicked_at_ns, hold.undo, hold.error) == before


def test_a_failed_hold_says_what_failed() -> None:
    hold = Hold("a", state=State.FAILED, error=KvmError(errno.EEXIST, "the first error"))
    with refusal(errno.ECANCELED) as refused:
        hold.take(Step.CALL)
    assert "the first error" in refused.value.message


def test_without_a_hold_calls_without_a_name_are_let_in_and_others_are_not() -> None:
    holds = Holds()
    assert holds.admit(None, 0) is None
    with refusal(errno.EINVAL):
        holds.admit("a", 0)


@pytest.mark.parametrize("name", [None, "b"])
def test_inside_a_hold_only_its_name_is_let_in(name: str | None) -> None:
    holds = Holds()
    hold = opened(holds, "a")
    assert holds.admit("a", 0) is hold
    with refusal(errno.EBUSY):
        holds.admit(name, 0)


def test_an_opening_hold_lets_nobody_in() -> None:
    holds = Holds()
    holds.open("a")
    for name in ("a", "b", None):
        with refusal(errno.EBUSY):
            holds.admit(name, 0)
    with refusal(errno.EBUSY):
        holds.renew("a", 0)


def test_renewing_gives_the_open_hold_and_none_for_a_new_name() -> None:
    holds = Holds()
    hold = opened(holds, "a")
    assert holds.renew("a", 0) is hold
    assert holds.renew("b", 0) is None
    assert hold.state is State.OPEN


def test_an_ended_name_is_remembered_for_ten_minutes_with_what_became_of_it() -> None:
    holds = Holds()
    opened(holds, "a").take(Step.RESUME)
    holds.end(1000, "was resumed")
    assert holds.current is None
    for ask in (holds.admit, holds.renew, holds.get):
        with refusal(errno.ECANCELED) as ended:
            ask("a", 1000 + REMEMBERED_NS)
        assert ended.value.data == {"became": "was resumed"}
    assert holds.renew("a", 1001 + REMEMBERED_NS) is None
    with refusal(errno.EINVAL):
        holds.get("a", 1000)


def test_an_ended_name_is_told_from_a_busy_vm() -> None:
    holds = Holds()
    opened(holds, "a")
    holds.end(0, "was resumed")
    opened(holds, "b")
    with refusal(errno.ECANCELED):
        holds.admit("a", 1)


def test_only_so_many_ended_names_are_remembered_the_newest_ones() -> None:
    holds = Holds()
    for index in range(MAX_REMEMBERED + 1):
        opened(holds, f"hold {index}")
        holds.end(0, "was resumed")
    assert holds.renew("hold 0", 1) is None
    with refusal(errno.ECANCELED):
        holds.renew("hold 1", 1)


def test_ending_without_a_hold_does_nothing() -> None:
    holds = Holds()
    holds.end(0, "was resumed")
    assert holds.admit(None, 0) is None


def test_the_line_is_first_come_first_served() -> None:
    holds = Holds()
    first, second, third = object(), object(), object()
    assert holds.stand_in_line(first, "a")
    assert not holds.stand_in_line(second, "b")
    assert not holds.stand_in_line(third, "c")
    assert holds.admit_next() is None
    holds.end(0, "was resumed")
    assert not holds.stand_in_line(first, "d")
    assert holds.admit_next() is second
    assert holds.current is not None
    assert holds.current.name == "b"


def test_who_steps_out_of_the_line_is_passed_over() -> None:
    holds = Holds()
    first, second, third = object(), object(), object()
    holds.stand_in_line(first, "a")
    holds.stand_in_line(second, "b")
    holds.stand_in_line(third, "c")
    holds.step_out(second)
    holds.end(0, "was resumed")
    assert holds.admit_next() is third
    holds.end(0, "was resumed")
    assert holds.admit_next() is None
    assert holds.current is None


@pytest.mark.parametrize("name", ["", "x" * (MAX_NAME + 1)])
def test_a_name_that_is_empty_or_too_long_is_refused(name: str) -> None:
    with refusal(errno.EINVAL):
        check_name(name)


@pytest.mark.parametrize("name", ["x", "x" * MAX_NAME])
def test_a_name_of_a_legal_length_passes(name: str) -> None:
    check_name(name)
