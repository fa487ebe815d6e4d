"""JSON-RPC 2.0 by the specification's own examples, and by the cases that other libraries broke on."""

import errno
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from structlog.testing import capture_logs

from vmmd.api.methods import Method
from vmmd.api.types import ChangeOptions, Params
from vmmd.rpc.caller import Caller
from vmmd.rpc.dispatch import Dispatcher, DispatchLimits
from vmmd.rpc.errors import CallError


class SubtractParams(Params):
    minuend: int = Field(strict=True)
    subtrahend: int = Field(strict=True)


class SumParams(Params):
    a: int = 0
    b: int = 0
    c: int = 0


class AskParams(Params):
    text: str = ""


class ChangeParams(ChangeOptions):
    vm: str


METHODS = {
    row.name: row
    for row in (
        Method("subtract", SubtractParams, int, "a minus b"),
        Method("sum", SumParams, int, "a plus b plus c"),
        Method("get_data", Params, list[Any], "a list"),
        Method("nothing", Params, None, "null"),
        Method("fail", AskParams, None, "fails as a call fails"),
        Method("break", AskParams, None, "fails as a program fails"),
        Method("large", AskParams, str, "5,000 bytes"),
        Method("change", ChangeParams, None, "changes something", changes=True),
    )
}


class RecordingScope:
    """A scope that writes down what it is told, among the calls."""

    def __init__(self, reply_left: int, journal: list[str]) -> None:
        self.reply_left = reply_left
        self.journal = journal

    def refused(self, error: CallError) -> None:
        self.journal.append(f"refused {error.code}")

    def failed(self, error: CallError) -> None:
        self.journal.append(f"failed {error.code}")


class Bench:
    """A dispatcher over a table of toys, and what happened behind it."""

    def __init__(self, *, batch_calls: int = 10, reply_bytes: int = 10_000) -> None:
        self.journal: list[str] = []
        limits = DispatchLimits(batch_calls=batch_calls, reply_bytes=reply_bytes, json_depth=16)
        self.dispatcher = Dispatcher(
            METHODS, self.execute, lambda left, _gone: RecordingScope(left, self.journal), limits
        )

    async def execute(self, method: Method, params: Any, scope: RecordingScope) -> bytes:
        self.journal.append(method.name)
        match method.name:
            case "subtract":
                result: Any = params.minuend - params.subtrahend
            case "sum":
                result = params.a + params.b + params.c
            case "get_data":
                result = ["hello", 5]
            case "fail":
                raise CallError(17, "the slot is there", {"errno": "EEXIST"})
            case "break":
                raise TypeError(f"secret {params.text}")
            case "large":
                result = "x" * 5000
            case _:
                result = None
        return json.dumps(result).encode()

    async def ask(self, body: bytes | str) -> Any:
        answer = await self.dispatcher.dispatch(body.encode() if isinstance(body, str) else body, Caller())
        return None if answer is None else json.loads(answer)

    async def ask_raw(self, body: str) -> bytes | None:
        return await self.dispatcher.dispatch(body.encode(), Caller())


def shape(answer: Any) -> Any:
    """Reduce an answer to what the specification's examples fix: results, codes and ids."""
    if isinstance(answer, list):
        return [shape(entry) for entry in answer]
    if answer is None:
        return None
    assert answer["jsonrpc"] == "2.0"
    assert ("result" in answer) != ("error" in answer)
    if "error" in answer:
        assert isinstance(answer["error"]["message"], str)
        return answer["error"]["code"], answer["id"]
    return {"result": answer["result"], "id": answer["id"]}


BATCH = """[
    {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
    {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
    {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
    {"foo": "boo"},
    {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
    {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
]"""

SPECIFICATION = [
    ('{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}', {"result": 19, "id": 1}),
    ('{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}', {"result": -19, "id": 2}),
    (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        {"result": 19, "id": 3},
    ),
    (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        {"result": 19, "id": 4},
    ),
    ('{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', None),
    ('{"jsonrpc": "2.0", "method": "foobar"}', None),
    ('{"jsonrpc": "2.0", "method": "foobar", "id": "1"}', (-32601, "1")),
    ('{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', (-32700, None)),
    ('{"jsonrpc": "2.0", "method": 1, "params": "bar"}', (-32600, None)),
    (
        '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"}, {"jsonrpc": "2.0", "method"]',
        (-32700, None),
    ),
    ("[]", (-32600, None)),
    ("[1]", [(-32600, None)]),
    ("[1,2,3]", [(-32600, None), (-32600, None), (-32600, None)]),
    (
        BATCH,
        [
            {"result": 7, "id": "1"},
            {"result": 19, "id": "2"},
            (-32600, None),
            (-32601, "5"),
            {"result": ["hello", 5], "id": "9"},
        ],
    ),
    (
        '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4]}, {"jsonrpc": "2.0", "method": "sum", "params": [7]}]',
        None,
    ),
]


