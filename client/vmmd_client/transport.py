"""How the bytes of a question reach a daemon and those of its answer come back.

A `Transport` carries one body there and one back; it knows nothing of JSON-RPC. `HttpTransport` does so over a UNIX
socket or TCP, `MemoryTransport` over a coroutine of the caller's, for tests without a daemon. Whatever goes wrong is
one of `TransportError`'s classes. A call that is cancelled or timed out drops its connection, so its late answer can
reach nobody.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiohttp

from .errors import CallTimeout, ConnectError, ConnectTimeout, Disconnected, HttpRefused, TransportError

CONNECT_TIMEOUT_S = 5.0
"""How long making a connection may take, in seconds."""

MAX_CONNECTIONS = 64
"""How many calls of one client may be under way at once; more wait for a connection."""


class Transport(Protocol):
    """Carries one body to the daemon and its answer back."""

    async def exchange(self, body: bytes, timeout_s: float) -> bytes:
        """Send `body` and give the answer's body.

        Args:
            body: a JSON-RPC request or batch.
            timeout_s: how long it may take in all, in seconds.

        Raises:
            TransportError: the answer did not come.
        """
        ...

    async def aclose(self) -> None:
        """Give up every connection; idempotent."""
        ...


class MemoryTransport:
    """A transport without a network: the answers come from a coroutine function."""

    def __init__(self, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._answer = answer
        self._closed = False

    async def exchange(self, body: bytes, timeout_s: float) -> bytes:
        """Ask the coroutine function; its time is its own, and whatever it raises comes through."""
        if self._closed:
            raise Disconnected("this client is closed; connect anew")
        return await self._answer(body)

    async def aclose(self) -> None:
        """Refuse every further exchange."""
        self._closed = True


class HttpTransport:
    """POST /rpc over a UNIX socket or TCP, with connections that are kept and used again."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Take the daemon's address; nothing is opened before the first exchange.

        Args:
            url: "unix:///path/to/socket", or "http://host:port".
            token: the bearer token that TCP wants.

        Raises:
            ConnectError: the URL has another form.
        """
        self._url = url
        self._token = token
        self._socket_path, self._endpoint = _endpoint(url)
        self._http: aiohttp.ClientSession | None = None
        self._closed = False

    async def exchange(self, body: bytes, timeout_s: float) -> bytes:
        """Send one POST and give the answer's body; see `Transport.exchange`."""
        if self._closed:
            raise Disconnected(f"this client of {self._url} is closed; connect anew")
        if self._http is None:
            self._http = self._open()
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._http.post(
                self._endpoint, data=body, headers={"Content-Type": "application/json"}, timeout=timeout
            ) as response:
                answer = await response.read()
        except aiohttp.ConnectionTimeoutError:
            raise ConnectTimeout(
                f"{self._url} took no connection within {CONNECT_TIMEOUT_S:g} s; is the daemon stopped?"
            ) from None
        except TimeoutError:
            raise CallTimeout(
                f"{self._url} did not answer within {timeout_s:g} s; whether the call was executed is not known"
            ) from None
        except aiohttp.ClientConnectorError as error:
            raise ConnectError(
                f"nobody listens on {self._url} ({error.os_error.strerror}); start one with: vmmd serve"
            ) from None
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
            raise Disconnected(
                f"{self._url} ended the connection before it had answered ({error}); "
                "whether the call was executed is not known"
            ) from None
        except aiohttp.ClientError as error:
            raise TransportError(f"{self._url} could not be asked: {error}") from None
        if response.status != 200:
            reason = answer[:200].decode("utf-8", errors="replace").strip()
            raise HttpRefused(f"{self._url} refused the request with HTTP {response.status}: {reason}", response.status)
        return answer

    async def aclose(self) -> None:
        """Close every connection; idempotent."""
        self._closed = True
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    def _open(self) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        if self._socket_path is not None:
            connector = aiohttp.UnixConnector(self._socket_path, limit=MAX_CONNECTIONS)
        else:
            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token is not None else {}
        return aiohttp.ClientSession(connector=connector, headers=headers)


def _endpoint(url: str) -> tuple[str | None, str]:
    """Give the socket's path (None for TCP) and the URL that the POST names."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        return unquote(parts.path), "http://localhost/rpc"
    if parts.scheme in {"http", "https"} and parts.netloc:
        return None, f"{parts.scheme}://{parts.netloc}/rpc"
    raise ConnectError(f"{url!r} is no address of a daemon: give unix:///path/to/socket or http://host:port")
