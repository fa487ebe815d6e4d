"""Calls by HTTP: POST /rpc over a UNIX socket or TCP, with connections that are kept and used again.

A connection carries one call at a time. A call that is cancelled or timed out drops its connection, so that no later
call can find the answer on it.
"""

import aiohttp

from .address import Address
from .errors import CallTimeout, ClientClosed, ConnectError, ConnectTimeout, Disconnected, HttpRefused, TransportError
from .protocol import Question
from .transport import CONNECT_TIMEOUT_S, MAX_CONNECTIONS
from .websocket import SocketLink, open_link, open_session


class HttpTransport:
    """POST /rpc to one address."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Take the daemon's address; nothing is opened before the first exchange.

        Args:
            url: "unix:///path/to/socket", or "http://host:port".
            token: the bearer token that TCP wants.

        Raises:
            ConnectError: the URL has another form.
        """
        self._address = Address.parse(url)
        self._token = token
        self._http: aiohttp.ClientSession | None = None
        self._closed = False

    async def exchange(self, question: Question, timeout_s: float) -> bytes:
        """Send one POST and give the answer's body; see `Transport.exchange`."""
        address = self._address
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session().post(
                address.rpc_url, data=question.body, headers=headers, timeout=timeout
            ) as response:
                answer = await response.read()
        except aiohttp.ConnectionTimeoutError:
            raise ConnectTimeout(address.no_connection(CONNECT_TIMEOUT_S)) from None
        except TimeoutError:
            raise CallTimeout(address.no_answer(timeout_s)) from None
        except aiohttp.ClientConnectorError as error:
            raise ConnectError(address.no_listener(error.os_error.strerror or str(error))) from None
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
            raise Disconnected(address.hung_up(str(error))) from None
        except aiohttp.ClientError as error:
            raise TransportError(f"{address.url} could not be asked: {error}") from None
        if response.status != 200:
            raise HttpRefused(address.refused(response.status, answer), response.status)
        return answer

    async def link(self) -> SocketLink:
        """Open a WebSocket beside the POSTs; see `Transport.link`."""
        return await open_link(self._session(), self._address)

    async def aclose(self) -> None:
        """Close every connection; idempotent."""
        self._closed = True
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise ClientClosed(self._address.closed())
        if self._http is None:
            self._http = open_session(self._address, self._token, MAX_CONNECTIONS)
        return self._http
