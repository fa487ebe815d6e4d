"""The HTTP half: who is let in, with what, and what goes back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer

from tests.rpc.wire import open_traffic
from vmmd.rpc.caller import Caller
from vmmd.rpc.pages import page_routes
from vmmd.rpc.server import REQUEST_ID, TcpGuard, make_app
from vmmd.rpc.traffic import Phase
from vmmd.rpc.websocket import WebSocketLimits

TOKEN = "a token of some length"  # noqa: S105  (the tests' own)
BEARER = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
LIMITS = WebSocketLimits(body_bytes=1000, calls_in_flight=8, websocket_silence_ms=30_000)
GUARD = TcpGuard(TOKEN, frozenset({"127.0.0.1", "localhost", "[::1]"}), frozenset({"https://console.example"}))


class Echo:
    """Answers every body with itself, an empty one with nothing, and keeps what was bound to the log meanwhile."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.bound: list[dict[str, Any]] = []

    async def __call__(self, body: bytes, _caller: Caller) -> bytes | None:
        self.bodies.append(body)
        self.bound.append(structlog.contextvars.get_contextvars())
        return body or None


async def no_metrics() -> bytes:
    return b""


@asynccontextmanager
async def serving(guard: TcpGuard | None = GUARD, *, body_bytes: int = 1000) -> AsyncIterator[tuple[TestClient, Echo]]:
    echo = Echo()
    app = make_app(
        echo,
        limits=replace(LIMITS, body_bytes=body_bytes),
        body_wait_ms=10_000,
        guard=guard,
        traffic=open_traffic(),
        pages=page_routes("1.2.3", open_traffic(), no_metrics),
    )
    async with TestClient(TestServer(app)) as client:
        yield client, echo


async def test_a_body_is_answered_as_json() -> None:
    async with serving() as (client, echo):
        response = await client.post("/rpc", data=b'{"a":1}', headers=BEARER | JSON)
        assert (response.status, await response.read()) == (200, b'{"a":1}')
        assert response.content_type == "application/json"
        assert echo.bodies == [b'{"a":1}']


async def test_where_nothing_is_to_be_said_the_answer_is_204_without_a_body() -> None:
    async with serving() as (client, _):
        response = await client.post("/rpc", data=b"", headers=BEARER | JSON)
        assert (response.status, await response.read()) == (204, b"")


@pytest.mark.parametrize("method", ["get", "put", "delete", "patch", "head", "options"])
async def test_rpc_takes_nothing_but_post_and_never_speaks_cors(method: str) -> None:
    headers = BEARER | JSON | {"Origin": "https://console.example", "Access-Control-Request-Method": "POST"}
    async with serving() as (client, echo):
        response = await getattr(client, method)("/rpc", headers=headers)
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert not [name for name in response.headers if name.lower().startswith("access-control")]
        assert echo.bodies == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8000"])
async def test_a_host_that_is_ours_is_let_in(host: str) -> None:
    async with serving() as (client, _):
        response = await client.post("/rpc", data=b"1", headers=BEARER | JSON | {"Host": host})
        assert response.status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.", "[::2]", "127.0.0.2", "[", "127.0.0.1:80@evil", "[::1]x"],
)
@pytest.mark.parametrize("path", ["/rpc", "/", "/healthz"])
async def test_a_host_that_is_not_ours_gets_421_with_the_settings_name(host: str, path: str) -> None:
    async with serving() as (client, echo):
        response = await client.post(path, data=b"1", headers=BEARER | JSON | {"Host": host})
        assert response.status == 421
        assert "VMMD_ALLOWED_HOSTS" in await response.text()
        assert echo.bodies == []


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", "https://console.example.evil"])
async def test_a_foreign_origin_gets_403_with_the_settings_name(origin: str) -> None:
    async with serving() as (client, echo):
        response = await client.post("/rpc", data=b"1", headers=BEARER | JSON | {"Origin": origin})
        assert response.status == 403
        assert "VMMD_ALLOWED_ORIGINS" in await response.text()
        assert echo.bodies == []


async def test_an_allowed_origin_is_let_in() -> None:
    async with serving() as (client, _):
        response = await client.post("/rpc", data=b"1", headers=BEARER | JSON | {"Origin": "https://console.example"})
        assert response.status == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"],
)
async def test_without_the_token_the_answer_is_401_and_says_where_it_is(authorization: str | None) -> None:
    headers = JSON if authorization is None else JSON | {"Authorization": authorization}
    async with serving() as (client, echo):
        response = await client.post("/rpc", data=b"1", headers=headers)
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        text = await response.text()
        assert "VMMD_TOKEN" in text
        assert TOKEN not in text
        assert echo.bodies == []


