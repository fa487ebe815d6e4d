"""No answer, or none to what was asked: the branches of `TransportError` and `ProtocolError`."""

from .root import VmmdError


class TransportError(VmmdError):
    """The daemon was not reached, or its answer did not come."""


class ConnectError(TransportError):
    """No connection could be made: nothing was sent."""


class ConnectTimeout(TransportError):
    """No connection was made within its time: nothing was sent."""


class Disconnected(TransportError):
    """The connection ended before the answer was whole. Whether the call was executed is not known.

    Attributes:
        close_code: the code with which the daemon closed a WebSocket, as 1009 for a message that is too large; or None.
    """

    def __init__(self, message: str, close_code: int | None = None) -> None:
        super().__init__(message)
        self.close_code = close_code


class ClientClosed(Disconnected):
    """This client was closed: connect anew. A call that was under way then may have been executed."""


class CallTimeout(TransportError):
    """No answer came within its time, and the connection was dropped. Whether the call was executed is not known."""


class HttpRefused(TransportError):
    """The HTTP server refused the request before it became a call.

    Attributes:
        status: the HTTP status, 401 for a missing token.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ForeignEventLoop(TransportError):
    """The client's connections belong to another event loop, that of an earlier `asyncio.run`: nothing was sent."""


class ProtocolError(VmmdError):
    """What came back is no answer to what was asked: another protocol, or another version of it."""


class VersionMismatch(ProtocolError):
    """The daemon speaks another version of the KVM API: install the library and the daemon of one release.

    Attributes:
        daemon_version: what the daemon gave for KVM_GET_API_VERSION.
        library_version: what this library speaks.
    """

    def __init__(self, daemon_version: int, library_version: int) -> None:
        super().__init__(
            f"the daemon's KVM API version is {daemon_version} and this library speaks {library_version}; "
            "install vmmd of one release on both sides"
        )
        self.daemon_version = daemon_version
        self.library_version = library_version
