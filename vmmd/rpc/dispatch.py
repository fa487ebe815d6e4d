"""JSON-RPC 2.0, bytes to bytes: what is asked is told apart, checked and answered by the rules, and nothing else.

It knows the table of methods and no more of the daemon: whoever makes a `Dispatcher` gives it what carries out one
call, and what makes the scope that the calls of one body share. It has no socket and it never raises: a body has its
answer, or is one that nothing is to be said to.

A body goes through three steps. Decode: the text becomes one request or a batch of them. Check: every entry becomes a
call or an error, before the first is carried out. Carry out: one after another, in the order in which they stand. The
scope is told of every entry that failed, and of those found in the check before the first call, so that what the calls
of a batch keep open can be undone.
"""

import difflib
import errno
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import structlog
from pydantic import ValidationError

from vmmd.api.errors import INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, PARSE_ERROR
from vmmd.api.methods import Method
from vmmd.api.types import Params
from vmmd.rpc.jsontext import JsonError, Verbatim, decode, encode

# Names longer than this are nobody's typing error: no likeness is looked for, and messages cut them.
_LONGEST_NAME = 64

# A result this small is given whatever the answer has already: batch_calls bounds what such results come to, and most
# are of calls that have changed something, where an error would not be true.
_SMALL_RESULT_BYTES = 1024

# A body can have more wrong with it than anybody reads.
_MOST_PROBLEMS = 5

_log = structlog.get_logger()


class CallError(Exception):
    """What a call answers with instead of a result: JSON-RPC's error object.

    Attributes:
        code: An errno's number, or one of JSON-RPC's codes.
        message: One sentence.
        data: The error's data in JSON's types; None where there is none.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class Scope(Protocol):
    """What the calls of one body share.

    Attributes:
        reply_left: Bytes by which the answer may still grow. A call whose large result is larger than that answers
            E2BIG; one that changes something has to look here first, since that error would come too late.
    """

    reply_left: int

    def refused(self, error: CallError) -> None:
        """Take note, before the first call, that an entry of the body is none that can be carried out."""

    def failed(self, error: CallError) -> None:
        """Take note that a call of the body has failed."""


ScopeT = TypeVar("ScopeT", bound=Scope)

Execute = Callable[[Method, Params, ScopeT], Awaitable[bytes]]
"""Carries out one checked call and gives the JSON text of its result, or raises `CallError`."""

CallerIsGone = Callable[[], bool]
"""Tells whether the caller has gone without its answer."""


@dataclass(frozen=True)
class DispatchLimits:
    """What a body and its answer may amount to. The names are the configuration's: errors name them so."""

    batch_calls: int
    reply_bytes: int
    json_depth: int


_Line = tuple[Callable[..., Any], str, dict[str, Any]]
"""A line for the log: what writes it, the event, and what is known of it."""


@dataclass(frozen=True)
class _Call:
    """A request that can be carried out. `request_id` is its id as JSON text, None for a notification."""

    request_id: bytes | None
    method: Method
    params: Params


@dataclass(frozen=True)
class _Refusal:
    """A request that cannot: what is wrong with it. A notification's is told to nobody."""

    request_id: bytes | None
    error: CallError


