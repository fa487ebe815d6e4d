"""JSON-RPC 2.0 as a client speaks it: calls to bytes, bytes to outcomes. No socket, no clock, no event loop.

A `Call` is one method with its parameters and the knowledge of what its result is. `Dialogue` numbers the calls and
gives a `Question` for one call or for a batch: the bytes to send, and the reading of the bytes that come back. An
answer is matched by id, and whatever does not fit what was asked is a ProtocolError: nothing is guessed.

A call that changes something is given a `request_id` where its method takes one. The daemon gives a repeat of it the
first success again and does nothing twice, so a question whose answer was lost may be sent again.
"""

import itertools
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from vmmd.api.methods import METHODS
from vmmd.api.types import U32_MAX

from ..errors import ProtocolError, RpcError, UnsendableParam, rpc_error

KVM_API_VERSION = 12
"""What KVM_GET_API_VERSION has given since 2007; a VMM refuses anything else."""

_ENDED_WITH_THEIR_CONNECTION = frozenset({"vm.advance"})
"""What a daemon ends, part done, when its connection goes: sent again, it would do more than was asked."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """One call: a value, not yet sent.

    Attributes:
        method: the method's name on the wire.
        params: the parameters by name, in JSON's types.
        unwrap: makes the caller's value of the result.
        checked: whether the result is checked against the method's model first; else it stays JSON as it came.
        may_be_named: whether it may be given a `request_id`; a change that has none is never sent twice.
    """

    method: str
    params: Mapping[str, Any]
    unwrap: Callable[[Any], T_co]
    checked: bool = True
    may_be_named: bool = True

    @property
    def allowed_wait_s(self) -> float:
        """How long the daemon may rightly take by the call's `deadline_ms`, `wait_ms` or `timeout_ms`, in seconds."""
        deadline_ms = self.params.get("deadline_ms")
        if isinstance(deadline_ms, int):
            return min(deadline_ms, U32_MAX) / 1000
        waits = (self.params.get(name) for name in ("wait_ms", "timeout_ms"))
        # What is no number, or too large a one, is for the daemon to refuse.
        return sum(min(wait, U32_MAX) for wait in waits if isinstance(wait, int)) / 1000

    @property
    def is_repeatable(self) -> bool:
        """Whether sending it twice does no more than sending it once: a read, or a change with a `request_id`."""
        if self.method in _ENDED_WITH_THEIR_CONNECTION:
            return False
        method = METHODS.get(self.method)
        return "request_id" in self.params or (method is not None and not method.changes)

    def with_request_id(self, request_id: str) -> "Call[T_co]":
        """Give the call with a name of its own, where its method takes one and it has none.

        A call that was made by `calls.raw` stays as its maker wrote it.
        """
        if not self.checked or not self.may_be_named or self.is_repeatable or "request_id" in self.params:
            return self
        if "request_id" not in METHODS[self.method].params.model_fields:
            return self
        return replace(self, params={**self.params, "request_id": request_id})

    def value(self, result: Any) -> T_co:
        """Make the caller's value of a result.

        Raises:
            ProtocolError: the result is not what the method gives.
        """
        if not self.checked:
            return self.unwrap(result)
        try:
            return self.unwrap(METHODS[self.method].result_adapter.validate_python(result))
        except ValidationError as error:
            raise ProtocolError(
                f"{self.method} answered with a result of another shape (is the daemon of another version?): "
                f"{error.errors(include_url=False)[:3]}"
            ) from None


@dataclass(frozen=True, slots=True)
class Success:
    """A call that was answered with a result, as JSON."""

    result: Any


Outcome = Success | RpcError


