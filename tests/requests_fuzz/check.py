"""What an answer has to be, given what was sent: JSON-RPC's, by its rules, and by the method table's word."""

from __future__ import annotations

import errno
import json
from typing import Any

from tests.api.schemas import validator
from tests.rpc.edge_cases import shape
from vmmd.api.codes import INTERNAL_ERROR, INVALID_REQUEST, PARSE_ERROR
from vmmd.api.errors import PROTOCOL_ERRORS
from vmmd.api.methods import METHODS
from vmmd.api.openrpc import document
from vmmd.rpc.dispatch import LONGEST_ID

_RESULTS = {method["name"]: validator(method["result"]["schema"]) for method in document()["methods"]}

# A resume answers with what its hold has failed with, whatever that was.
_ANY_ERROR = "vm.resume_all_kicked_vcpus"

WHOLE_BODY = (PARSE_ERROR, INVALID_REQUEST)


class Wrong(Exception):  # noqa: N818  (it is a verdict)
    """An answer that no request can have. The message says why."""


def entries(answer: Any) -> list[Any]:
    """Give the answers in an answer."""
    if answer is None:
        return []
    return answer if isinstance(answer, list) else [answer]


def check(value: Any, answer: Any, *, is_known: bool) -> None:
    """Check an answer.

    Args:
        value: What the body stands for.
        answer: The decoded answer; None where nothing was said.
        is_known: Whether `value` is known; where it is not, only the answer's own form can be wrong.

    Raises:
        Wrong: It is no answer to that.
    """
    try:
        shape(answer)
    except (AssertionError, KeyError, TypeError) as error:
        raise Wrong(f"it is no JSON-RPC answer: {error!r}") from None
    for entry in entries(answer):
        _check_code(entry)
    if not is_known or _is_refused_whole(answer):
        return
    sent = value if isinstance(value, list) else [value]
    if isinstance(value, list) != isinstance(answer, list) and answer is not None:
        raise Wrong("a batch is answered with a list, and a request with an object")
    awaited = [request for request in sent if not _is_notification(request)]
    if len(awaited) != len(entries(answer)):
        raise Wrong(f"{len(awaited)} answers were awaited, and {len(entries(answer))} came")
    for request, entry in zip(awaited, entries(answer), strict=True):
        _check_entry(request, entry)


def _check_code(entry: Any) -> None:
    if "error" not in entry:
        return
    code, data = entry["error"]["code"], entry["error"].get("data")
    if code == INTERNAL_ERROR:
        raise Wrong("an error inside the daemon")
    if code not in PROTOCOL_ERRORS and getattr(errno, str((data or {}).get("errno")), None) != code:
        raise Wrong(f"the code {code} is neither JSON-RPC's nor that of the errno in its data")


def _is_refused_whole(answer: Any) -> bool:
    """Tell whether the body was none at all: no JSON, or a batch that is empty or too long."""
    return isinstance(answer, dict) and answer["id"] is None and answer.get("error", {}).get("code") in WHOLE_BODY


def _is_notification(request: Any) -> bool:
    return (
        isinstance(request, dict)
        and "id" not in request
        and request.get("jsonrpc") == "2.0"
        and isinstance(request.get("method"), str)
        and isinstance(request.get("params", {}), dict | list)
    )


def _check_entry(request: Any, entry: Any) -> None:
    """Check one answer by the request that it answers."""
    request_id = request.get("id") if isinstance(request, dict) else None
    legal = request_id is None or (isinstance(request_id, str | int | float) and not isinstance(request_id, bool))
    legal = legal and not (isinstance(request_id, str) and len(request_id) > LONGEST_ID)
    if entry["id"] != (request_id if legal else None):
        raise Wrong(f"the id {request_id!r:.80} came back as {entry['id']!r:.80}")
    method = request.get("method") if isinstance(request, dict) else None
    if not isinstance(method, str) or method not in METHODS:
        if "error" not in entry:
            raise Wrong("what names no method has a result")
        return
    if "result" in entry:
        problem = next(_RESULTS[method].iter_errors(entry["result"]), None)
        if problem is not None:
            raise Wrong(f"the result does not fit its schema: {problem.message:.200}")
    elif entry["error"]["code"] > 0 and method != _ANY_ERROR:
        name = entry["error"]["data"]["errno"]
        if name not in METHODS[method].all_errors:
            raise Wrong(f"{method} answers with {name}, which the table does not have: {entry['error']['message']}")


def text_of(answer: Any) -> str:
    """Give an answer for a report, not too long."""
    return json.dumps(answer)[:2000]
