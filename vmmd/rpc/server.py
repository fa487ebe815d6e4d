"""The HTTP half: who may ask, how a body comes in and its answer goes out. It knows no method and no VM.

POST /rpc carries JSON-RPC, and so does the WebSocket at /ws, whose upgrade is a request like any other; the pages
beside them are those of `pages`. Any web page that the user
of this machine has open can send requests to 127.0.0.1, and a name that its owner points there can read the answers. So
over TCP a request needs a host name that was meant for us (421), no foreign origin (403), and the bearer token (401);
and everywhere a JSON content type (415), which a page cannot send without asking first. Nothing here ever answers with
a CORS header.
"""

import asyncio
import hmac
import itertools
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from vmmd.api.names import HOST_NAME
from vmmd.rpc.caller import Caller
from vmmd.rpc.dispatch import Answer, Dispatch, finished
from vmmd.rpc.outbox import until_read
from vmmd.rpc.traffic import Traffic
from vmmd.rpc.websocket import WebSocketLimits, WebSockets

REQUEST_ID = "X-Request-Id"

_LEGAL_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_JSON = "application/json"
_HOST = re.compile(rf"({HOST_NAME.pattern})(?::[0-9]*)?")
_JSON_TYPE = re.compile(r"application/(?:json|[a-z0-9.-]+\+json)")

# A request that has no name gets the start's, which is of no other start, and a number.
_START = secrets.token_hex(4)
_numbers = itertools.count(1)

# An answer up to this size fits into a socket's buffer.
_SMALL_ANSWER_BYTES = 64 << 10


