"""Errors on the wire: when JSON-RPC's codes come, and the data that goes with an errno.

An ioctl that fails answers with `code` = the errno's number; the codes -32768..-32000 keep JSON-RPC's meanings.
"""

import errno
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field

from vmmd.api.codes import INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, PARSE_ERROR
from vmmd.api.types import Result

PROTOCOL_ERRORS: Mapping[int, str] = {
    PARSE_ERROR: "The body is no JSON by RFC 8259, or has a member twice, or is nested deeper than limits.json_depth.",
    INVALID_REQUEST: "An entry of the body is no JSON-RPC 2.0 request, or a batch is empty or too long.",
    METHOD_NOT_FOUND: "There is no method of that name.",
    INVALID_PARAMS: "A parameter is missing, unknown or out of bounds; `data` names each, and its rule.",
    INTERNAL_ERROR: "An error inside the daemon, whose log has the details.",
}
"""JSON-RPC's own codes, which any method can answer with, and when."""

# Where Linux has two names for a number, Python's table has either: these are the names that the documents use.
_NAMES: dict[int, str] = {
    **errno.errorcode,
    errno.EAGAIN: "EAGAIN",
    errno.EDEADLK: "EDEADLK",
    errno.EOPNOTSUPP: "EOPNOTSUPP",
}


def errno_name(code: int) -> str | None:
    """Give the errno's name for an error code, "EEXIST" for 17; None where the code is none of Linux's."""
    return _NAMES.get(code)


class ErrorData(Result):
    """`error.data` of an ioctl that failed. What one error has beyond this stands beside it, and is kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    errno: str = Field(description='The errno\'s name, "EEXIST".')
    ioctl: str | None = Field(default=None, description='The ioctl that failed, "KVM_SET_USER_MEMORY_REGION".')
    exit_reason: str | None = Field(default=None, description="KVM_RUN's exit reason, beside EINTR alone.")
    rolled_back: bool = Field(
        default=False, description="True where a hold had failed and its resume undid what was done inside it."
    )


class RpcError(Result):
    """JSON-RPC's error object."""

    code: int
    message: str
    data: Any = None
