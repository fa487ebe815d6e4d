"""JSON-RPC 2.0, bytes to bytes: what is asked is told apart, checked and answered by the rules, and nothing else.

It knows the table of methods and no more of the daemon: whoever makes a `Dispatcher` gives it what carries out one
call, and what makes the scope that the calls of one body share. It has no socket and it never raises: a body has its
answer, or is one that nothing is to be said to.

A body goes through three steps. Decode: the text becomes one request or a batch of them. Check: every entry becomes a
call or an error, before the first is carried out. Carry out: one after another, in the order in which they stand. The
scope is told of every entry that failed, and of those found in the check before the first call, so that what the calls
of a batch keep open can be undone.

A call that is alone in its body, and that nobody has to wait for, is answered at once: no task, no coroutine, and none
of what interrupts calls that wait.
"""

import asyncio
import difflib
import errno
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from vmmd.api.codes import INTERNAL_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, PARSE_ERROR
from vmmd.api.methods import Method
from vmmd.api.types import Params
from vmmd.rpc.caller import Caller, gone
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

ExecuteAtOnce = Callable[[Method, Params, ScopeT], bytes | None]
"""Does the same here and now, and leaves nothing open; None, with nothing done, where the call would have to wait."""

Answer = bytes | None
"""The text of the answer to a body, or None where nothing is to be said: to notifications alone."""


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


Dispatch = Callable[[bytes, Caller], Answer | Awaitable[Answer]]
"""Answers one body, at once or when it is done."""


async def finished(answering: Answer | Awaitable[Answer]) -> Answer:
    """Give an answer once there is one."""
    return answering if answering is None or isinstance(answering, bytes) else await answering


Observe = Callable[[Sequence[CallDone]], None]
"""Takes note of the calls of a body once all of them are over: then nothing that it costs is in a hold's pause."""


