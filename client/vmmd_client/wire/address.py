"""Where a daemon is: the forms of its URL, read once for every transport of either twin. It opens nothing.

==============================  =====================================================
``unix:///run/vmmd.sock``       POST /rpc over a UNIX socket
``http://127.0.0.1:8471``       POST /rpc over TCP, and https:// through a proxy
``ws+unix:///run/vmmd.sock``    one WebSocket at /ws over a UNIX socket
``ws://127.0.0.1:8471``         one WebSocket at /ws over TCP, and wss:// through a proxy
==============================  =====================================================
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ..errors import ConnectError, UnusableToken

_TLS = {"http": False, "https": True, "ws": False, "wss": True}

# What stands before the last "@" of anything but a path may hold a password.
_CREDENTIALS = re.compile(r"(?s)^([\w+.-]+://)?(?!/).*@")


@dataclass(frozen=True, slots=True)
class Address:
    """A daemon's address.

    Attributes:
        url: as it was given; for messages.
        websocket: whether calls go over a WebSocket and not by POST.
        socket_path: the UNIX socket; None for TCP.
        authority: "host:port" for TCP, and for a UNIX socket the name that its requests are addressed to.
        tls: whether TCP is encrypted.
    """

    url: str
    websocket: bool
    socket_path: str | None
    authority: str
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read a URL.

        Raises:
            ConnectError: it has none of the forms.
        """
        try:
            parts = urlsplit(url)
            scheme, netloc = parts.scheme, parts.netloc
            named = parts.hostname is not None and parts.port != 0
            bare = not (parts.query or parts.fragment or "@" in netloc)
        except ValueError:
            scheme, netloc, named, bare = "", "", False, False
        if scheme in {"unix", "ws+unix"} and not netloc and parts.path.startswith("/") and bare:
            return cls(url, scheme == "ws+unix", unquote(parts.path), "localhost")
        if scheme in _TLS and named and bare and parts.path in {"", "/"}:
            return cls(url, scheme.startswith("ws"), None, netloc, _TLS[scheme])
        reason = ""
        if scheme in _TLS and named:
            reason = " (a daemon is at no path of a host, and takes a token and no user with a password)"
        raise ConnectError(
            f"{_CREDENTIALS.sub(_without_credentials, url)!r} is no address of a daemon{reason}: "
            "give unix:///path/to/socket or http://host:port, "
            "or for a WebSocket ws+unix:///path/to/socket or ws://host:port"
        )

    @property
    def rpc_url(self) -> str:
        """What a POST names."""
        return f"{'https' if self.tls else 'http'}://{self.authority}/rpc"

    @property
    def ws_url(self) -> str:
        """What the opening of a WebSocket names."""
        return f"{'wss' if self.tls else 'ws'}://{self.authority}/ws"

    # What each transport of either twin says when it fails, so that the same failure has the same words.

    def no_listener(self, reason: str) -> str:
        """Say that the connection was refused."""
        return f"nobody listens on {self.url} ({reason}); start one with: vmmd serve"

    def no_connection(self, timeout_s: float) -> str:
        """Say that no connection came about in its time."""
        return f"{self.url} took no connection within {timeout_s:g} s; is the daemon stopped?"

    def no_websocket(self, reason: str) -> str:
        """Say that the connection went before it was a WebSocket."""
        return f"{self.url} ended the connection before the WebSocket was open ({reason}); nothing was sent on it"

    def no_answer(self, timeout_s: float) -> str:
        """Say that the answer did not come in its time."""
        return f"{self.url} did not answer within {round(timeout_s, 2):g} s; whether the call was executed is not known"

    def no_message(self, timeout_s: float) -> str:
        """Say that nothing came on a connection in the time for which it was waited for."""
        return f"{self.url} sent nothing within {round(timeout_s, 2):g} s; the connection stands"

    def hung_up(self, reason: str) -> str:
        """Say that the connection went while a call was under way."""
        return (
            f"{self.url} ended the connection before it had answered ({reason}); "
            "whether the call was executed is not known"
        )

    def refused(self, status: int, body: bytes) -> str:
        """Say that HTTP answered in the daemon's place."""
        reason = body[:200].decode("utf-8", errors="replace").strip()
        doubt = "; is it a vmmd, and of this library's version?" if status == 404 else ""
        return f"{self.url} refused the request with HTTP {status}: {reason}{doubt}"

    def closed(self) -> str:
        """Say that the client is closed."""
        return f"this client of {self.url} is closed; connect anew"

    def closed_meanwhile(self) -> str:
        """Say that the client was closed under a call."""
        return f"this client of {self.url} was closed while the call was under way; whether it was executed is unknown"

    def other_loop(self) -> str:
        """Say that the client was first used in another event loop."""
        return (
            f"this client of {self.url} belongs to the event loop of its first call, and this is another one; "
            "connect inside each asyncio.run, or use vmmd_client.sync"
        )


def authorization(token: str | None) -> dict[str, str]:
    """Give the header that bears a token; none for None.

    Raises:
        UnusableToken: no header can hold it.
    """
    if token is None:
        return {}
    if not isinstance(token, str):
        raise UnusableToken(f"it is {type(token).__name__}, and a token is text")
    if not token or not token.isprintable() or token != token.strip():
        raise UnusableToken(
            "it is empty, has a control character, or a space or newline at an end; "
            "give what the daemon's token file holds, without the newline: token.strip()"
        )
    return {"Authorization": f"Bearer {token}"}


def _without_credentials(found: re.Match[str]) -> str:
    return f"{found[1] or ''}…@"
