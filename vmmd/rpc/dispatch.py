"""JSON-RPC 2.0, bytes to bytes: what is asked is told apart, checked and answered by the rules, and nothing else.

It knows the table of methods and no more of the daemon: whoever makes a `Dispatcher` gives it what carries out one
call, and what makes the scope that the calls of one body share. It has no socket and it never raises: a body has its
answer, or is one that nothing is to be said to.

A body goes through three steps. Decode: the text becomes one request or a batch of them. Check: every entry becomes a
call or an error, before the first is carried out. Carry out: one after another, in the order in which they stand. The
scope is told of every entry that failed, and of those found in the check before the first call, so that what the calls
of a batch keep open can be undone.
"""

import asyncio
import difflib
import errno
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from vmmd.api.codes import INTERNAL_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, PARSE_ERROR
from vmmd.api.methods import Method
from vmmd.api.types import Params
from vmmd.rpc.caller import Caller
from vmmd.rpc.errors import CallError
from vmmd.rpc.jsontext import JsonError, Verbatim, decode, encode
from vmmd.rpc.parameters import LONGEST_NAME, check_params, named_hold

# A result this small is given whatever the answer has already: batch_calls bounds what such results come to, and most
# are of calls that have changed something, where an error would not be true.
_SMALL_RESULT_BYTES = 1024

# Characters of an id; `limits.reply_bytes` does not count ids, and a batch of these stays small beside it.
LONGEST_ID = 8192

# A body up to this size is understood sooner than a thread is woken.
_LARGE_BODY_BYTES = 32 << 10


# Of JSON's types, those that no id has and those that parameters have: unions would be made anew for each call.
_NO_IDS = (bool, dict, list)
_PARAMS = (dict, list)
_NO_PARAMS: dict[str, Any] = {}


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

Execute = Callable[[Method, Params, ScopeT], Coroutine[Any, Any, bytes]]
"""Carries out one checked call and gives the JSON text of its result, or raises `CallError`."""


@dataclass(frozen=True)
class DispatchLimits:
    """What a body and its answer may amount to. The names are the configuration's: errors name them so."""

    batch_calls: int
    reply_bytes: int
    json_depth: int


class CallDone(NamedTuple):
    """A call that is over, or was refused.

    Attributes:
        method: The row of the table; None where there was none.
        vm: The id of the VM that it named; None where it named none.
        duration_ns: How long it took; 0 for what was refused.
        error: What it answered with instead of a result; None where it succeeded.
        cause: What went wrong inside the daemon, which the caller is not told.
    """

    method: Method | None
    vm: str | None
    duration_ns: int
    error: CallError | None
    cause: Exception | None = None


Observe = Callable[[Sequence[CallDone]], None]
"""Takes note of the calls of a body once all of them are over: then nothing that it costs is in a hold's pause."""


class _Call(NamedTuple):
    """A request that can be carried out.

    `request_id` is its id as JSON text, None for a notification. `deadline_s`: when it is to be over, on the event
    loop's clock; None: whenever it is.
    """

    request_id: bytes | None
    method: Method
    params: Params
    deadline_s: float | None


class _Refusal(NamedTuple):
    """A request that cannot: what is wrong with it. A notification's is told to nobody."""

    request_id: bytes | None
    error: CallError
    method: Method | None = None


