"""What vmmd's RPC is measured against: an aiohttp handler that only parses and answers.

`python -m tests.benchmarks.bare_server SOCKET` serves POST /rpc and /ws on a UNIX socket, prints a line when it is
ready, and is ended by a signal.
"""

from __future__ import annotations

import asyncio
import json
import sys

from aiohttp import WSMsgType, web


def answer(body: bytes | str) -> bytes:
    """Answer any request with 12."""
    request = json.loads(body)
    return json.dumps({"jsonrpc": "2.0", "result": 12, "id": request["id"]}).encode()


async def rpc(request: web.Request) -> web.Response:
    """Answer a body."""
    return web.Response(body=answer(await request.read()), content_type="application/json")


async def frames(request: web.Request) -> web.WebSocketResponse:
    """Answer text frames."""
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(answer(message.data).decode())
    return socket


async def serve(path: str) -> None:
    """Serve for good."""
    app = web.Application()
    app.add_routes([web.post("/rpc", rpc), web.get("/ws", frames)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, path).start()
    print("ready", flush=True)  # noqa: T201
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