class _Call(NamedTuple):
    """A request that can be carried out. `request_id` is its id as JSON text, None for a notification."""

    request_id: bytes | None
    method: Method
    params: Params


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
        at_once: Carries out one call, if it need not wait.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        execute: Execute[ScopeT],
        scope: Callable[[int, Caller], ScopeT],
        limits: DispatchLimits,
        observe: Observe = lambda _calls: None,
        at_once: ExecuteAtOnce[ScopeT] = lambda _method, _params, _scope: None,
    ) -> None:
        self._methods = methods
        self._execute = execute
        self._at_once = at_once
        self._scope = scope
        self._limits = limits
        self._observe = observe
        self._closed: CallError | None = None

    def close(self, error: CallError) -> None:
        """Answer every call from now on with this error."""
        self._closed = error

    def begin(self, body: bytes, caller: Caller) -> Answer | Awaitable[Answer]:
        """Answer one body at once, or give what will have its answer.

        Args:
            body: The text of a request or a batch.
            caller: Who waits for the answer.
        """
        if len(body) > _LARGE_BODY_BYTES:
            return self._dispatch_large(body, caller)
        try:
            value = self._decode(body)
        except JsonError as error:
            return self._refuse(CallError(PARSE_ERROR, str(error)))
        if isinstance(value, list):
            return self._answer_batch(value, caller, is_large=False)
        entry = self._check(value)
        if isinstance(entry, _Call) and entry.params.deadline_ms is None and not entry.method.may_be_large:
            return self._answer_at_once(entry, caller)
        return self._answer_one(entry, caller)

    async def _dispatch_large(self, body: bytes, caller: Caller) -> Answer:
        """Answer a body that a thread is to decode and to check."""
        try:
            value = await asyncio.to_thread(self._decode, body)
        except JsonError as error:
            return self._refuse(CallError(PARSE_ERROR, str(error)))
        if isinstance(value, list):
            return await self._answer_batch(value, caller, is_large=True)
        return await self._answer_one(await asyncio.to_thread(self._check, value), caller)

    def _decode(self, body: bytes) -> Any:
        return decode(body, max_depth=self._limits.json_depth)

    def _refuse(self, error: CallError) -> bytes:
        """Answer a body of which no entry can be told from another."""
        self._observe([CallDone(None, None, 0, error)])
        return error.text(b"null")

    def _answer_at_once(self, call: _Call, caller: Caller) -> Answer | Awaitable[Answer]:
        """Answer a call that is alone in its body and need not wait; else give what will have its answer."""
        start = time.perf_counter_ns()
        scope = self._scope(self._limits.reply_bytes, caller)
        result: bytes | Exception | None
        try:
            caller.check_may_begin(call.method)
            result = self._at_once(call.method, call.params, scope)
        except Exception as error:
            result = error
        if result is None:
            return self._answer_one(call, caller)
        done: list[CallDone] = []
        answer = self._settle(call, scope, result, start, done)
        self._observe(done)
        return answer

    async def _answer_one(self, entry: _Call | _Refusal, caller: Caller) -> Answer:
        answers = await self._answer_all([entry], caller, asyncio.get_running_loop().time())
        return answers[0] if answers else None

    async def _answer_batch(self, values: list[Any], caller: Caller, *, is_large: bool) -> Answer:
        if not values:
            return self._refuse(CallError(INVALID_REQUEST, "a batch has at least one request"))
        if len(values) > self._limits.batch_calls:
            message = (
                f"a batch of {len(values)} requests is longer than limits.batch_calls = {self._limits.batch_calls}"
            )
            return self._refuse(CallError(INVALID_REQUEST, message))
        began_s = asyncio.get_running_loop().time()
        entries = await asyncio.to_thread(self._check_all, values) if is_large else self._check_all(values)
        answers = await self._answer_all(entries, caller, began_s)
        return b"[" + b",".join(answers) + b"]" if answers else None

    async def _answer_all(self, entries: Sequence[_Call | _Refusal], caller: Caller, began_s: float) -> list[bytes]:
        """Carry checked entries out in their order; `began_s` is when their deadlines count from."""
        if caller.connection is not None:
            caller.expect(entry.request_id for entry in entries if isinstance(entry, _Call))
        room = sum(self._most_bytes(entry) for entry in entries)
        if room:
            await caller.take_room(min(room, self._limits.reply_bytes), inside=_is_inside(entries))
            if caller.is_gone and not _changes(entries):
                # Nobody would read it: what waited for room would be made in vain, as much as there was asked for.
                calls = [entry for entry in entries if isinstance(entry, _Call)]
                self._observe([CallDone(call.method, vars(call.params).get("vm"), 0, gone()) for call in calls])
                return []
        scope = self._scope(self._limits.reply_bytes, caller)
        for entry in entries:
            if isinstance(entry, _Refusal):
                scope.refused(entry.error)
        answers = []
        done: list[CallDone] = []
        try:
            for entry in entries:
                answer = await self._answer(entry, scope, caller, began_s, done)
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
        self, entry: _Call | _Refusal, scope: ScopeT, caller: Caller, began_s: float, done: list[CallDone]
    ) -> Answer:
        """Carry one entry out, put down how it went, and give the text of its answer."""
        if isinstance(entry, _Refusal):
            done.append(CallDone(entry.method, None, 0, entry.error))
            return None if entry.request_id is None else entry.error.text(entry.request_id)
        request_id, method, params = entry
        deadline_s = None if params.deadline_ms is None else began_s + params.deadline_ms / 1000
        start = time.perf_counter_ns()
        result: bytes | Exception
        try:
            result = await caller.wait_for(request_id, method, self._execute(method, params, scope), deadline_s)
        except Exception as error:
            result = error
        return self._settle(entry, scope, result, start, done)

    def _settle(
        self, call: _Call, scope: ScopeT, result: bytes | Exception, start_ns: int, done: list[CallDone]
    ) -> Answer:
        """Put down how a call went, tell the scope where it failed, and give the text of its answer."""
        request_id, method, params = call
        duration_ns = time.perf_counter_ns() - start_ns
        vm: str | None = vars(params).get("vm")
        cause: Exception | None = None
        if isinstance(result, bytes):
            if request_id is None or len(result) <= max(scope.reply_left, _SMALL_RESULT_BYTES):
                done.append(CallDone(method, vm, duration_ns, None))
                return None if request_id is None else b'{"jsonrpc":"2.0","result":%b,"id":%b}' % (result, request_id)
            failure = self._too_long(result)
        elif isinstance(result, CallError):
            failure = result
        else:
            # What went wrong inside is for the log alone: an exception's text may hold what the caller must not see.
            cause = result
            failure = CallError(INTERNAL_ERROR, "an error inside the daemon; its log has the details")
        done.append(CallDone(method, vm, duration_ns, failure, cause))
        scope.failed(failure)
        return None if request_id is None else failure.text(request_id)

    def _too_long(self, result: bytes) -> CallError:
        return CallError(
            errno.E2BIG,
            f"a result of {len(result)} bytes would make the reply longer than limits.reply_bytes = "
            f"{self._limits.reply_bytes}; ask for less at a time",
            {"errno": "E2BIG"},
        )

    def _check_all(self, values: Sequence[Any]) -> list[_Call | _Refusal]:
        return [self._check(value) for value in values]

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
        if self._closed is not None:
            return _Refusal(request_id, self._closed, method)
        if method is None:
            inside = named_hold(value.get("params"))
            error = CallError(METHOD_NOT_FOUND, self._no_method(value["method"]), inside=inside)
            return _Refusal(request_id, error)
        try:
            return _Call(request_id, method, check_params(method, value.get("params")))
        except CallError as refused:
            return _Refusal(request_id, refused, method)

    def _no_method(self, name: str) -> str:
        like = difflib.get_close_matches(name, self._methods, n=1) if len(name) <= LONGEST_NAME else []
        return f"there is no method {name!r:.{LONGEST_NAME}}" + (f"; is {like[0]} meant?" if like else "")


def _is_inside(entries: Sequence[_Call | _Refusal]) -> bool:
    """Tell whether the body is inside a hold that another has opened."""
    calls = [entry for entry in entries if isinstance(entry, _Call)]
    opens = any(call.method.name == "vm.kick_all_running_vcpus" for call in calls)
    return not opens and any(getattr(call.params, "hold", None) is not None for call in calls)


def _changes(entries: Sequence[_Call | _Refusal]) -> bool:
    """Tell whether the body changes anything, or would fail somebody's hold."""
    return any(isinstance(entry, _Refusal) or entry.method.changes for entry in entries)


def _request_id(request: dict[str, Any]) -> bytes | None:
    """Give a request's id as JSON text, to the digit; None where it has none; null where it is none that may be."""
    value = request.get("id")
    if type(value) is int:
        return b"%d" % value
    if value is None and "id" not in request:
        return None
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
    return _id_problem(request.get("id"))


def _id_problem(request_id: Any) -> str | None:
    if type(request_id) is int:
        return None
    if isinstance(request_id, _NO_IDS):
        return 'the member "id" must be a string, a number or null, or left out'
    return f'the member "id" has more than {LONGEST_ID} characters' if _is_too_long(request_id) else None