class Dispatcher(Generic[ScopeT]):
    """Answers bodies.

    Args:
        methods: The table.
        execute: Carries out one call.
        scope: Makes the scope of one body; it is given the bytes that the answer may have, and who waits for it.
        limits: What a body and its answer may amount to.
        observe: Takes note of the calls of a body.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        execute: Execute[ScopeT],
        scope: Callable[[int, Caller], ScopeT],
        limits: DispatchLimits,
        observe: Observe = lambda _calls: None,
    ) -> None:
        self._methods = methods
        self._execute = execute
        self._scope = scope
        self._limits = limits
        self._observe = observe
        self._closed: CallError | None = None

    def close(self, error: CallError) -> None:
        """Answer every call from now on with this error."""
        self._closed = error

    async def dispatch(self, body: bytes, caller: Caller) -> bytes | None:
        """Answer one body.

        Args:
            body: The text of a request or a batch.
            caller: Who waits for the answer.

        Returns:
            The text of the answer, or None where nothing is to be said: to notifications alone.
        """
        is_large = len(body) > _LARGE_BODY_BYTES
        try:
            value = await asyncio.to_thread(self._decode, body) if is_large else self._decode(body)
        except JsonError as error:
            return self._refuse(CallError(PARSE_ERROR, str(error)))
        if not isinstance(value, list):
            answers = await self._answer_all([value], caller, is_large=is_large)
            return answers[0] if answers else None
        if not value:
            return self._refuse(CallError(INVALID_REQUEST, "a batch has at least one request"))
        if len(value) > self._limits.batch_calls:
            message = f"a batch of {len(value)} requests is longer than limits.batch_calls = {self._limits.batch_calls}"
            return self._refuse(CallError(INVALID_REQUEST, message))
        answers = await self._answer_all(value, caller, is_large=is_large)
        return b"[" + b",".join(answers) + b"]" if answers else None

    def _decode(self, body: bytes) -> Any:
        return decode(body, max_depth=self._limits.json_depth)

    def _refuse(self, error: CallError) -> bytes:
        """Answer a body of which no entry can be told from another."""
        self._observe([CallDone(None, None, 0, error)])
        return error.text(b"null")

    async def _answer_all(self, values: Sequence[Any], caller: Caller, *, is_large: bool) -> list[bytes]:
        """Check all entries, then carry them out in their order."""
        began_s = asyncio.get_running_loop().time()
        if is_large:
            entries = await asyncio.to_thread(self._check_all, values, began_s)
        else:
            entries = self._check_all(values, began_s)
        if caller.connection is not None:
            caller.expect(entry.request_id for entry in entries if isinstance(entry, _Call))
        room = sum(self._most_bytes(entry) for entry in entries)
        if room:
            await caller.take_room(min(room, self._limits.reply_bytes), inside=_is_inside(entries))
        scope = self._scope(self._limits.reply_bytes, caller)
        for entry in entries:
            if isinstance(entry, _Refusal):
                scope.refused(entry.error)
        answers = []
        done: list[CallDone] = []
        try:
            for entry in entries:
                answer = await self._answer(entry, scope, caller, done)
                if answer is not None:
                    scope.reply_left -= len(answer)
                    answers.append(answer)
        finally:
            self._observe(done)
        return answers

    def _most_bytes(self, entry: _Call | _Refusal) -> int:
        """Tell how large an answer may be that may be large; 0 for others."""
        if isinstance(entry, _Refusal) or not entry.method.may_be_large:
            return 0
        length: int | None = getattr(entry.params, "length", None)
        # In base64, and with what stands around it.
        return self._limits.reply_bytes if length is None else 2 * length + _SMALL_RESULT_BYTES

    async def _answer(
        self, entry: _Call | _Refusal, scope: ScopeT, caller: Caller, done: list[CallDone]
    ) -> bytes | None:
        """Carry one entry out, put down how it went, and give the text of its answer."""
        if isinstance(entry, _Refusal):
            done.append(CallDone(entry.method, None, 0, entry.error))
            return None if entry.request_id is None else entry.error.text(entry.request_id)
        request_id, method, params, deadline_s = entry
        result = b""
        failure: CallError | None = None
        cause: Exception | None = None
        start = time.perf_counter_ns()
        try:
            result = await caller.wait_for(request_id, method, self._execute(method, params, scope), deadline_s)
            if request_id is not None and len(result) > max(scope.reply_left, _SMALL_RESULT_BYTES):
                failure = self._too_long(result)
        except CallError as error:
            failure = error
        except Exception as error:
            # What went wrong inside is for the log alone: an exception's text may hold what the caller must not see.
            cause = error
            failure = CallError(INTERNAL_ERROR, "an error inside the daemon; its log has the details")
        finally:
            duration_ns = time.perf_counter_ns() - start
            done.append(CallDone(method, vars(params).get("vm"), duration_ns, failure, cause))
        if failure is not None:
            scope.failed(failure)
            return None if request_id is None else failure.text(request_id)
        return None if request_id is None else _result_text(request_id, result)

    def _too_long(self, result: bytes) -> CallError:
        return CallError(
            errno.E2BIG,
            f"a result of {len(result)} bytes would make the reply longer than limits.reply_bytes = "
            f"{self._limits.reply_bytes}; ask for less at a time",
            {"errno": "E2BIG"},
        )

    def _check_all(self, values: Sequence[Any], began_s: float) -> list[_Call | _Refusal]:
        return [self._check(value, began_s) for value in values]

    def _check(self, value: Any, began_s: float) -> _Call | _Refusal:
        """Turn one entry of a body into a call, or into what is wrong with it."""
        if not isinstance(value, dict):
            return _Refusal(b"null", CallError(INVALID_REQUEST, "a request is an object"))
        request_id = _request_id(value)
        problem = _envelope_problem(value)
        if problem is not None:
            # The specification answers these with a null id; one that can be told is more use to the caller.
            return _Refusal(request_id or b"null", CallError(INVALID_REQUEST, problem))
        method = self._methods.get(value["method"])
        if self._closed is not None:
            return _Refusal(request_id, self._closed, method)
        if method is None:
            inside = named_hold(value.get("params"))
            error = CallError(METHOD_NOT_FOUND, self._no_method(value["method"]), inside=inside)
            return _Refusal(request_id, error)
        try:
            params = check_params(method, value.get("params", _NO_PARAMS))
        except CallError as refused:
            return _Refusal(request_id, refused, method)
        deadline_s = None if params.deadline_ms is None else began_s + params.deadline_ms / 1000
        return _Call(request_id, method, params, deadline_s)

    def _no_method(self, name: str) -> str:
        like = difflib.get_close_matches(name, self._methods, n=1) if len(name) <= LONGEST_NAME else []
        return f"there is no method {name!r:.{LONGEST_NAME}}" + (f"; is {like[0]} meant?" if like else "")


def _is_inside(entries: Sequence[_Call | _Refusal]) -> bool:
    """Tell whether the body is inside a hold that another has opened."""
    calls = [entry for entry in entries if isinstance(entry, _Call)]
    opens = any(call.method.name == "vm.kick_all_running_vcpus" for call in calls)
    return not opens and any(getattr(call.params, "hold", None) is not None for call in calls)


def _request_id(request: dict[str, Any]) -> bytes | None:
    """Give a request's id as JSON text, to the digit; None where it has none; null where it is none that may be."""
    if "id" not in request:
        return None
    value = request["id"]
    return b"null" if isinstance(value, _NO_IDS) or _is_too_long(value) else encode(value)


def _is_too_long(request_id: Any) -> bool:
    """Tell whether an id is longer than an answer repeats: its text stands in each."""
    if isinstance(request_id, Verbatim):
        return len(request_id.text) > LONGEST_ID
    return isinstance(request_id, str) and len(request_id) > LONGEST_ID


def _envelope_problem(request: dict[str, Any]) -> str | None:
    """Say what keeps an object from being a request; None where it is one."""
    if request.get("jsonrpc") != "2.0":
        return 'the member "jsonrpc" must be the string "2.0"'
    if not isinstance(request.get("method"), str):
        return 'the member "method" must be a string'
    if not isinstance(request.get("params", _NO_PARAMS), _PARAMS):
        return 'the member "params" must be an object or an array, or left out'
    if isinstance(request.get("id"), _NO_IDS):
        return 'the member "id" must be a string, a number or null, or left out'
    if _is_too_long(request.get("id")):
        return f'the member "id" has more than {LONGEST_ID} characters'
    return None


def _result_text(request_id: bytes, result: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","result":' + result + b',"id":' + request_id + b"}"