class Dispatcher(Generic[ScopeT]):
    """Answers bodies.

    Args:
        methods: The table.
        execute: Carries out one call.
        scope: Makes the scope of one body; it is given the bytes that the answer may have, and what tells whether the
            caller of a single request has gone. A batch is carried out as it stands, whoever has gone.
        limits: What a body and its answer may amount to.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        execute: Execute[ScopeT],
        scope: Callable[[int, CallerIsGone], ScopeT],
        limits: DispatchLimits,
    ) -> None:
        self._methods = methods
        self._execute = execute
        self._scope = scope
        self._limits = limits

    async def dispatch(self, body: bytes, caller_is_gone: CallerIsGone) -> bytes | None:
        """Answer one body.

        Args:
            body: The text of a request or a batch.
            caller_is_gone: Tells whether nobody waits for the answer any more.

        Returns:
            The text of the answer, or None where nothing is to be said: to notifications alone.
        """
        try:
            value = decode(body, max_depth=self._limits.json_depth)
        except JsonError as error:
            return _error_text(b"null", CallError(PARSE_ERROR, str(error)))
        if not isinstance(value, list):
            answers = await self._answer_all([value], caller_is_gone)
            return answers[0] if answers else None
        if not value:
            return _error_text(b"null", CallError(INVALID_REQUEST, "a batch has at least one request"))
        if len(value) > self._limits.batch_calls:
            message = f"a batch of {len(value)} requests is longer than limits.batch_calls = {self._limits.batch_calls}"
            return _error_text(b"null", CallError(INVALID_REQUEST, message))
        answers = await self._answer_all(value, lambda: False)
        return b"[" + b",".join(answers) + b"]" if answers else None

    async def _answer_all(self, values: Sequence[Any], caller_is_gone: CallerIsGone) -> list[bytes]:
        """Check all entries, then carry them out in their order."""
        entries = [self._check(value) for value in values]
        scope = self._scope(self._limits.reply_bytes, caller_is_gone)
        for entry in entries:
            if isinstance(entry, _Refusal):
                _log.debug("rpc.refused", code=entry.error.code, error=entry.error.message)
                scope.refused(entry.error)
        answers = []
        lines: list[_Line] = []
        try:
            for entry in entries:
                answer = await self._answer(entry, scope, lines)
                if answer is not None:
                    scope.reply_left -= len(answer)
                    answers.append(answer)
        finally:
            # A line costs as much as a slot call. Written now, none of them lies within the pause of a batch's hold.
            for write, event, about in lines:
                write(event, **about)
        return answers

    async def _answer(self, entry: _Call | _Refusal, scope: ScopeT, lines: list[_Line]) -> bytes | None:
        if isinstance(entry, _Refusal):
            return None if entry.request_id is None else _error_text(entry.request_id, entry.error)
        try:
            result = await self._carry_out(entry, scope, lines)
        except CallError as error:
            scope.failed(error)
            return None if entry.request_id is None else _error_text(entry.request_id, error)
        return None if entry.request_id is None else _result_text(entry.request_id, result)

    async def _carry_out(self, call: _Call, scope: ScopeT, lines: list[_Line]) -> bytes:
        """Carry out one call, and note its line for the log: info for what changes something, debug for reads."""
        write = _log.info if call.method.changes else _log.debug
        about = {"method": call.method.name, "vm": getattr(call.params, "vm", None)}
        start = time.perf_counter_ns()
        try:
            result = await self._execute(call.method, call.params, scope)
            if call.request_id is not None and len(result) > max(scope.reply_left, _SMALL_RESULT_BYTES):
                raise CallError(
                    errno.E2BIG,
                    f"a result of {len(result)} bytes would make the reply longer than limits.reply_bytes = "
                    f"{self._limits.reply_bytes}; ask for less at a time",
                    {"errno": "E2BIG"},
                )
        except CallError as error:
            about |= {"code": error.code, "error": error.message}
            raise
        except Exception as error:
            # What went wrong inside is for the log alone: an exception's text may hold what the caller must not see.
            write, about = _log.error, about | {"exc_info": error}
            raise CallError(INTERNAL_ERROR, "an error inside the daemon; its log has the details") from None
        finally:
            lines.append((write, "rpc.call", about | {"duration_us": (time.perf_counter_ns() - start) // 1000}))
        return result

    def _check(self, value: Any) -> _Call | _Refusal:
        """Turn one entry of a body into a call, or into what is wrong with it."""
        if not isinstance(value, dict):
            return _Refusal(b"null", CallError(INVALID_REQUEST, "a request is an object"))
        request_id = _request_id(value)
        problem = _envelope_problem(value)
        if problem is not None:
            # The specification answers these with a null id; one that can be told is more use to the caller.
            return _Refusal(request_id or b"null", CallError(INVALID_REQUEST, problem))
        method = self._methods.get(value["method"])
        if method is None:
            return _Refusal(request_id, CallError(METHOD_NOT_FOUND, self._no_method(value["method"])))
        try:
            return _Call(request_id, method, _params(method, value.get("params", {})))
        except CallError as error:
            return _Refusal(request_id, error)

    def _no_method(self, name: str) -> str:
        like = difflib.get_close_matches(name, self._methods, n=1) if len(name) <= _LONGEST_NAME else []
        return f"there is no method {name!r:.{_LONGEST_NAME}}" + (f"; is {like[0]} meant?" if like else "")


def _request_id(request: dict[str, Any]) -> bytes | None:
    """Give a request's id as JSON text, to the digit; None where it has none; null where it is none that may be."""
    if "id" not in request:
        return None
    value = request["id"]
    legal = value is None or (isinstance(value, str | int | Verbatim) and not isinstance(value, bool))
    return encode(value) if legal else b"null"


