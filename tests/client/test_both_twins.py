"""What holds for the asynchronous client and its synchronous twin alike, by HTTP and by WebSocket."""

import asyncio
import errno
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import vmmd_client.sync.wire.sockets
import vmmd_client.sync.wire.websocket
import vmmd_client.wire.http
import vmmd_client.wire.websocket
from vmmd_client import (
    BadVm,
    CallTimeout,
    ClientClosed,
    ConnectError,
    ConnectTimeout,
    Disconnected,
    HttpRefused,
    ProtocolError,
    UnusableToken,
    VersionMismatch,
)

from .twin_driver import TWINS, connect
from .web_server import Server, version

TOKEN = "a token of the tests"  # noqa: S105
ROUTES = [(twin, route) for twin in TWINS for route in ("http", "websocket")]

pytestmark = pytest.mark.parametrize(("twin", "route"), ROUTES)


def unix(server: Server, route: str) -> str:
    return server.unix_url if route == "http" else server.unix_url.replace("unix:", "ws+unix:")


def tcp(server: Server, route: str) -> str:
    return server.tcp_url if route == "http" else server.tcp_url.replace("http:", "ws:")


async def test_calls_go_over_a_unix_socket_on_one_connection(server: Server, twin: str, route: str):
    async with connect(twin, unix(server, route)) as vmmd:
        assert [await vmmd.do("kvm.get_api_version") for _ in range(5)] == [12] * 5
    assert len(server.connections) == 1
    assert server.asked[0].host == "localhost"


async def test_the_token_goes_along_over_tcp(server: Server, twin: str, route: str):
    async with connect(twin, tcp(server, route), token=TOKEN):
        pass
    assert {request.headers["Authorization"] for request in server.asked} == {f"Bearer {TOKEN}"}


async def test_a_socket_that_is_not_there_is_a_connect_error(tmp_path: Path, twin: str, route: str):
    scheme = "unix" if route == "http" else "ws+unix"
    with pytest.raises(ConnectError, match="vmmd serve"):
        async with connect(twin, f"{scheme}://{tmp_path}/none"):
            pass


async def test_a_daemon_that_is_stopped_is_a_timeout_that_asks_whether_it_is(
    tmp_path: Path, twin: str, route: str, monkeypatch: pytest.MonkeyPatch
):
    for module in (vmmd_client.wire.websocket, vmmd_client.sync.wire.websocket):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(tmp_path / "stopped"))
        stopped.listen(8)
        expected = (CallTimeout, "did not answer") if route == "http" else (ConnectTimeout, "is the daemon stopped")
        with pytest.raises(expected[0], match=expected[1]):
            async with connect(twin, f"{'unix' if route == 'http' else 'ws+unix'}://{tmp_path}/stopped", timeout_s=0.5):
                pass


async def test_a_daemon_of_another_api_version_says_both_versions(server: Server, twin: str, route: str):
    async def thirteen(asked: Any) -> int:
        return 13

    server.answer = thirteen
    with pytest.raises(VersionMismatch, match="one release") as caught:
        async with connect(twin, unix(server, route)):
            pass
    assert (caught.value.daemon_version, caught.value.library_version) == (13, 12)


async def test_a_method_that_answers_in_another_shape_is_a_protocol_error(server: Server, twin: str, route: str):
    async with connect(twin, unix(server, route)) as vmmd:
        with pytest.raises(ProtocolError, match="another version"):
            await vmmd.do("daemon.get_info")


async def test_a_refused_upgrade_or_post_is_an_error_with_the_status(server: Server, twin: str, route: str):
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=401, text="give a bearer token")

    server.handler = refuse
    server.websocket_status = 401
    with pytest.raises(HttpRefused, match=r"HTTP 401: give a bearer token$") as caught:
        async with connect(twin, tcp(server, route)):
            pass
    assert caught.value.status == 401


async def test_a_call_without_an_answer_ends_in_its_time_and_its_late_answer_reaches_nobody(
    server: Server, twin: str, route: str
):
    release = asyncio.Event()

    async def late(asked: Any) -> int:
        await release.wait()
        return 99

    async with connect(twin, unix(server, route), attempts=1) as vmmd:
        server.answer = late
        hasty = await vmmd.do("with_timeout", 0.05)
        with pytest.raises(CallTimeout, match=r"within 0\.05 s"):
            await hasty.do("kvm.get_api_version")
        server.answer = version
        release.set()
        assert [await vmmd.do("kvm.get_api_version") for _ in range(3)] == [12, 12, 12]
    if route == "websocket":
        # The connection stands, so the daemon cannot tell by it that nobody waits any more.
        assert [(told["method"], told["params"]) for told in server.notified] == [("rpc.cancel", {"id": 2})]
        assert len(server.connections) == 1


async def double(asked: Any) -> int:
    return int(asked["params"]["n"]) * 2


async def test_many_calls_at_once_get_each_its_own_answer(server: Server, twin: str, route: str):
    async with connect(twin, unix(server, route)) as vmmd:
        server.answer = double
        answers = await asyncio.gather(*(vmmd.do("call", "double", n=n) for n in range(100)))
    assert answers == [n * 2 for n in range(100)]


async def test_a_call_that_waits_keeps_no_other_from_its_answer(server: Server, twin: str, route: str):
    release = asyncio.Event()

    async def some_wait(asked: Any) -> str:
        if asked["method"] == "waits":
            await release.wait()
        return str(asked["method"])

    async with connect(twin, unix(server, route)) as vmmd:
        server.answer = some_wait
        waiting = asyncio.create_task(vmmd.do("call", "waits"))
        assert await vmmd.do("call", "quick") == "quick"
        assert not waiting.done()
        release.set()
        assert await waiting == "waits"


