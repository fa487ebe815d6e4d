import asyncio
import json
import socket
from pathlib import Path

import pytest
from aiohttp import web

from vmmd_client import (
    CallTimeout,
    ConnectError,
    Disconnected,
    HttpRefused,
    HttpTransport,
    ProtocolError,
    calls,
    connect,
    from_env,
)
from vmmd_client.wire.protocol import Dialogue

from .web_server import Server

TOKEN = "a token of the tests"  # noqa: S105


async def test_a_unix_socket_is_asked_by_post_as_json(server: Server):
    async with connect(server.unix_url) as vmmd:
        assert await vmmd.kvm.get_api_version() == 12
    request = server.asked[0]
    assert (request.method, request.path, request.host) == ("POST", "/rpc", "localhost")
    assert request.content_type == "application/json"


async def test_the_token_goes_with_every_request_over_tcp(server: Server):
    async with connect(server.tcp_url, token=TOKEN):
        pass
    assert server.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"


async def test_one_connection_serves_call_after_call(server: Server):
    async with connect(server.unix_url) as vmmd:
        for _ in range(5):
            await vmmd.kvm.get_api_version()
    assert len(server.connections) == 1


async def test_the_environment_says_where_and_with_which_token(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VMMD_URL", server.tcp_url)
    monkeypatch.setenv("VMMD_TOKEN", TOKEN)
    async with from_env():
        pass
    assert server.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_an_environment_without_a_url_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VMMD_URL", raising=False)
    with pytest.raises(ConnectError, match="VMMD_URL"):
        from_env()


@pytest.mark.parametrize("url", ["", "/run/vmmd.sock", "unix://run/vmmd.sock", "ftp://host/", "http:///rpc", "unix:"])
def test_a_url_of_another_form_is_an_error_that_shows_the_forms(url: str):
    with pytest.raises(ConnectError, match="unix:///path/to/socket or http://host:port"):
        connect(url)


async def test_a_socket_that_is_not_there_is_a_connect_error_on_entering(tmp_path: Path):
    with pytest.raises(ConnectError, match="vmmd serve"):
        async with connect(f"unix://{tmp_path}/none"):
            pass


async def test_a_port_where_nobody_listens_is_a_connect_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectError, match="nobody listens"):
        async with connect(f"http://127.0.0.1:{port}"):
            pass


async def test_another_kind_of_server_is_a_protocol_error_on_entering(server: Server):
    async def homepage(request: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>", content_type="text/html")

    server.handler = homepage
    with pytest.raises(ProtocolError, match="<html>"):
        async with connect(server.unix_url):
            pass


async def test_an_http_status_is_an_error_with_the_status_and_the_servers_words(server: Server):
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=401, text="give a bearer token")

    server.handler = refuse
    with pytest.raises(HttpRefused, match="give a bearer token") as caught:
        async with connect(server.tcp_url):
            pass
    assert caught.value.status == 401


async def test_a_server_that_hangs_up_before_it_answers_is_a_disconnect(server: Server):
    async with connect(server.unix_url) as vmmd:

        async def hang_up(request: web.Request) -> web.Response:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        server.handler = hang_up
        with pytest.raises(Disconnected, match="not known"):
            await vmmd.kvm.get_api_version()


async def test_an_answer_that_ends_in_its_middle_is_a_disconnect(server: Server):
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"jsonrpc"')
        assert request.transport is not None
        request.transport.close()
        return response

    async with connect(server.unix_url) as vmmd:
        server.handler = half
        with pytest.raises(Disconnected):
            await vmmd.kvm.get_api_version()


async def test_a_call_without_an_answer_ends_in_a_call_timeout(server: Server):
    never = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    server.handler = wait
    with pytest.raises(CallTimeout, match=r"within 0\.05 s"):
        async with connect(server.unix_url, timeout_s=0.05):
            pass


async def test_a_vm_handle_can_have_a_time_of_its_own(server: Server):
    never = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async with connect(server.unix_url) as vmmd:
        server.handler = wait
        with pytest.raises(CallTimeout):
            await vmmd.vm("1").with_timeout(0.05).get_stats()


async def test_the_answer_to_a_cancelled_call_reaches_nobody(server: Server):
    asked, release = asyncio.Event(), asyncio.Event()

    async def late(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        asked.set()
        await release.wait()
        return web.json_response({"jsonrpc": "2.0", "id": body["id"], "result": 99})

    async with connect(server.unix_url) as vmmd:
        server.handler = late
        call = asyncio.create_task(vmmd.kvm.get_api_version())
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.handler = server.post_answer
        release.set()
        assert [await vmmd.kvm.get_api_version() for _ in range(3)] == [12, 12, 12]
    assert len(server.connections) == 2


async def test_many_calls_at_once_get_each_its_own_answer(server: Server):
    async def double(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        return web.json_response({"jsonrpc": "2.0", "id": body["id"], "result": body["params"]["n"] * 2})

    async with connect(server.unix_url) as vmmd:
        server.handler = double
        answers = await asyncio.gather(*(vmmd.call("double", n=n) for n in range(200)))
    assert answers == [n * 2 for n in range(200)]


async def test_closing_twice_is_closing_once_and_a_closed_client_says_so(server: Server):
    transport = HttpTransport(server.unix_url)
    question = Dialogue().ask(calls.get_api_version())
    await transport.exchange(question, 1.0)
    await transport.aclose()
    await transport.aclose()
    with pytest.raises(Disconnected, match="closed"):
        await transport.exchange(question, 1.0)


async def test_leaving_the_block_by_an_exception_closes_the_connection(server: Server):
    vmmd = connect(server.unix_url)
    with pytest.raises(KeyError):
        async with vmmd:
            raise KeyError("x")
    with pytest.raises(Disconnected, match="closed"):
        await vmmd.send(calls.get_info())


async def test_a_token_of_the_environment_may_end_with_a_newline(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VMMD_URL", server.tcp_url)
    monkeypatch.setenv("VMMD_TOKEN", TOKEN + "\n")
    async with from_env():
        pass
    assert server.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"
