"""What a JSON-RPC 2.0 server is asked in corners: the specification's examples, and what other libraries broke on.

Each case is a body and what a server has to say to it, whatever carries the two. The methods are those of `toys`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.rpc.toys import BATCH_CALLS, JSON_DEPTH

NOTHING = None
PARSE, INVALID, NO_METHOD, BAD_PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603


@dataclass(frozen=True)
class Case:
    """A body and its answer.

    Attributes:
        name: What it is about; "spec 7" is the specification's seventh example.
        body: What is sent.
        answer: The answer's shape: a result and its id as {"result", "id"}, an error as (code, id), a list of these
            for a batch, None where nothing is to be said.
        exactly: The answer to the byte, where that is what matters.
        says: What an error's message has in it.
        runs: The methods that are carried out, in their order; None where it does not matter.
    """

    name: str
    body: bytes
    answer: Any
    exactly: bytes | None = None
    says: str = ""
    runs: tuple[str, ...] | None = None

    @property
    def is_silent(self) -> bool:
        """Whether nothing is to be said."""
        return self.answer is NOTHING and self.exactly is None

    @property
    def is_text(self) -> bool:
        """Whether the body is text at all, so that a text frame can carry it."""
        try:
            self.body.decode()
        except UnicodeDecodeError:
            return False
        return True


def shape(answer: Any) -> Any:
    """Reduce an answer to results, codes and ids, and check that all of it is JSON-RPC's."""
    if isinstance(answer, list):
        assert answer, "an empty batch is no answer"
        return [shape(entry) for entry in answer]
    if answer is None:
        return None
    assert answer["jsonrpc"] == "2.0"
    assert answer.keys() in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"})
    if "error" not in answer:
        return {"result": answer["result"], "id": answer["id"]}
    assert answer["error"].keys() <= {"code", "message", "data"}
    assert isinstance(answer["error"]["message"], str)
    return answer["error"]["code"], answer["id"]


def gave(result: Any, request_id: Any) -> dict[str, Any]:
    return {"result": result, "id": request_id}


BATCH = b"""[
    {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
    {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
    {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
    {"foo": "boo"},
    {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
    {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
]"""

SPECIFICATION = (
    (b'{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}', gave(19, 1)),
    (b'{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}', gave(-19, 2)),
    (
        b'{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        gave(19, 3),
    ),
    (
        b'{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        gave(19, 4),
    ),
    (b'{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', NOTHING),
    (b'{"jsonrpc": "2.0", "method": "foobar"}', NOTHING),
    (b'{"jsonrpc": "2.0", "method": "foobar", "id": "1"}', (NO_METHOD, "1")),
    (b'{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', (PARSE, None)),
    (b'{"jsonrpc": "2.0", "method": 1, "params": "bar"}', (INVALID, None)),
    (
        b'[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"}, {"jsonrpc": "2.0", "method"]',
        (PARSE, None),
    ),
    (b"[]", (INVALID, None)),
    (b"[1]", [(INVALID, None)]),
    (b"[1,2,3]", [(INVALID, None)] * 3),
    (
        BATCH,
        [gave(7, "1"), gave(19, "2"), (INVALID, None), (NO_METHOD, "5"), gave(["hello", 5], "9")],
    ),
    (
        b'[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4]}, {"jsonrpc": "2.0", "method": "sum", "params": [7]}]',
        NOTHING,
    ),
)

KEPT_IDS = {
    "0": "0",
    "a negative one": "-7",
    "2^64": "18446744073709551616",
    "thirty digits": "123456789012345678901234567890",
    "5,000 digits": "9" * 5000,
    "a fraction": "1.50",
    "a whole fraction": "1.0",
    "more than a double holds": "1e400",
    "minus zero": "-0",
    "25 decimals": "0.1234567890123456789012345",
    "an empty string": '""',
    "a string with a zero": '"a\\u0000b"',
    "a string beyond the first plane": '"\\u00e9\\ud83d\\ude00"',
    "null": "null",
}

NO_IDS = ("true", "false", "[]", "[1]", "{}")

