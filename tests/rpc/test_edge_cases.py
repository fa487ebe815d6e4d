"""Every corner of JSON-RPC 2.0, over everything that carries it."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from tests.rpc.edge_cases import CASES, Case, shape
from tests.rpc.toys import Bench
from tests.rpc.wire import open_traffic
from vmmd.api.codes import INVALID_PARAMS
from vmmd.rpc.server import make_app
from vmmd.rpc.websocket import WebSocketLimits

Ask = Callable[[Case], Awaitable[bytes | None]]
"""Sends a case's body and gives what comes back; None where nothing does."""

LIMITS = WebSocketLimits(body_bytes=4 << 20, calls_in_flight=8, websocket_silence_ms=30_000)

# No request, so it is answered by the check alone.
BEHIND = '{"id":"behind"}'


@asynccontextmanager
async def serving(bench: Bench) -> AsyncIterator[TestClient[Any, Any]]:
    app = make_app(bench.dispatcher.begin, limits=LIMITS, body_wait_ms=10_000, guard=None, traffic=open_traffic())
    async with TestClient(TestServer(app)) as client:
        yield client


@asynccontextmanager
async def over_http(bench: Bench) -> AsyncIterator[Ask]:
    async with serving(bench) as client:

        async def ask(case: Case) -> bytes | None:
            headers = {"Content-Type": "application/json"}
            async with client.post("/rpc", data=io.BytesIO(case.body), headers=headers) as response:
                answer = await response.read()
                if response.status == 204:
                    assert answer == b""
                    return None
                assert (response.status, response.content_type) == (200, "application/json")
                return answer

        yield ask


@asynccontextmanager
async def over_websocket(bench: Bench) -> AsyncIterator[Ask]:
    async with serving(bench) as client, client.ws_connect("/ws") as socket:

        async def ask(case: Case) -> bytes | None:
            await socket.send_str(case.body.decode())
            answer = None if case.is_silent else (await socket.receive_str()).encode()
            # What comes next answers this one, so there was one answer, or none.
            await socket.send_str(BEHIND)
            assert '"id":"behind"' in await socket.receive_str()
            return answer

        yield ask


CARRIERS = {"HTTP": over_http, "WebSocket": over_websocket}
WAYS = [(case, carrier) for case in CASES for carrier in CARRIERS if case.is_text or carrier == "HTTP"]


@pytest.mark.parametrize(("case", "carrier"), WAYS, ids=[f"{case.name}-{carrier}" for case, carrier in WAYS])
async def test_a_body_is_answered_by_the_rules(case: Case, carrier: str) -> None:
    bench = Bench()
    with capture_logs():
        async with CARRIERS[carrier](bench) as ask:
            answer = await ask(case)
    if case.exactly is not None:
        assert answer == case.exactly
    if case.answer is not None or answer is None:
        value = None if answer is None else json.loads(answer)
        assert shape(value) == case.answer
        if case.says:
            error = value["error"]
            assert case.says in error["message"]
            assert len(error["message"]) < 1000
            assert (error["code"] == INVALID_PARAMS) == bool(error.get("data", {}).get("problems"))
    if case.runs is not None:
        carried_out = [entry for entry in bench.journal if not entry.startswith(("refused", "failed"))]
        assert tuple(carried_out) == case.runs


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
