"""A web server for tests of transports: /rpc and /ws on a UNIX socket and on TCP; a test chooses what it answers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Answer = Callable[[Any], Awaitable[Any]]


class Server:
    """What a test says is answered.

    Attributes:
        handler: answers a POST.
        answer: gives the result for a request, as `handler` sends it unless a test sets another, and as /ws does.
        error: what every request is answered with instead.
        websocket_status: what an upgrade is answered with.
        asked: every HTTP request, upgrades included.
        connections: the connections that they came on.
        notified: the notifications that came by WebSocket.
        sockets: the WebSockets that are open.
    """

    def __init__(self, socket_path: Path) -> None:
        self.handler: Handler = self.post_answer
        self.answer: Answer = version
        self.unix_url = f"unix://{socket_path}"
        self.error: dict[str, Any] | None = None
        self.websocket_status = 101
        self.tcp_url = ""
        self.asked: list[web.Request] = []
        self.connections: set[object] = set()
        self.notified: list[Any] = []
        self.sockets: list[web.WebSocketResponse] = []

    async def post_answer(self, request: web.Request) -> web.Response:
        asked = json.loads(await request.read())
        return web.json_response(await self.answered(asked))

    async def answered(self, asked: Any) -> Any:
        if isinstance(asked, list):
            return [await self.answered(entry) for entry in asked]
        head = {"jsonrpc": "2.0", "id": asked["id"]}
        return {**head, "error": self.error} if self.error else {**head, "result": await self.answer(asked)}

    async def post(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.connections.add(request.transport)
        return await self.handler(request)

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """Answer each message by itself, as the daemon does: side by side."""
        self.asked.append(request)
        self.connections.add(request.transport)
        if self.websocket_status != 101:
            return web.Response(status=self.websocket_status, text="give a bearer token")
        socket = web.WebSocketResponse(timeout=1.0)
        await socket.prepare(request)
        self.sockets.append(socket)

        async def answer(body: str) -> None:
            asked = json.loads(body)
            if "id" not in asked and not isinstance(asked, list):
                self.notified.append(asked)
                return
            reply = await self.answered(asked)
            with contextlib.suppress(ConnectionError):
                await socket.send_json(reply)

        async with asyncio.TaskGroup() as answers:
            async for message in socket:
                answers.create_task(answer(message.data))
        self.sockets.remove(socket)
        return socket


async def version(asked: Any) -> int:
    return 12


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Server]:
    server = Server(folder / "socket")
    app = web.Application(client_max_size=4 << 20)
    app.add_routes([web.post("/rpc", server.post), web.get("/ws", server.websocket)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "socket")).start()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.tcp_url = f"http://127.0.0.1:{runner.addresses[1][1]}"
    yield server
    await runner.cleanup()
