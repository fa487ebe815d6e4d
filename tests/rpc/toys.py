"""A dispatcher over a table of toys: the methods of JSON-RPC's own examples, and some that fail or are large."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from vmmd.api.method import Method
from vmmd.api.types import ChangeOptions, Params
from vmmd.rpc.call_log import CallLog
from vmmd.rpc.caller import Caller
from vmmd.rpc.dispatch import Dispatcher, DispatchLimits, finished
from vmmd.rpc.errors import CallError

BATCH_CALLS, JSON_DEPTH = 10, 16


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

    def __init__(self, *, batch_calls: int = BATCH_CALLS, reply_bytes: int = 10_000) -> None:
        self.journal: list[str] = []
        limits = DispatchLimits(batch_calls=batch_calls, reply_bytes=reply_bytes, json_depth=JSON_DEPTH)
        self.dispatcher = Dispatcher(
            METHODS,
            self.execute,
            lambda left, _gone: RecordingScope(left, self.journal),
            limits,
            CallLog(calls_per_second=10, reads=True),
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
        answer = await finished(self.dispatcher.begin(body.encode() if isinstance(body, str) else body, Caller()))
        return None if answer is None else json.loads(answer)

    async def ask_raw(self, body: str) -> bytes | None:
        return await finished(self.dispatcher.begin(body.encode(), Caller()))


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