@dataclass(frozen=True, slots=True)
class Question:
    """What goes over the wire for one call, or for one batch.

    Attributes:
        body: the bytes to send.
        ids: the calls' ids, in their order.
        is_batch: whether the body is an array.
        is_repeatable: whether it may be sent again when its answer was lost.
        may_cancel: whether the daemon may be told that nobody waits any more. A batch is carried through, and so is a
            resume: either would leave a hold open.
    """

    body: bytes
    ids: tuple[int, ...]
    is_batch: bool
    is_repeatable: bool
    may_cancel: bool = False

    @property
    def cancellation(self) -> bytes:
        """What tells the daemon that nobody waits for the answer any more: a notification, which has no answer."""
        return _encode({"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": self.ids[0]}})

    def outcomes(self, body: bytes) -> list[Outcome]:
        """Read the answer: an outcome for each call, in the calls' order.

        Raises:
            ProtocolError: the bytes are no answer to this question.
            RpcError: the daemon refused the batch, or the body, as a whole.
        """
        try:
            reply = json.loads(body)
        except ValueError as error:
            raise ProtocolError(f"the answer is no JSON ({error}); it begins with {body[:60]!r}") from None
        if isinstance(reply, dict) and (reply.get("id") is None or self.is_batch):
            outcome = _outcome(reply)
            if isinstance(outcome, RpcError):
                raise outcome
        if isinstance(reply, list) != self.is_batch:
            raise ProtocolError(f"the answer to {'a batch' if self.is_batch else 'one call'} is {type(reply).__name__}")
        entries = reply if self.is_batch else [reply]
        found: dict[int, Outcome] = {}
        for entry in entries:
            outcome = _outcome(entry)
            call_id = entry.get("id")
            if call_id not in self.ids or call_id in found:
                raise ProtocolError(f"the answer has an entry with id {call_id!r}; asked were {list(self.ids)}")
            found[call_id] = outcome
        if len(found) != len(self.ids):
            missing = [call_id for call_id in self.ids if call_id not in found]
            raise ProtocolError(f"the answer has no entry for the calls with the ids {missing}")
        return [found[call_id] for call_id in self.ids]


class Dialogue:
    """Numbers the calls of one client: no two of them share an id, so no answer can be taken for another's."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)

    def ask(self, call: Call[Any]) -> Question:
        """Give the question of one call.

        Raises:
            UnsendableParam: JSON has no text for a parameter.
        """
        call_id, call = next(self._ids), call.with_request_id(secrets.token_urlsafe(12))
        return Question(
            _request(call, call_id),
            (call_id,),
            is_batch=False,
            is_repeatable=call.is_repeatable,
            may_cancel=call.method != "vm.resume_all_kicked_vcpus",
        )

    def ask_batch(self, calls: Sequence[Call[Any]]) -> Question:
        """Give the question of a batch of at least one call; JSON-RPC has no empty batch.

        Raises:
            UnsendableParam: JSON has no text for a parameter of one of the calls.
        """
        if not calls:
            raise ValueError("a batch has at least one call")
        named = [call.with_request_id(secrets.token_urlsafe(12)) for call in calls]
        ids = tuple(next(self._ids) for _ in named)
        body = b",".join(_request(call, call_id) for call, call_id in zip(named, ids, strict=True))
        is_repeatable = all(call.is_repeatable for call in named)
        return Question(b"[" + body + b"]", ids, is_batch=True, is_repeatable=is_repeatable)


def notification(message: bytes) -> dict[str, Any] | None:
    """Read a notification; None where the message is an answer, or none of JSON-RPC's."""
    try:
        read = json.loads(message)
    except ValueError:
        return None
    return read if isinstance(read, dict) and isinstance(read.get("method"), str) else None


def _request(call: Call[Any], call_id: int) -> bytes:
    request = {"jsonrpc": "2.0", "id": call_id, "method": call.method, "params": dict(call.params)}
    try:
        return _encode(request)
    except (TypeError, ValueError, RecursionError):
        for name, value in call.params.items():
            try:
                _encode(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise UnsendableParam(call.method, name, f"{error}; bytes go as base64 text") from None
        raise


def _encode(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _outcome(entry: object) -> Outcome:
    """Read one entry of an answer."""
    if not isinstance(entry, dict) or entry.get("jsonrpc") != "2.0" or ("result" in entry) == ("error" in entry):
        raise ProtocolError(f"the answer is not of JSON-RPC 2.0: {str(entry)[:100]}")
    if "result" in entry:
        return Success(entry["result"])
    error = entry["error"]
    if not isinstance(error, dict) or type(error.get("code")) is not int or not isinstance(error.get("message"), str):
        raise ProtocolError(f"the answer's error object is not of JSON-RPC 2.0: {str(error)[:100]}")
    return rpc_error(error["code"], error["message"], error.get("data"))
