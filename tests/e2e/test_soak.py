"""A short share of the soak; `python -m tests.benchmarks soak` is the whole of it."""

from tests.benchmarks.soak import GROWTH_BYTES, KINDS, soak


async def test_a_daemon_comes_out_of_mixed_calls_and_failing_clients_as_it_went_in() -> None:
    summary = await soak(4)
    assert not summary.errors
    assert not summary.left_over
    assert summary.growth_bytes < GROWTH_BYTES
    assert len(summary.done) == len(KINDS)