async def test_the_scheme_of_the_token_has_no_case() -> None:
    async with serving() as (client, _):
        response = await client.post("/rpc", data=b"1", headers=JSON | {"Authorization": f"bearer {TOKEN}"})
        assert response.status == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_body_that_is_no_json_by_its_type_gets_415_and_a_hint(content_type: str) -> None:
    async with serving() as (client, echo):
        response = await client.post("/rpc", data=b"1", headers=BEARER | {"Content-Type": content_type})
        assert response.status == 415
        assert "curl" in await response.text()
        assert echo.bodies == []


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/rpc+json"]
)
async def test_json_by_another_name_is_taken(content_type: str) -> None:
    async with serving() as (client, _):
        response = await client.post("/rpc", data=b"1", headers=BEARER | {"Content-Type": content_type})
        assert response.status == 200


async def test_a_body_over_the_limit_gets_413_with_the_limits_name() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"1" * 100

    async with serving() as (client, echo):
        exact = await client.post("/rpc", data=b"1" * 1000, headers=BEARER | JSON)
        assert exact.status == 200
        echo.bodies.clear()
        for data in (b"1" * 1001, chunks()):
            response = await client.post("/rpc", data=data, headers=BEARER | JSON)
            assert response.status == 413
            assert "limits.body_bytes = 1000" in await response.text()
        assert echo.bodies == []


async def test_the_unix_socket_needs_no_token_and_no_host_but_a_json_type() -> None:
    async with serving(guard=None) as (client, _):
        response = await client.post("/rpc", data=b"1", headers=JSON | {"Host": "vmmd"})
        assert response.status == 200
        response = await client.post("/rpc", data=b"1", headers={"Host": "vmmd", "Content-Type": "text/plain"})
        assert response.status == 415


async def test_a_fit_request_id_comes_back_and_is_bound_to_the_log() -> None:
    async with serving() as (client, echo):
        response = await client.post("/rpc", data=b"1", headers=BEARER | JSON | {REQUEST_ID: "caller-7"})
        assert response.headers[REQUEST_ID] == "caller-7"
        assert echo.bound == [{"request_id": "caller-7"}]
        response = await client.post("/rpc", data=b"1", headers=JSON | {REQUEST_ID: "caller-8"})
        assert (response.status, response.headers[REQUEST_ID]) == (401, "caller-8")


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 65, "é"])
async def test_any_other_request_id_is_replaced_by_a_fresh_one(given: str | None) -> None:
    headers = BEARER | JSON if given is None else BEARER | JSON | {REQUEST_ID: given}
    async with serving() as (client, _):
        names = {(await client.post("/rpc", data=b"1", headers=headers)).headers[REQUEST_ID] for _ in range(2)}
    assert len(names) == 2
    assert all(len(name) == 16 for name in names)


async def test_the_root_page_says_who_this_is_and_health_that_it_lives() -> None:
    async with serving() as (client, _):
        root = await (await client.get("/", headers=BEARER)).json()
        assert (root["name"], root["version"]) == ("vmmd", "1.2.3")
        for link in root["links"].values():
            assert (await client.get(link, headers=BEARER)).status != 404
        assert (await client.get("/healthz", headers=BEARER)).status == 200
        assert (await client.get("/other", headers=BEARER)).status == 404


def test_the_guard_does_not_show_its_token() -> None:
    assert TOKEN not in repr(GUARD)


async def test_whoever_answers_is_told_when_the_client_has_gone() -> None:
    asked, told = asyncio.Event(), asyncio.Event()

    async def dispatch(_body: bytes, caller: Caller) -> bytes | None:
        assert not caller.is_gone
        asked.set()
        while not caller.is_gone:
            await asyncio.sleep(0)
        told.set()
        return None

    app = make_app(dispatch, limits=LIMITS, body_wait_ms=10_000, guard=None, traffic=open_traffic())
    async with asyncio.timeout(10), TestClient(TestServer(app)) as client:
        call = asyncio.create_task(client.post("/rpc", data=b"1", headers=JSON))
        await asked.wait()
        call.cancel()
        await told.wait()


@pytest.mark.parametrize(("phase", "said"), [(Phase.STARTING, "starting"), (Phase.DRAINING, "shutting down")])
async def test_before_the_start_and_behind_the_end_calls_are_refused_and_readiness_says_so(
    phase: Phase, said: str
) -> None:
    traffic = open_traffic()
    traffic.phase = phase
    echo = Echo()
    pages = page_routes("1.2.3", traffic, no_metrics)
    app = make_app(echo, limits=LIMITS, body_wait_ms=10_000, guard=None, traffic=traffic, pages=pages)
    async with TestClient(TestServer(app)) as client:
        for answer in (await client.post("/rpc", data=b"1", headers=JSON), await client.get("/ws")):
            assert (answer.status, said in await answer.text()) == (503, True)
            assert answer.headers["Retry-After"] == "1"
        assert (await client.get("/readyz")).status == 503
        assert (await client.get("/healthz")).status == 200
    assert echo.bodies == []
    assert traffic.in_flight == 0