@pytest.mark.parametrize(("body", "expected"), SPECIFICATION, ids=range(1, 16))
async def test_the_specifications_example_is_answered_as_it_says(body: str, expected: Any) -> None:
    assert shape(await Bench().ask(body)) == expected


@pytest.mark.parametrize(
    "request_id",
    [
        "0",
        "-7",
        "18446744073709551616",
        "123456789012345678901234567890",
        "9" * 5000,
        "1.0",
        "1.50",
        "1e400",
        "-0",
        "0.1234567890123456789012345",
        '""',
        '"a\\u0000b"',
        '"\\u00e9\\ud83d\\ude00"',
        "null",
    ],
)
async def test_an_id_comes_back_exactly_as_it_was_written(request_id: str) -> None:
    answer = await Bench().ask_raw('{"jsonrpc":"2.0","method":"nothing","id":' + request_id + "}")
    assert answer == ('{"jsonrpc":"2.0","result":null,"id":' + request_id + "}").encode()


@pytest.mark.parametrize("request_id", ["true", "false", "[]", "[1]", "{}"])
async def test_an_id_of_another_type_makes_the_request_invalid_and_is_not_echoed(request_id: str) -> None:
    bench = Bench()
    answer = await bench.ask('{"jsonrpc":"2.0","method":"nothing","id":' + request_id + "}")
    assert shape(answer) == (-32600, None)
    assert bench.journal == ["refused -32600"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nul",
        b'{"jsonrpc":"2.0","method":"nothing","id":NaN}',
        b'{"jsonrpc":"2.0","method":"nothing","id":Infinity}',
        b'{"jsonrpc":"2.0","method":"nothing","id":-Infinity}',
        b'{"jsonrpc":"2.0","method":"nothing","id":1,"id":2}',
        b'{"jsonrpc":"2.0","method":"fail","params":{"text":"a","text":"b"},"id":1}',
        b'{"jsonrpc":"2.0","method":"fail","params":{"text":"\\ud800"},"id":1}',
        b'{"jsonrpc":"2.0","method":"nothing","id":"\\uDFFF"}',
        b'{"jsonrpc":"2.0","method":"nothing","id":"\xff"}',
        b'{"jsonrpc":"2.0","method":"nothing","id":"\xed\xa0\x80"}',
        '{"jsonrpc":"2.0","method":"nothing","id":1}'.encode("utf-16"),
        b'\xef\xbb\xbf{"jsonrpc":"2.0","method":"nothing","id":1}',
        b'{"jsonrpc":"2.0","method":"nothing","id":1} trailing',
        b'{"jsonrpc":"2.0","method":"nothing","id":01}',
        b'{"jsonrpc":"2.0","method":"nothing","id":1,}',
        b"{'jsonrpc':'2.0'}",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
    ],
)
async def test_what_is_no_json_is_one_parse_error_and_nothing_is_carried_out(body: bytes) -> None:
    bench = Bench()
    assert shape(await bench.ask(body)) == (-32700, None)
    assert bench.journal == []


@pytest.mark.parametrize("body", ["1", '"text"', "null", "true", "1.5"])
async def test_a_bare_scalar_is_an_invalid_request(body: str) -> None:
    assert shape(await Bench().ask(body)) == (-32600, None)


@pytest.mark.parametrize(
    ("body", "request_id"),
    [
        ('{"method":"nothing","id":1}', 1),
        ('{"jsonrpc":2.0,"method":"nothing","id":1}', 1),
        ('{"jsonrpc":"1.0","method":"nothing","id":1}', 1),
        ('{"jsonrpc":null,"method":"nothing","id":1}', 1),
        ('{"jsonrpc":"2.0","id":1}', 1),
        ('{"jsonrpc":"2.0","method":null,"id":1}', 1),
        ('{"jsonrpc":"2.0","method":["nothing"],"id":"a"}', "a"),
        ('{"jsonrpc":"2.0","method":"nothing","params":null,"id":1}', 1),
        ('{"jsonrpc":"2.0","method":"nothing","params":1,"id":1}', 1),
        ('{"jsonrpc":"2.0","method":"nothing","params":"x","id":1}', 1),
        ('{"jsonrpc":"2.0","method":"nothing","params":"x"}', None),
        ("{}", None),
    ],
)
async def test_an_invalid_request_is_answered_with_its_id_where_it_has_one(body: str, request_id: Any) -> None:
    bench = Bench()
    assert shape(await bench.ask(body)) == (-32600, request_id)
    assert bench.journal == ["refused -32600"]


async def test_brackets_within_strings_are_not_depth_and_real_depth_is_limited() -> None:
    bench = Bench()
    deep = "[" * 30
    assert shape(await bench.ask(f'{{"jsonrpc":"2.0","method":"nothing","id":"\\"{deep}"}}'))["id"] == f'"{deep}'
    answer = await bench.ask("[" * 17 + "]" * 17)
    assert shape(answer) == (-32700, None)
    assert "limits.json_depth = 16" in answer["error"]["message"]
    assert shape(await bench.ask("[" * 16 + "]" * 16)) == [(-32600, None)]


