"""What a call answers with instead of a result."""

from typing import Any

from vmmd.rpc.jsontext import encode


class CallError(Exception):
    """What a call answers with instead of a result: JSON-RPC's error object.

    Attributes:
        code: An errno's number, or one of JSON-RPC's codes.
        message: One sentence.
        data: The error's data in JSON's types; None where there is none.
        inside: The VM and the hold that a call names which was refused before it was carried out; None where it names
            none, or could not have been inside one.
    """

    def __init__(self, code: int, message: str, data: Any = None, *, inside: tuple[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.inside = inside

    def text(self, request_id: bytes) -> bytes:
        """Give the JSON text of the answer to the request of that id."""
        members: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data is not None:
            members["data"] = self.data
        return b'{"jsonrpc":"2.0","error":' + encode(members) + b',"id":' + request_id + b"}"