@dataclass(frozen=True)
class TcpGuard:
    """Who may ask over TCP.

    Attributes:
        token: What the Authorization header has to bear.
        hosts: Host names, without ports, that requests may be addressed to; an IPv6 address stands in brackets.
        origins: Origins, "https://console.example", whose pages may ask. A request without an origin always may.
    """

    token: str = field(repr=False)
    hosts: frozenset[str]
    origins: frozenset[str]

    def check(self, request: web.Request) -> None:
        """Let a request pass, or raise the answer that it gets.

        Raises:
            web.HTTPException: 421, 403 or 401; the text names the setting that decides.
        """
        host = _host_name(request.headers.get(hdrs.HOST, ""))
        if host not in self.hosts:
            raise web.HTTPMisdirectedRequest(
                text=f"The request is for the host {host!r:.100}, and this daemon answers for "
                f"{', '.join(sorted(self.hosts))}. If it is meant, add it to allowed_hosts (VMMD_ALLOWED_HOSTS).\n"
            )
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin not in self.origins:
            raise web.HTTPForbidden(
                text=f"Pages of the origin {origin!r:.100} may not ask this daemon. "
                "If they are to, add it to allowed_origins (VMMD_ALLOWED_ORIGINS).\n"
            )
        if not self._bears_token(request.headers.get(hdrs.AUTHORIZATION, "")):
            raise web.HTTPUnauthorized(
                headers={hdrs.WWW_AUTHENTICATE: 'Bearer realm="vmmd"'},
                text="Over TCP every request bears the token, as 'Authorization: Bearer TOKEN': the setting token "
                "(VMMD_TOKEN), or what the file token_file holds. The UNIX socket needs none.\n",
            )

    def _bears_token(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        # The comparison takes as long for a wrong token as for the right one, so that nobody guesses it byte by byte.
        same = hmac.compare_digest(token.strip().encode("utf-8", "surrogateescape"), self.token.encode("utf-8"))
        return same and scheme.lower() == "bearer"


def make_app(
    dispatch: Dispatch,
    *,
    limits: WebSocketLimits,
    body_wait_ms: int,
    guard: TcpGuard | None,
    traffic: Traffic,
    pages: Sequence[web.RouteDef] = (),
    observe_refusal: Callable[[int], None] = lambda _status: None,
) -> web.Application:
    """Make the application that one listener serves.

    Args:
        dispatch: What answers bodies.
        limits: What bodies, and WebSockets, may amount to.
        body_wait_ms: How long a body may take to come in, in milliseconds.
        guard: Who may ask; None on the UNIX socket, where the file's mode says it.
        traffic: Which calls are taken.
        pages: The routes beside /rpc and /ws.
        observe_refusal: Told the status of each request that is refused.
    """
    door = _Door(dispatch, limits, body_wait_ms, guard, traffic, observe_refusal)
    app = web.Application(middlewares=[door.guarded], client_max_size=limits.body_bytes)
    app.add_routes([web.post("/rpc", door.rpc), web.get("/ws", door.upgrade), *pages])
    app.on_shutdown.append(door.websockets.close)
    return app


class _Door:
    """What one listener's requests pass. Its arguments are those of `make_app`."""

    def __init__(
        self,
        dispatch: Dispatch,
        limits: WebSocketLimits,
        body_wait_ms: int,
        guard: TcpGuard | None,
        traffic: Traffic,
        observe_refusal: Callable[[int], None],
    ) -> None:
        self.websockets = WebSockets(self._answer_frame, limits)
        self._dispatch = dispatch
        self._limits = limits
        self._body_wait_ms = body_wait_ms
        self._guard = guard
        self._traffic = traffic
        self._observe_refusal = observe_refusal

    @web.middleware
    async def guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Name a request, refuse whoever may not ask, and give every answer the name."""
        name = _request_name(request)
        # Each request has a task of its own, and its context: nothing has to be unbound.
        structlog.contextvars.bind_contextvars(request_id=name)
        transport = request.transport
        self._traffic.answering.add(transport)
        try:
            if self._guard is not None:
                _check_guard(self._guard, request)
            self._traffic.client_of(request)
            response = await handler(request)
        except web.HTTPException as refusal:
            self._observe_refusal(refusal.status)
            refusal.headers[REQUEST_ID] = name
            raise
        finally:
            self._traffic.answering.discard(transport)
        if not response.prepared:
            # A WebSocket's headers went out at its upgrade.
            response.headers[REQUEST_ID] = name
        return response

    async def rpc(self, request: web.Request) -> web.Response:
        """Answer POST /rpc."""
        headers = request.headers
        if headers.get(hdrs.CONTENT_TYPE) != _JSON:
            _check_content_type(request)
        if hdrs.CONTENT_ENCODING in headers:
            _check_encoding(headers[hdrs.CONTENT_ENCODING])
        client = self._traffic.client_of(request)
        self._traffic.enter(client)
        try:
            body = await _read_body(request, self._limits.body_bytes, self._body_wait_ms)
            # The body may have taken longer to come than the daemon had left.
            self._traffic.check_open()
            caller = Caller(has_gone=partial(_has_gone, request), outbox=client.outbox)
            answer = self._dispatch(body, caller)
            if answer is None or (isinstance(answer, bytes) and len(answer) <= _SMALL_ANSWER_BYTES):
                return _response(answer)
            return await _answer(request, answer, caller, self._limits.unread_ms)
        finally:
            self._traffic.leave(client)

    async def upgrade(self, request: web.Request) -> web.StreamResponse:
        """Make a connection a WebSocket, and serve it to its end."""
        self._traffic.check_open()
        self._traffic.upgrade(request)
        return await self.websockets.handle(request)

    def _answer_frame(self, body: bytes, caller: Caller) -> Answer | Awaitable[Answer]:
        answer = self._dispatch(body, caller)
        return answer if answer is None or isinstance(answer, bytes) else self._count(answer)

    async def _count(self, answering: Awaitable[Answer]) -> Answer:
        # How many of these one client may have is a limit of its connection.
        self._traffic.begin()
        try:
            return await answering
        finally:
            self._traffic.end()


def _has_gone(request: web.Request) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()


def _response(answer: Answer) -> web.Response:
    return web.Response(status=204) if answer is None else web.Response(body=answer, content_type=_JSON)


async def _answer(
    request: web.Request, answering: Answer | Awaitable[Answer], caller: Caller, unread_ms: int
) -> web.Response:
    """Answer a body, and keep its room taken until a large answer has gone out."""
    try:
        try:
            answer = await finished(answering)
            caller.answered(len(answer or b""))
        finally:
            caller.over()
        response = _response(answer)
        if answer is not None and len(answer) > _SMALL_ANSWER_BYTES and request.transport is not None:
            response.headers[REQUEST_ID] = structlog.contextvars.get_contextvars()["request_id"]
            await until_read(request.transport, _send(request, response), unread_ms)
        return response
    finally:
        caller.sent()


async def _send(request: web.Request, response: web.Response) -> None:
    """Send an answer here and now, where the server would do it once nobody looks any more."""
    with suppress(ConnectionError):
        await response.prepare(request)
        await response.write_eof()


def _request_name(request: web.Request) -> str:
    """Give a request its name, the caller's where it sent a fit one: for its log lines and its answer."""
    given = request.headers.get(REQUEST_ID)
    if given is not None and _LEGAL_REQUEST_ID.fullmatch(given):
        return given
    return f"{_START}{next(_numbers):08x}"


def _check_guard(guard: TcpGuard, request: web.Request) -> None:
    try:
        guard.check(request)
    except web.HTTPException as refusal:
        # Who may not ask keeps no connection either.
        refusal.force_close()
        raise


def _check_encoding(encoding: str) -> None:
    if encoding.strip().lower() not in {"", "identity"}:
        raise web.HTTPUnsupportedMediaType(
            text=f"The body's content encoding is {encoding!r:.100}, and none is decoded here; send it as it is.\n"
        )


def _check_content_type(request: web.Request) -> None:
    if not _JSON_TYPE.fullmatch(request.content_type.lower()):
        raise web.HTTPUnsupportedMediaType(
            text=f"The body's content type is {request.content_type!r:.100}, and must be application/json; "
            "with curl, use --json instead of --data.\n"
        )


async def _read_body(request: web.Request, body_bytes: int, body_wait_ms: int) -> bytes:
    size = request.content_length or 0
    if size <= body_bytes:
        try:
            if request.content.is_eof():
                # All of it came with the head: a timer would cost a tenth of a short call.
                return await request.read()
            async with asyncio.timeout(body_wait_ms / 1000):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            size = body_bytes + 1
        except TimeoutError:
            raise web.HTTPRequestTimeout(
                headers={hdrs.CONNECTION: "close"},
                text=f"The body did not come within limits.body_wait_ms = {body_wait_ms} milliseconds "
                "(VMMD_LIMITS__BODY_WAIT_MS); send it at once, or raise the limit.\n",
            ) from None
    raise web.HTTPRequestEntityTooLarge(
        max_size=body_bytes,
        actual_size=size,
        text=f"The body has more than limits.body_bytes = {body_bytes} bytes (VMMD_LIMITS__BODY_BYTES); "
        "send less at a time, or raise the limit.\n",
    )


def _host_name(host: str) -> str:
    """Give the name of a Host header without its port, "[::1]" of "[::1]:8000"; what is none stays whole."""
    found = _HOST.fullmatch(host)
    return (found[1] if found is not None else host).lower()