async def test_a_null_result_is_a_member_of_the_answer() -> None:
    answer = await Bench().ask('{"jsonrpc":"2.0","method":"nothing","id":1}')
    assert answer == {"jsonrpc": "2.0", "result": None, "id": 1}


async def test_a_request_with_a_null_id_is_no_notification() -> None:
    assert shape(await Bench().ask('{"jsonrpc":"2.0","method":"subtract","params":[3,1],"id":null}')) == {
        "result": 2,
        "id": None,
    }


@pytest.mark.parametrize("method", ["nothing", "fail", "break", "no_such_method", "subtract"])
async def test_a_notification_is_never_answered_whatever_becomes_of_it(method: str) -> None:
    with capture_logs():
        assert await Bench().ask_raw(json.dumps({"jsonrpc": "2.0", "method": method})) is None


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ("[1]", "subtrahend"),
        ("[1,2,3,4]", "at most 3: minuend, subtrahend, deadline_ms"),
        ('{"minuend":1}', "subtrahend: is missing"),
        ('{"minuend":1,"subtrahend":2,"extra":3}', "extra: is no parameter here; there are: minuend, subtrahend"),
        ('{"minuend":1,"Subtrahend":2}', "Subtrahend"),
        ('{"minuend":1,"subtrahend":true}', "subtrahend"),
        ('{"minuend":1,"subtrahend":"2"}', "'2'"),
        ('{"minuend":1,"subtrahend":2.0}', "2.0"),
        ('{"minuend":1,"subtrahend":' + "9" * 5000 + "}", "subtrahend"),
        ("[]", "minuend"),
    ],
)
async def test_parameters_that_do_not_fit_are_named_and_nothing_is_carried_out(params: str, named: str) -> None:
    bench = Bench()
    answer = await bench.ask('{"jsonrpc":"2.0","method":"subtract","params":' + params + ',"id":1}')
    assert shape(answer) == (-32602, 1)
    assert named in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 1000
    assert answer["error"]["data"]["problems"]
    assert bench.journal == ["refused -32602"]


async def test_a_body_full_of_unknown_parameters_gets_a_short_answer() -> None:
    params = {f"{'n' * 200}{number}": "v" * 200 for number in range(2000)}
    answer = await Bench().ask_raw(json.dumps({"jsonrpc": "2.0", "method": "sum", "params": params, "id": 1}))
    assert answer is not None
    assert len(answer) < 5000


async def test_an_unknown_method_is_told_with_the_name_that_may_have_been_meant() -> None:
    answer = await Bench().ask('{"jsonrpc":"2.0","method":"substract","id":1}')
    assert shape(answer) == (-32601, 1)
    assert answer["error"]["message"] == "there is no method 'substract'; is subtract meant?"


async def test_a_failed_call_answers_with_its_own_code_and_data() -> None:
    answer = await Bench().ask('{"jsonrpc":"2.0","method":"fail","id":1}')
    assert answer["error"] == {"code": 17, "message": "the slot is there", "data": {"errno": "EEXIST"}}


async def test_an_exception_inside_is_logged_and_never_told() -> None:
    with capture_logs() as logs:
        answer = await Bench().ask_raw('{"jsonrpc":"2.0","method":"break","params":["hunter2"],"id":1}')
    assert answer is not None
    assert b"hunter2" not in answer
    assert b"TypeError" not in answer
    assert shape(json.loads(answer)) == (-32603, 1)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("rpc.call", "error")]
    assert logs[0]["exc_info"]


async def test_one_broken_entry_leaves_the_rest_of_its_batch_alone() -> None:
    with capture_logs():
        answer = await Bench().ask(
            '[{"jsonrpc":"2.0","method":"break","id":1},{"jsonrpc":"2.0","method":"subtract","params":[2,1],"id":2}]'
        )
    assert shape(answer) == [(-32603, 1), {"result": 1, "id": 2}]


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


async def test_a_batch_with_one_answer_is_still_an_array() -> None:
    answer = await Bench().ask('[{"jsonrpc":"2.0","method":"nothing","id":1},{"jsonrpc":"2.0","method":"nothing"}]')
    assert shape(answer) == [{"result": None, "id": 1}]


async def test_entries_with_the_same_id_are_each_answered() -> None:
    one = '{"jsonrpc":"2.0","method":"nothing","id":1}'
    assert len(await Bench().ask(f"[{one},{one}]")) == 2


async def test_a_batch_over_the_limit_is_refused_whole_and_names_the_limit() -> None:
    bench = Bench(batch_calls=2)
    one = '{"jsonrpc":"2.0","method":"nothing"}'
    answer = await bench.ask(f"[{one},{one},{one}]")
    assert shape(answer) == (-32600, None)
    assert "limits.batch_calls = 2" in answer["error"]["message"]
    assert bench.journal == []
    assert await bench.ask(f"[{one},{one}]") is None


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
