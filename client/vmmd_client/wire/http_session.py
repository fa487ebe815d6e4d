"""The HTTP session behind both asynchronous transports: opened by its first use, and of that use's event loop.

It refuses what aiohttp would fail at late and in its own words: a token that no header holds, a second event loop, an
HTTP status in place of an answer.
"""

import asyncio

import aiohttp

from ..errors import ClientClosed, ForeignEventLoop, HttpRefused
from .address import Address, authorization


class HttpSession:
    """A client's HTTP session: made by the first use, in whose event loop it then lives, until it is closed."""

    def __init__(self, address: Address, token: str | None, connections: int) -> None:
        """Take the address; nothing is opened.

        Raises:
            UnusableToken: no HTTP header can hold the token.
        """
        self._address = address
        self._headers = authorization(token)
        self._connections = connections
        self._inner: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it was closed from this side."""
        return self._closed

    def opened(self) -> aiohttp.ClientSession:
        """Give the session.

        Raises:
            ClientClosed: it was closed.
            ForeignEventLoop: it was made in another event loop.
        """
        if self._closed:
            raise ClientClosed(self._address.closed())
        self._refuse_another_loop()
        if self._inner is None:
            self._inner = aiohttp.ClientSession(
                connector=self._connector(), headers=self._headers, raise_for_status=self._refuse_status
            )
            self._loop = asyncio.get_running_loop()
        return self._inner

    def end(self) -> None:
        """Refuse every further use, while what is open is being closed.

        Raises:
            ForeignEventLoop: it was made in another event loop.
        """
        self._refuse_another_loop()
        self._closed = True

    async def aclose(self) -> None:
        """Close every connection; idempotent.

        Raises:
            ForeignEventLoop: it was made in another event loop.
        """
        self.end()
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.close()

    def _connector(self) -> aiohttp.BaseConnector:
        if self._address.socket_path is not None:
            return aiohttp.UnixConnector(self._address.socket_path, limit=self._connections)
        return aiohttp.TCPConnector(limit=self._connections)

    def _refuse_another_loop(self) -> None:
        if self._inner is not None and self._loop is not asyncio.get_running_loop():
            raise ForeignEventLoop(self._address.other_loop())

    async def _refuse_status(self, response: aiohttp.ClientResponse) -> None:
        # aiohttp asks this of every answer, also of one to an upgrade, whose text it would drop.
        if response.status not in {101, 200}:
            raise HttpRefused(self._address.refused(response.status, await response.read()), response.status)