NO_JSON = {
    "nothing": b"",
    "a space": b" ",
    "half an object": b"{",
    "half a word": b"nul",
    "NaN": b'{"jsonrpc":"2.0","method":"nothing","id":NaN}',
    "Infinity": b'{"jsonrpc":"2.0","method":"nothing","id":Infinity}',
    "-Infinity": b'{"jsonrpc":"2.0","method":"nothing","id":-Infinity}',
    "NaN among parameters": b'{"jsonrpc":"2.0","method":"sum","params":[NaN],"id":1}',
    "a member twice": b'{"jsonrpc":"2.0","method":"nothing","id":1,"id":2}',
    "a parameter twice": b'{"jsonrpc":"2.0","method":"fail","params":{"text":"a","text":"b"},"id":1}',
    "a member twice, once escaped": b'{"jsonrpc":"2.0","method":"nothing","id":1,"\\u0069d":2}',
    "a member twice in one entry of a batch": b'[{"jsonrpc":"2.0","method":"nothing","id":1,"id":2},1]',
    "a lone high surrogate": b'{"jsonrpc":"2.0","method":"fail","params":{"text":"\\ud800"},"id":1}',
    "a lone low surrogate as id": b'{"jsonrpc":"2.0","method":"nothing","id":"\\uDFFF"}',
    "a lone surrogate as a member's name": b'{"jsonrpc":"2.0","method":"nothing","\\ud800":1,"id":1}',
    "a byte that is no UTF-8": b'{"jsonrpc":"2.0","method":"nothing","id":"\xff"}',
    "a surrogate in UTF-8": b'{"jsonrpc":"2.0","method":"nothing","id":"\xed\xa0\x80"}',
    "UTF-16": '{"jsonrpc":"2.0","method":"nothing","id":1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"jsonrpc":"2.0","method":"nothing","id":1}',
    "something behind it": b'{"jsonrpc":"2.0","method":"nothing","id":1} trailing',
    "a second request behind it": b'{"jsonrpc":"2.0","method":"nothing","id":1}{"jsonrpc":"2.0","method":"nothing"}',
    "a leading zero": b'{"jsonrpc":"2.0","method":"nothing","id":01}',
    "a trailing comma": b'{"jsonrpc":"2.0","method":"nothing","id":1,}',
    "a comment": b'{"jsonrpc":"2.0",/**/"method":"nothing","id":1}',
    "single quotes": b"{'jsonrpc':'2.0'}",
    "a line end in a string": b'{"jsonrpc":"2.0","method":"nothing","id":"a\nb"}',
    "100,000 brackets": b"[" * 100_000,
    "100,000 brackets and their ends": b"[" * 100_000 + b"]" * 100_000,
    "100,000 braces": b'{"a":' * 100_000,
    "one array too deep": b"[" * (JSON_DEPTH + 1) + b"]" * (JSON_DEPTH + 1),
}

NO_REQUESTS = {
    "no version": ('{"method":"nothing","id":1}', 1),
    "a number as version": ('{"jsonrpc":2.0,"method":"nothing","id":1}', 1),
    "another version": ('{"jsonrpc":"1.0","method":"nothing","id":1}', 1),
    "null as version": ('{"jsonrpc":null,"method":"nothing","id":1}', 1),
    "no method": ('{"jsonrpc":"2.0","id":1}', 1),
    "null as method": ('{"jsonrpc":"2.0","method":null,"id":1}', 1),
    "a list as method": ('{"jsonrpc":"2.0","method":["nothing"],"id":"a"}', "a"),
    "null as params": ('{"jsonrpc":"2.0","method":"nothing","params":null,"id":1}', 1),
    "a number as params": ('{"jsonrpc":"2.0","method":"nothing","params":1,"id":1}', 1),
    "a string as params": ('{"jsonrpc":"2.0","method":"nothing","params":"x","id":1}', 1),
    "a broken notification": ('{"jsonrpc":"2.0","method":"nothing","params":"x"}', None),
    "an empty object": ("{}", None),
    "a bare number": ("1", None),
    "a bare fraction": ("1.5", None),
    "a bare string": ('"text"', None),
    "a bare null": ("null", None),
    "a bare true": ("true", None),
}

BAD_PARAMETERS = {
    "too few by position": ("[1]", "subtrahend"),
    "one is missing": ('{"minuend":1}', "subtrahend: is missing"),
    "one is unknown": ('{"minuend":1,"subtrahend":2,"extra":3}', "extra: is no parameter here"),
    "another case": ('{"minuend":1,"Subtrahend":2}', "Subtrahend"),
    "a boolean for a number": ('{"minuend":1,"subtrahend":true}', "subtrahend"),
    "a string for a number": ('{"minuend":1,"subtrahend":"2"}', "'2'"),
    "a fraction for a number": ('{"minuend":1,"subtrahend":2.0}', "2.0"),
    "5,000 digits": ('{"minuend":1,"subtrahend":' + "9" * 5000 + "}", "subtrahend"),
    "minus zero": ('{"minuend":1,"subtrahend":-0}', "subtrahend"),
    "none by position": ("[]", "minuend"),
    "too many by position": ("[1,2" + ",3" * 50 + "]", "takes at most"),
}


def _request(method: str, request_id: str | None = "1", params: str | None = None) -> str:
    members = ['"jsonrpc":"2.0"', f'"method":"{method}"']
    members += [] if params is None else [f'"params":{params}']
    members += [] if request_id is None else [f'"id":{request_id}']
    return "{" + ",".join(members) + "}"


