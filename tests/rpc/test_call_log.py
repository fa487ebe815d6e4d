"""Which calls have a line in the log, and what becomes of those beyond what a second may have."""

import asyncio
import errno

import pytest
from structlog.testing import capture_logs

from vmmd.api.codes import INTERNAL_ERROR, INVALID_PARAMS
from vmmd.api.methods import METHODS
from vmmd.rpc.call_log import CallLog
from vmmd.rpc.dispatch import CallDone
from vmmd.rpc.errors import CallError

CHANGE = CallDone(METHODS["kvm.create_vm"], "vm1", 5_000, None)
READ = CallDone(METHODS["kvm.list_vms"], None, 5_000, None)
BROKEN = CallDone(METHODS["kvm.list_vms"], None, 5_000, CallError(INTERNAL_ERROR, "inside"), ValueError("x"))


async def test_beyond_so_many_a_second_calls_are_counted_and_one_line_says_so() -> None:
    log = CallLog(calls_per_second=2, reads=False)
    with capture_logs() as lines:
        log([CHANGE] * 5)
        assert [line["event"] for line in lines] == ["rpc.call", "rpc.call"]
        log.close()
    assert lines[2]["event"] == "rpc.calls_unlogged"
    assert lines[2]["calls"] == {"kvm.create_vm": 3}
    assert lines[2]["setting"] == "log.calls_per_second=2"


async def test_the_next_second_has_lines_again() -> None:
    log = CallLog(calls_per_second=1, reads=False)
    with capture_logs() as lines:
        log([CHANGE, CHANGE])
        async with asyncio.timeout(10):
            while len(lines) < 2:
                await asyncio.sleep(0.01)
        log([CHANGE])
        log.close()
    assert [line["event"] for line in lines] == ["rpc.call", "rpc.calls_unlogged", "rpc.call"]


async def test_what_went_wrong_inside_always_has_its_line() -> None:
    log = CallLog(calls_per_second=0, reads=False)
    with capture_logs() as lines:
        log([BROKEN, READ, CallDone(None, None, 0, CallError(-32601, "no such"))])
        log.close()
    assert [(line["event"], line["log_level"]) for line in lines] == [("rpc.call", "error")]
    assert lines[0]["exc_info"] is BROKEN.cause


async def test_reads_and_refusals_have_lines_where_one_asks_for_them() -> None:
    log = CallLog(calls_per_second=0, reads=True)
    with capture_logs() as lines:
        log([READ, CallDone(None, None, 0, CallError(-32601, "no such"))])
        log.close()
    assert [(line["event"], line["log_level"]) for line in lines] == [("rpc.call", "debug"), ("rpc.refused", "debug")]


@pytest.mark.parametrize("reads", [True, False])
def test_no_line_has_the_sentence_of_an_error_where_a_holds_name_may_be(reads: bool) -> None:
    refusals = [
        CallDone(METHODS["vm.stop"], "vm1", 1, CallError(errno.ECANCELED, "the hold 'secret' has ended")),
        CallDone(METHODS["kvm.list_vms"], None, 0, CallError(INVALID_PARAMS, "hold: has more characters: 'secret'")),
        CallDone(None, None, 0, CallError(-32601, "there is no method 'secret'", inside=("vm1", "secret"))),
    ]
    log = CallLog(calls_per_second=1000, reads=reads)
    with capture_logs() as lines:
        asyncio.run(_observe(log, refusals))
    assert (lines[0]["code"], lines[0]["errno"]) == (errno.ECANCELED, "ECANCELED")
    assert "secret" not in str(lines)


async def _observe(log: CallLog, calls: list[CallDone]) -> None:
    log(calls)
    log.close()