async def test_a_batch_is_answered_as_one(server: Server, twin: str, route: str):
    async with connect(twin, unix(server, route)) as vmmd:
        batch = await vmmd.do("batch")
        async with batch:
            replies = [batch.inner.call("kvm.get_api_version") for _ in range(3)]
        assert [reply.result() for reply in replies] == [12, 12, 12]


async def test_an_error_is_the_same_class_with_the_same_words(server: Server, twin: str, route: str):
    async with connect(twin, unix(server, route)) as vmmd:
        server.error = {"code": errno.EBADF, "message": "there is no VM 'x'", "data": {"errno": "EBADF"}}
        vm = await vmmd.do("vm", "x")
        with pytest.raises(BadVm, match="EBADF: there is no VM 'x'"):
            await vm.do("get_stats")


async def test_a_lost_connection_is_made_anew_and_a_read_asked_again(server: Server, twin: str, route: str):
    methods: list[str] = []

    async def hang_up_once(asked: Any) -> int:
        methods.append(asked["method"])
        if len(methods) == 1:
            hang_up(server)
        return 12

    async with connect(twin, unix(server, route)) as vmmd:
        server.answer = hang_up_once
        assert await vmmd.do("kvm.get_api_version") == 12
    assert methods == ["kvm.get_api_version"] * 2


async def test_a_change_without_a_request_id_is_never_asked_again(server: Server, twin: str, route: str):
    methods: list[str] = []

    async def always_hang_up(asked: Any) -> None:
        methods.append(asked["method"])
        hang_up(server)

    async with connect(twin, unix(server, route)) as vmmd:
        server.answer = always_hang_up
        with pytest.raises(Disconnected, match="not known"):
            await vmmd.do("call", "vm.start", vm="vm1")
        assert methods == ["vm.start"]
        with pytest.raises(Disconnected, match="not known"):
            await vmmd.do("call", "vm.start", vm="vm1", request_id="mine")
        assert methods == ["vm.start"] * 4


async def test_a_connection_that_the_daemon_closed_while_it_was_idle_costs_no_attempt(
    server: Server, twin: str, route: str
):
    async with connect(twin, unix(server, route), attempts=1) as vmmd:
        theirs = server.asked[-1].get_extra_info("socket")
        hang_up(server)
        while theirs.fileno() != -1:
            await asyncio.sleep(0)
        while True:
            try:
                assert await vmmd.do("kvm.get_api_version") == 12
            except Disconnected:
                # An event loop, or the thread that reads a WebSocket, may not have noticed yet; who looks has.
                assert (twin, route) != ("sync", "http")
                continue
            break
    assert len(server.connections) == 2


def hang_up(server: Server) -> None:
    transport = server.asked[-1].transport
    assert transport is not None
    transport.abort()


async def test_a_closed_client_says_so(server: Server, twin: str, route: str):
    vmmd = connect(twin, unix(server, route))
    async with vmmd:
        pass
    await vmmd.do("close" if twin == "sync" else "aclose")
    with pytest.raises(ClientClosed, match="closed"):
        await vmmd.do("kvm.get_api_version")


async def test_a_closed_client_ends_the_calls_that_are_under_way(server: Server, twin: str, route: str):
    asked = asyncio.Event()
    release = asyncio.Event()

    async def hang(request: Any) -> None:
        asked.set()
        await release.wait()

    async with connect(twin, unix(server, route)) as vmmd:
        server.answer = hang
        waiting = asyncio.create_task(vmmd.do("call", "vm.start", vm="vm1"))
        await asked.wait()
        await vmmd.do("close" if twin == "sync" else "aclose")
        with pytest.raises(ClientClosed, match="while the call was under way"):
            await waiting
    release.set()


@pytest.mark.parametrize("token", ["abc\n", "a\rb", "a\0b", " a", "", 5])
async def test_a_token_that_no_header_holds_is_refused_before_anything_is_opened(
    server: Server, twin: str, route: str, token: Any
):
    with pytest.raises(UnusableToken) as caught:
        connect(twin, tcp(server, route), token=token)
    assert server.asked == []
    assert "abc" not in str(caught.value)


async def test_a_token_goes_in_utf_8(server: Server, twin: str, route: str):
    async with connect(twin, tcp(server, route), token="schlüssel"):  # noqa: S106
        pass
    assert {request.headers["Authorization"] for request in server.asked} == {"Bearer schlüssel"}


async def test_a_large_body_goes_without_a_complaint(server: Server, twin: str, route: str):
    async with connect(twin, unix(server, route)) as vmmd:
        assert await vmmd.do("call", "any", data="x" * (3 << 19)) == 12


async def test_a_time_of_centuries_is_a_time(server: Server, twin: str, route: str):
    async with connect(twin, unix(server, route), timeout_s=1e11) as vmmd:
        assert await vmmd.do("kvm.get_api_version") == 12


async def test_a_connection_that_ends_before_its_websocket_is_open_has_carried_nothing(
    tmp_path: Path, twin: str, route: str
):
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    path = tmp_path / "s"
    async with await asyncio.start_unix_server(hang_up, path):
        vmmd = connect(twin, f"{'unix' if route == 'http' else 'ws+unix'}://{path}")
        events = await vmmd.do("events")
        with pytest.raises(ConnectError, match="before the WebSocket was open"):
            await events.do("receive", 1.0)
        await vmmd.do("aclose" if twin == "async" else "close")
