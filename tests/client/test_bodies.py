"""Calls cut into bodies: nothing is left out, nothing is over a limit, and what cannot be sent is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmd_client import PlanTooLarge, calls
from vmmd_client.wire.bodies import SMALL, BodySize, Entry, cut, size_of

HEAD = Entry(calls.kick_all_running_vcpus("1", "hold"))


def entry(answer_bytes: int = 0) -> Entry:
    return Entry(calls.get_dirty_log("1", 0, 0, 64), answer_bytes=answer_bytes)


@given(st.lists(st.integers(0, 2000), max_size=40), st.integers(2, 7), st.integers(600, 2000), st.integers(4000, 9000))
def test_every_body_is_within_the_limits_and_together_they_are_everything(
    answers: list[int], batch_calls: int, body_bytes: int, reply_bytes: int
):
    limits = BodySize(batch_calls, body_bytes, reply_bytes)
    entries = [entry(answer_bytes) for answer_bytes in answers]
    bodies = cut(entries, limits, HEAD)
    assert all(size_of(body).is_within(limits) for body in bodies)
    assert all(body[0] is HEAD for body in bodies[1:])
    assert [one for body in bodies for one in body if one is not HEAD] == entries
    assert sum(len(body) for body in cut(entries, limits)) == len(entries)


def test_a_call_that_goes_into_no_body_is_refused_with_the_limits():
    with pytest.raises(PlanTooLarge, match="limits of 128 calls, 65536 bytes and an answer of 262144"):
        cut([entry(), entry(1 << 20)], SMALL, HEAD)


def test_limits_that_a_daemon_does_not_tell_are_the_small_ones():
    assert BodySize.of({"batch_calls": 7}) == BodySize(7, SMALL.body_bytes, SMALL.reply_bytes)
