"""What tests of WebSockets speak: a client on a real connection to a real core."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from aiohttp import ClientWebSocketResponse, WSMsgType
from aiohttp.test_utils import TestClient, TestServer

from tests.rpc.wire import Wire, open_traffic, request
from vmmd.rpc.server import TcpGuard, make_app
from vmmd.rpc.websocket import WebSocketLimits

LIMITS = WebSocketLimits(body_bytes=100_000, calls_in_flight=8, websocket_silence_ms=30_000)


class Socket:
    """One WebSocket: what was asked is matched with its answer by the id; notifications are kept."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.socket = socket
        self.answers: dict[Any, Any] = {}
        self.notifications: list[dict[str, Any]] = []
        self._ids = 0

    async def ask(self, name: str, /, **params: Any) -> int:
        """Send a call; give its id."""
        self._ids += 1
        await self.socket.send_str(json.dumps(request(name, **params) | {"id": self._ids}))
        return self._ids

    async def tell(self, name: str, /, **params: Any) -> None:
        """Send a notification."""
        await self.socket.send_str(json.dumps({"jsonrpc": "2.0", "method": name, "params": params}))

    async def answer(self, call_id: Any) -> Any:
        """Wait for the answer to a call."""
        while call_id not in self.answers:
            await self.read()
        return self.answers.pop(call_id)

    async def call(self, name: str, /, **params: Any) -> Any:
        return Wire.result(await self.answer(await self.ask(name, **params)))

    async def notified(self, method: str) -> dict[str, Any]:
        """Wait for the next notification of that name; give its parameters."""
        while True:
            for index, notification in enumerate(self.notifications):
                if notification["method"] == method:
                    return dict(self.notifications.pop(index)["params"])
            await self.read()

    async def read(self) -> None:
        message = await self.socket.receive(timeout=20)
        assert message.type is WSMsgType.TEXT, message
        value = json.loads(message.data)
        if isinstance(value, list) or "id" in value:
            self.answers[value["id"] if isinstance(value, dict) else "batch"] = value
        else:
            self.notifications.append(value)

    async def closed(self) -> tuple[int | None, str]:
        """Wait until the daemon closes; give the code and the reason."""
        while True:
            message = await self.socket.receive(timeout=20)
            if message.type is WSMsgType.CLOSE:
                return message.data, message.extra
            assert message.type is WSMsgType.TEXT, message


def client_transport(socket: ClientWebSocketResponse) -> asyncio.Transport:
    """Give the client's end: paused, it reads nothing, where aiohttp would read on by itself."""
    connection = socket._response.connection
    assert connection is not None
    assert connection.transport is not None
    return connection.transport


@asynccontextmanager
async def serving(wire: Wire, guard: TcpGuard | None = None, **limits: int) -> AsyncIterator[TestClient]:
    """Serve the core of a `Wire`."""
    app = make_app(
        wire.dispatcher.begin,
        limits=replace(LIMITS, **limits),
        body_wait_ms=10_000,
        guard=guard,
        traffic=open_traffic(),
    )
    async with TestClient(TestServer(app, handler_cancellation=True)) as client:
        yield client


@asynccontextmanager
async def connected(client: TestClient, **options: Any) -> AsyncIterator[Socket]:
    """Give a connection."""
    async with client.ws_connect("/ws", **options) as socket:
        yield Socket(socket)
