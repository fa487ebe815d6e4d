"""JSON-RPC's dispatcher: what it checks, in which order it carries out, what it says of mistakes, and what it logs."""

import asyncio
import errno
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.rpc.edge_cases import shape
from tests.rpc.toys import METHODS, Bench


async def test_a_body_full_of_unknown_parameters_gets_a_short_answer() -> None:
    params = {f"{'n' * 200}{number}": "v" * 200 for number in range(2000)}
    answer = await Bench().ask_raw(json.dumps({"jsonrpc": "2.0", "method": "sum", "params": params, "id": 1}))
    assert answer is not None
    assert len(answer) < 5000


async def test_an_exception_inside_is_logged_and_never_told() -> None:
    with capture_logs() as logs:
        answer = await Bench().ask_raw('{"jsonrpc":"2.0","method":"break","params":["hunter2"],"id":1}')
    assert answer is not None
    assert b"hunter2" not in answer
    assert b"TypeError" not in answer
    assert shape(json.loads(answer)) == (-32603, 1)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("rpc.call", "error")]
    assert logs[0]["exc_info"]


async def test_every_entry_is_checked_before_the_first_is_carried_out_and_order_is_kept() -> None:
    bench = Bench()
    await bench.ask(
        """[{"jsonrpc":"2.0","method":"nothing","id":1},
            {"jsonrpc":"2.0","method":"fail","id":2},
            {"jsonrpc":"2.0","method":"get_data"},
            {"jsonrpc":"2.0","method":"subtract","params":[1],"id":3},
            {"jsonrpc":"2.0","method":"unknown"}]"""
    )
    assert bench.journal == ["refused -32602", "refused -32601", "nothing", "fail", "failed 17", "get_data"]


async def test_a_result_over_the_reply_limit_is_an_error_and_later_entries_are_answered() -> None:
    bench = Bench(reply_bytes=8000)
    one = '{"jsonrpc":"2.0","method":"large","id":1}'
    answer = await bench.ask(f'[{one},{one},{{"jsonrpc":"2.0","method":"nothing","id":2}}]')
    assert answer[0]["result"] == "x" * 5000
    assert [shape(entry) for entry in answer[1:]] == [(errno.E2BIG, 1), {"result": None, "id": 2}]
    assert "limits.reply_bytes = 8000" in answer[1]["error"]["message"]
    assert answer[1]["error"]["data"]["errno"] == "E2BIG"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | VALUES,
        "method": st.sampled_from(sorted(METHODS)) | VALUES,
        "params": VALUES,
        "id": VALUES,
    },
)


@settings(deadline=None)
@given(body=st.one_of(REQUESTS, st.lists(REQUESTS | VALUES, max_size=6), VALUES).map(json.dumps) | st.binary())
async def test_whatever_comes_in_is_answered_by_the_rules(body: str | bytes) -> None:
    with capture_logs():
        answer = await Bench().ask(body)
    for entry in answer if isinstance(answer, list) else [answer]:
        shape(entry)
    assert answer != []


async def test_calls_that_change_something_are_logged_at_info_and_reads_at_debug() -> None:
    bench = Bench()
    with capture_logs() as logs:
        await bench.ask('{"jsonrpc":"2.0","method":"change","params":["vm-1"],"id":1}')
        await bench.ask('{"jsonrpc":"2.0","method":"get_data","id":1}')
    change, read = logs
    assert (change["event"], change["log_level"], change["method"], change["vm"]) == (
        "rpc.call",
        "info",
        "change",
        "vm-1",
    )
    assert change["duration_us"] >= 0
    assert read["log_level"] == "debug"


async def test_a_small_body_is_answered_while_a_large_one_is_read() -> None:
    bench = Bench()
    order: list[str] = []

    async def ask(name: str, text: str) -> None:
        await bench.ask(json.dumps({"jsonrpc": "2.0", "method": "fail", "params": {"text": text}, "id": name}))
        order.append(name)

    async with asyncio.TaskGroup() as calls:
        calls.create_task(ask("large", "x" * (1 << 20)))
        calls.create_task(ask("small", "x"))
    assert order == ["small", "large"]


async def test_an_id_that_is_too_long_to_be_repeated_is_refused_and_not_repeated() -> None:
    for call_id in ('"' + "x" * 8193 + '"', "1" * 8193, "1." + "0" * 8192):
        answer = await Bench().ask_raw(f'{{"jsonrpc":"2.0","method":"sum","params":[1],"id":{call_id}}}')
        assert answer is not None
        assert shape(json.loads(answer)) == (-32600, None)
        assert len(answer) < 500
    just_right = "x" * 8192
    answer = await Bench().ask_raw(f'{{"jsonrpc":"2.0","method":"none","id":"{just_right}"}}')
    assert answer is not None
    assert json.loads(answer)["id"] == just_right
