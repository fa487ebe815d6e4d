"""The pages that machines ask for beside calls: is it alive, is it ready, and what has it measured.

They are guarded as calls are: open to whoever can open the UNIX socket, and behind the token over TCP.
"""

from collections.abc import Awaitable, Callable

from aiohttp import web

from vmmd.rpc.metrics import CONTENT_TYPE
from vmmd.rpc.traffic import Phase, Traffic

Render = Callable[[], Awaitable[bytes]]
"""Gives the metrics as text; see `Metrics.render`."""


def page_routes(version: str, traffic: Traffic, render: Render) -> list[web.RouteDef]:
    """Make the routes of GET /, /healthz, /readyz and /metrics.

    Args:
        version: The daemon's version.
        traffic: What tells whether calls are taken.
        render: Gives the metrics; it is asked once the daemon is ready.
    """

    async def root(_request: web.Request) -> web.Response:
        links = {"rpc": "/rpc", "websocket": "/ws", "health": "/healthz", "ready": "/readyz", "metrics": "/metrics"}
        return web.json_response({"name": "vmmd", "version": version, "links": links})

    async def health(_request: web.Request) -> web.Response:
        # That there is an answer says all there is to say: the event loop turns.
        return web.json_response({"status": "ok"})

    async def ready(_request: web.Request) -> web.Response:
        return web.json_response({"status": traffic.phase.value}, status=200 if traffic.phase is Phase.READY else 503)

    async def metrics(_request: web.Request) -> web.Response:
        if traffic.phase is Phase.STARTING:
            traffic.check_open()
        return web.Response(body=await render(), headers={"Content-Type": CONTENT_TYPE})

    return [web.get("/", root), web.get("/healthz", health), web.get("/readyz", ready), web.get("/metrics", metrics)]