def _envelope_problem(request: dict[str, Any]) -> str | None:
    """Say what keeps an object from being a request; None where it is one."""
    if request.get("jsonrpc") != "2.0":
        return 'the member "jsonrpc" must be the string "2.0"'
    if not isinstance(request.get("method"), str):
        return 'the member "method" must be a string'
    if not isinstance(request.get("params", {}), dict | list):
        return 'the member "params" must be an object or an array, or left out'
    if isinstance(request.get("id"), bool | dict | list):
        return 'the member "id" must be a string, a number or null, or left out'
    return None


def _params(method: Method, given: dict[str, Any] | list[Any]) -> Params:
    """Give the model of the parameters of a call, by name or by position."""
    if isinstance(given, list):
        names = method.params.positions()
        if len(given) > len(names):
            problem = f"{len(given)} parameters by position, and it takes at most {len(names)}: {', '.join(names)}"
            raise _invalid_params(method, [("", problem)])
        given = dict(zip(names, given, strict=False))
    try:
        return method.params.model_validate(given)
    except ValidationError as error:
        problems = [_problem(method, details) for details in error.errors(include_url=False)[:_MOST_PROBLEMS]]
        raise _invalid_params(method, problems) from None


def _problem(method: Method, details: Any) -> tuple[str, str]:
    """Turn one of pydantic's findings into the parameter's path and a sentence with the value."""
    path = ".".join(str(step)[:_LONGEST_NAME] for step in details["loc"])
    match details["type"]:
        case "missing":
            return path, "is missing"
        case "extra_forbidden":
            return path, f"is no parameter here; there are: {', '.join(method.params.positions()) or 'none'}"
        case "string_too_long" | "bytes_too_long" | "too_long":
            return path, f"has more than {details['ctx']['max_length']} {_unit(details)}: {details['input']!r:.60}"
        case "string_too_short" | "too_short":
            return path, f"has fewer than {details['ctx']['min_length']} {_unit(details)}: {details['input']!r:.60}"
        case "value_error":
            return path, f"{details['ctx']['error']}, not {details['input']!r:.60}"
        case _:
            return path, f"{details['msg']}, not {details['input']!r:.60}"


def _unit(details: Any) -> str:
    """Say what the length in one of pydantic's findings counts."""
    if details["type"].startswith("string"):
        return "characters"
    # What base64 stands for is bytes by the time that it is measured; where it may be null pydantic knows no type.
    is_bytes = details["type"].startswith("bytes") or details["ctx"].get("field_type") == "Value"
    return "bytes" if is_bytes else "entries"


def _invalid_params(method: Method, problems: list[tuple[str, str]]) -> CallError:
    sentence = "; ".join(": ".join(part for part in problem if part) for problem in problems)
    data = {"problems": [{"parameter": path, "problem": problem} for path, problem in problems]}
    return CallError(INVALID_PARAMS, f"{method.name}: {sentence}", data)


def _result_text(request_id: bytes, result: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","result":' + result + b',"id":' + request_id + b"}"


def _error_text(request_id: bytes, error: CallError) -> bytes:
    members: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        members["data"] = error.data
    return b'{"jsonrpc":"2.0","error":' + encode(members) + b',"id":' + request_id + b"}"
