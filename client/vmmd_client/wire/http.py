"""Calls by HTTP: POST /rpc over a UNIX socket or TCP, with connections that are kept and used again.

A connection carries one call at a time. A call that is cancelled or timed out drops its connection, so that no later
call can find the answer on it.
"""

import io

import aiohttp

from ..errors import CallTimeout, ClientClosed, ConnectError, ConnectTimeout, Disconnected, TransportError
from .address import Address
from .http_session import HttpSession
from .limits import CONNECT_TIMEOUT_S, MAX_CONNECTIONS
from .protocol import Question
from .websocket import SocketLink, open_link

_MOST_AT_ONCE_BYTES = 1 << 20


class HttpTransport:
    """POST /rpc to one address."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Take the daemon's address; nothing is opened before the first exchange.

        Args:
            url: "unix:///path/to/socket", or "http://host:port".
            token: the bearer token that TCP wants.

        Raises:
            ConnectError: the URL has another form.
            UnusableToken: no HTTP header can hold the token.
        """
        self._address = Address.parse(url)
        self._http = HttpSession(self._address, token, MAX_CONNECTIONS)

    def __repr__(self) -> str:
        return f"HttpTransport({self._address.url!r})"

    async def exchange(self, question: Question, timeout_s: float) -> bytes:
        """Send one POST and give the answer's body; see `Transport.exchange`."""
        address = self._address
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._http.opened().post(
                address.rpc_url, data=_data(question.body), headers=headers, timeout=timeout
            ) as response:
                return await response.read()
        except aiohttp.ConnectionTimeoutError:
            raise ConnectTimeout(address.no_connection(CONNECT_TIMEOUT_S)) from None
        except TimeoutError:
            raise CallTimeout(address.no_answer(timeout_s)) from None
        except aiohttp.ClientConnectorError as error:
            raise ConnectError(address.no_listener(error.os_error.strerror or str(error))) from None
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
            if self._http.closed:
                raise ClientClosed(address.closed_meanwhile()) from None
            raise Disconnected(address.hung_up(str(error))) from None
        except aiohttp.ClientError as error:
            if self._http.closed:
                raise ClientClosed(address.closed_meanwhile()) from None
            raise TransportError(f"{address.url} could not be asked: {error}") from None

    async def link(self) -> SocketLink:
        """Open a WebSocket beside the POSTs; see `Transport.link`."""
        return await open_link(self._http.opened(), self._address)

    async def aclose(self) -> None:
        """Close every connection; idempotent. Calls under way are ClientClosed."""
        await self._http.aclose()


def _data(body: bytes) -> bytes | io.BytesIO:
    """Give a body as aiohttp wants it: a large one as a file, or it warns that sending it keeps the event loop."""
    return io.BytesIO(body) if len(body) > _MOST_AT_ONCE_BYTES else body