def _cases() -> Iterator[Case]:
    for number, (body, answer) in enumerate(SPECIFICATION, 1):
        yield Case(f"spec {number}", body, answer)
    for name, text in KEPT_IDS.items():
        exactly = ('{"jsonrpc":"2.0","result":null,"id":' + text + "}").encode()
        answer = gave(None, json.loads(text)) if len(text) < 4000 else None
        yield Case(f"id kept: {name}", _request("nothing", text).encode(), answer, exactly, runs=("nothing",))
    for text in NO_IDS:
        yield Case(f"no id: {text}", _request("nothing", text).encode(), (INVALID, None), runs=())
    for name, broken in NO_JSON.items():
        yield Case(f"no JSON: {name}", broken, (PARSE, None), runs=())
    for name, (body_text, request_id) in NO_REQUESTS.items():
        yield Case(f"no request: {name}", body_text.encode(), (INVALID, request_id), runs=())
    for name, (params, says) in BAD_PARAMETERS.items():
        body = _request("subtract", params=params).encode()
        yield Case(f"bad parameters: {name}", body, (BAD_PARAMS, 1), says=says, runs=())
    for method in ("nothing", "fail", "break", "no_such_method", "subtract"):
        yield Case(f"notification: {method}", _request(method, None).encode(), NOTHING)
    yield from _BATCHES
    yield from _REST


_ONE = _request("nothing")
_QUIET = _request("nothing", None)

_BATCHES = (
    Case("batch: one answer is still a list", f"[{_ONE},{_QUIET}]".encode(), [gave(None, 1)], runs=("nothing",) * 2),
    Case("batch: notifications alone", f"[{_QUIET},{_QUIET}]".encode(), NOTHING, runs=("nothing",) * 2),
    Case("batch: a failed notification alone", f"[{_request('fail', None)}]".encode(), NOTHING, runs=("fail",)),
    Case("batch: the same id twice", f"[{_ONE},{_ONE}]".encode(), [gave(None, 1)] * 2),
    Case("batch: as long as it may be", f"[{','.join([_QUIET] * BATCH_CALLS)}]".encode(), NOTHING),
    Case(
        "batch: one entry too long",
        f"[{','.join([_ONE] * (BATCH_CALLS + 1))}]".encode(),
        (INVALID, None),
        says=f"limits.batch_calls = {BATCH_CALLS}",
        runs=(),
    ),
    Case("batch: in a batch", f"[[{_ONE}]]".encode(), [(INVALID, None)], runs=()),
    Case("batch: as deep as it may be", b"[" * JSON_DEPTH + b"]" * JSON_DEPTH, [(INVALID, None)], runs=()),
    Case(
        "batch: in its order, whatever fails",
        f"[{_ONE},{_request('fail', '2')},{_request('get_data', None)},{_request('sum', '3', '[2]')}]".encode(),
        [gave(None, 1), (17, 2), gave(2, 3)],
        runs=("nothing", "fail", "get_data", "sum"),
    ),
    Case(
        "batch: an entry breaks inside",
        f"[{_request('break')},{_request('sum', '2', '[1,1]')}]".encode(),
        [(INTERNAL, 1), gave(2, 2)],
    ),
)

_BRACKETS = "[" * 30

_REST = (
    Case("null is a result", _ONE.encode(), gave(None, 1), b'{"jsonrpc":"2.0","result":null,"id":1}'),
    Case("a null id is no notification", _request("subtract", "null", "[3,1]").encode(), gave(2, None)),
    Case("brackets in a string", _request("nothing", f'"\\"{_BRACKETS}"').encode(), gave(None, f'"{_BRACKETS}')),
    Case("white space around it", f" \t\r\n{_ONE}\n".encode(), gave(None, 1)),
    Case("members in any order", b'{"id":1,"method":"nothing","jsonrpc":"2.0"}', gave(None, 1)),
    Case("a member more", b'{"jsonrpc":"2.0","method":"nothing","id":1,"meta":{"a":[1]}}', gave(None, 1)),
    Case("empty params", _request("nothing", params="{}").encode(), gave(None, 1)),
    Case("empty params by position", _request("nothing", params="[]").encode(), gave(None, 1)),
    Case("an escaped method", b'{"jsonrpc":"2.0","method":"n\\u006fthing","id":1}', gave(None, 1)),
    Case("an empty method", _request("").encode(), (NO_METHOD, 1)),
    Case("a method of a megabyte", _request("x" * (1 << 20)).encode(), (NO_METHOD, 1)),
    Case("a method that is no method but a member", _request("__init__").encode(), (NO_METHOD, 1)),
    Case(
        "a likely method is named",
        _request("substract").encode(),
        (NO_METHOD, 1),
        says="there is no method 'substract'; is subtract meant?",
    ),
    Case(
        "what went wrong inside is not told",
        _request("break", params='["hunter2"]').encode(),
        (INTERNAL, 1),
        b'{"jsonrpc":"2.0","error":{"code":-32603,"message":"an error inside the daemon; its log has the details"},'
        b'"id":1}',
    ),
    Case(
        "a call's own error is told",
        _request("fail").encode(),
        (17, 1),
        b'{"jsonrpc":"2.0","error":{"code":17,"message":"the slot is there","data":{"errno":"EEXIST"}},"id":1}',
    ),
)

CASES = tuple(_cases())
