"""What a web page, a rebound name and a hostile peer can send to a real daemon, and that none of it comes through.

The peers here write bytes, since no client library would send most of this.
"""

import asyncio
import itertools
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.process import TOKEN, Daemon, call, environment, request, serving

CREATE = json.dumps(request("kvm.create_vm")).encode()
BEARER = f"Authorization: Bearer {TOKEN}"
EVALUATED = {"VMMD_ENGINE": "evaluated"}


@asynccontextmanager
async def raw(daemon: Daemon, *, tcp: bool = False) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect without a client library."""
    if tcp:
        assert daemon.tcp is not None
        host, _, port = daemon.tcp.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    else:
        reader, writer = await asyncio.open_unix_connection(str(daemon.socket))
    try:
        yield reader, writer
    finally:
        writer.close()


def head(*lines: str, method: str = "POST", path: str = "/rpc", host: str = "127.0.0.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


def post(body: bytes, *lines: str, host: str = "127.0.0.1") -> bytes:
    return head(*lines, f"Content-Length: {len(body)}", host=host) + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Give the status and the body of the next answer."""
    async with asyncio.timeout(20):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        sizes = [int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length")]
        body = await reader.readexactly(sizes[0] if sizes else 0)
    return int(lines[0].split()[1]), body.decode()


async def send(daemon: Daemon, data: bytes, *, tcp: bool = False) -> tuple[int, str]:
    async with raw(daemon, tcp=tcp) as (reader, writer):
        writer.write(data)
        return await answer(reader)


async def vms(daemon: Daemon) -> int:
    async with daemon.session() as session:
        return len(await call(session, "kvm.list_vms"))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all that is sent to it here."""
    folder = tmp_path_factory.mktemp("attacked")
    limits = {"VMMD_LIMITS__BODY_BYTES": "5000", "VMMD_LIMITS__BODY_WAIT_MS": "300", "VMMD_LIMITS__IDLE_MS": "500"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vmmd", "serve", "--socket", str(folder / "vmmd.sock"), "--port", "0"],
        env=environment(folder, **EVALUATED, **limits),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    urls = process.stdout.readline().decode().split()
    yield Daemon(process, folder / "vmmd.sock", urls[1])
    # Whatever was sent: it ends in order, and none of it was an error of the daemon's.
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert [line for line in map(json.loads, log.splitlines()) if line["level"] not in {"info", "debug"}] == []


@pytest.fixture
async def daemon(attacked: Daemon) -> AsyncIterator[Daemon]:
    """The daemon, which has to be as it was after each test."""
    yield attacked
    assert await vms(attacked) == 0


def form(boundary: str) -> Iterator[tuple[str, bytes]]:
    """Give the bodies that a page's form can send without asking first, with their types."""
    yield "text/plain", CREATE
    yield "text/plain;charset=UTF-8", CREATE
    yield "application/x-www-form-urlencoded", CREATE
    yield (
        f"multipart/form-data; boundary={boundary}",
        f'--{boundary}\r\nContent-Disposition: form-data; name="a"\r\n\r\n'.encode() + CREATE,
    )


async def test_no_form_and_no_simple_request_of_a_page_is_carried_out(daemon: Daemon) -> None:
    for tcp in (False, True):
        for content_type, body in form("xx"):
            token = [BEARER] if tcp else []
            status, text = await send(daemon, post(body, f"Content-Type: {content_type}", *token), tcp=tcp)
            assert (status, "application/json" in text) == (415, True), content_type
        status, _ = await send(daemon, post(CREATE, *([BEARER] if tcp else [])), tcp=tcp)
        assert status == 415


async def test_a_page_that_asks_first_is_given_no_leave(daemon: Daemon) -> None:
    asks = head(
        "Origin: http://evil.example",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: content-type",
        method="OPTIONS",
    )
    for tcp in (False, True):
        async with raw(daemon, tcp=tcp) as (reader, writer):
            writer.write(asks)
            async with asyncio.timeout(20):
                answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert "access-control-allow" not in answered
        assert answered.split()[1] in {"403", "405"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8471", "127.0.0.1.evil.example", "localhost.evil", ""])
async def test_a_name_that_was_pointed_here_is_refused_also_with_the_token(daemon: Daemon, host: str) -> None:
    json_post = post(CREATE, "Content-Type: application/json", BEARER, host=host)
    status, text = await send(daemon, json_post, tcp=True)
    assert (status, "allowed_hosts" in text) == (421, True)
    upgrade = head(
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        BEARER,
        method="GET",
        path="/ws",
        host=host,
    )
    assert (await send(daemon, upgrade, tcp=True))[0] == 421


@pytest.mark.parametrize("path", ["/rpc", "/ws", "/metrics", "/healthz", "/readyz", "/"])
async def test_every_path_over_tcp_wants_the_token_and_no_foreign_page(daemon: Daemon, path: str) -> None:
    assert (await send(daemon, head(method="GET", path=path), tcp=True))[0] == 401
    foreign = head("Origin: http://evil.example", BEARER, method="GET", path=path)
    assert (await send(daemon, foreign, tcp=True))[0] == 403


async def test_a_body_that_never_ends_gets_408_and_names_the_limit(daemon: Daemon) -> None:
    async with raw(daemon) as (reader, writer):
        writer.write(head("Content-Type: application/json", "Content-Length: 100") + b'{"jsonrpc"')
        status, text = await answer(reader)
        assert (status, "limits.body_wait_ms = 300" in text) == (408, True)
        async with asyncio.timeout(20):
            assert await reader.read() == b""


@pytest.mark.parametrize("sent", [b"", b"POST /rpc HT", head("Content-Type: application/json")[:-2]])
async def test_a_head_that_never_ends_loses_its_connection(daemon: Daemon, sent: bytes) -> None:
    async with raw(daemon) as (reader, writer):
        writer.write(sent)
        async with asyncio.timeout(20):
            assert await reader.read() == b""


async def test_a_connection_that_is_kept_alive_and_idle_is_closed(daemon: Daemon) -> None:
    async with raw(daemon) as (reader, writer):
        writer.write(head(method="GET", path="/healthz"))
        assert (await answer(reader))[0] == 200
        writer.write(b"GET /healthz HTTP/1.1\r\nX-Drip: ")
        async with asyncio.timeout(20):
            assert await reader.read() == b""


async def test_slow_peers_keep_nobody_else_waiting(daemon: Daemon) -> None:
    dripping = [await asyncio.open_unix_connection(str(daemon.socket)) for _ in range(50)]
    for _, writer in dripping:
        writer.write(head("Content-Type: application/json", "Content-Length: 100") + b"{")
    async with asyncio.timeout(10):
        assert await vms(daemon) == 0
    for _, writer in dripping:
        writer.close()


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_client_that_ends_its_sending_side_behind_a_request_gets_its_answer(daemon: Daemon, tcp: bool) -> None:
    call = json.dumps(request("isa.assemble", source="nop\n" * 100)).encode()
    async with raw(daemon, tcp=tcp) as (reader, writer):
        writer.write(post(call, "Content-Type: application/json", BEARER))
        writer.write_eof()
        status, text = await answer(reader)
        assert (status, "result" in json.loads(text)) == (200, True)
        # It closes behind the answer.
        async with asyncio.timeout(20):
            assert await reader.read() == b""


async def test_over_tcp_a_call_that_waits_is_ended_where_its_caller_may_have_gone(daemon: Daemon) -> None:
    async with daemon.session() as session:
        vm = (await call(session, "kvm.create_vm"))["vm"]
        await call(session, "vm.kick_all_running_vcpus", vm=vm, hold="open", lease_ms=60_000)
        kick = json.dumps(request("vm.kick_all_running_vcpus", vm=vm, hold="next", wait_ms=60_000)).encode()
        async with raw(daemon, tcp=True) as (reader, writer):
            writer.write(post(kick, "Content-Type: application/json", BEARER))
            writer.write_eof()
            async with asyncio.timeout(20):
                assert await reader.read() == b""
        # Nobody is in line behind the open hold any more.
        await call(session, "vm.resume_all_kicked_vcpus", vm=vm, hold="open")
        await call(session, "vm.map_host_memory", vm=vm, size=4096)
        await call(session, "kvm.destroy_vm", vm=vm)


async def test_on_the_unix_socket_a_call_waits_for_a_caller_that_reads_on_and_not_for_one_that_has_gone(
    daemon: Daemon,
) -> None:
    async with daemon.session() as session:
        vm = (await call(session, "kvm.create_vm"))["vm"]
        await call(session, "vm.kick_all_running_vcpus", vm=vm, hold="open", lease_ms=60_000)
        kick = json.dumps(request("vm.kick_all_running_vcpus", vm=vm, hold="next", wait_ms=60_000)).encode()
        async with raw(daemon) as (reader, writer):
            writer.write(post(kick, "Content-Type: application/json"))
            writer.write_eof()
            # A kick behind it in the same line has its time and more.
            waits = request("vm.kick_all_running_vcpus", vm=vm, hold="third", wait_ms=1500)
            async with session.post("/rpc", json=waits) as response:
                assert (await response.json())["error"]["data"]["errno"] == "ETIMEDOUT"
            await call(session, "vm.resume_all_kicked_vcpus", vm=vm, hold="open")
            assert json.loads((await answer(reader))[1])["result"]["hold"] == "next"
        await call(session, "kvm.destroy_vm", vm=vm)


async def test_a_connection_of_which_no_request_is_let_in_is_closed_soon(tmp_path: Path) -> None:
    limits = {"VMMD_LIMITS__FIRST_REQUEST_MS": "50"}
    async with serving(tmp_path, "--port", "0", **EVALUATED, **limits) as daemon:
        for sent, tcp in itertools.product([b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"], [False, True]):
            async with raw(daemon, tcp=tcp) as (reader, writer), asyncio.timeout(20):
                writer.write(sent)
                with suppress(ConnectionError):
                    assert await reader.read() == b""
        async with raw(daemon) as (reader, writer):
            writer.write(head(method="GET", path="/healthz"))
            assert (await answer(reader))[0] == 200
            async with raw(daemon) as (silent, _), asyncio.timeout(20):
                with suppress(ConnectionError):
                    assert await silent.read() == b""
            # One that has asked may be idle for longer.
            writer.write(head(method="GET", path="/healthz"))
            assert (await answer(reader))[0] == 200


async def test_a_truncated_body_is_not_carried_out(daemon: Daemon) -> None:
    async with raw(daemon) as (_, writer):
        writer.write(head("Content-Type: application/json", f"Content-Length: {len(CREATE) + 1}") + CREATE)
        writer.write_eof()


@pytest.mark.parametrize(
    "chunks",
    [
        b"5\r\n{}\r\n0\r\n\r\n",
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-1\r\n{}\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    ],
)
async def test_chunks_that_lie_about_their_size_are_not_carried_out(daemon: Daemon, chunks: bytes) -> None:
    lie = head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunks
    async with raw(daemon) as (reader, writer):
        writer.write(lie)
        assert (await answer(reader))[0] in {400, 408, 413}


async def test_a_body_in_chunks_beyond_the_limit_gets_413(daemon: Daemon) -> None:
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    sent = head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunk * 3 + b"0\r\n\r\n"
    status, text = await send(daemon, sent)
    assert (status, "limits.body_bytes = 5000" in text) == (413, True)


async def test_two_lengths_or_a_length_beside_chunks_are_refused(daemon: Daemon) -> None:
    for lines in (
        ("Content-Length: 5", f"Content-Length: {len(CREATE)}"),
        ("Transfer-Encoding: chunked", f"Content-Length: {len(CREATE)}"),
    ):
        status, _ = await send(daemon, head("Content-Type: application/json", *lines) + CREATE)
        assert status == 400, lines


async def test_heads_have_limits(daemon: Daemon) -> None:
    many = [f"X-{number}: 1" for number in range(1000)]
    for lines in ([f"X-Long: {'x' * 20_000}"], many):
        status, _ = await send(daemon, head(*lines, method="GET", path="/healthz"))
        assert status == 400
    assert (await send(daemon, head(method="GET", path="/" + "x" * 20_000)))[0] == 400


async def test_deep_and_long_batches_are_refused_by_name(daemon: Daemon) -> None:
    for body, limit in ((b"[" * 2000, "limits.json_depth"), (b"[" + b"1," * 1000 + b"1]", "limits.batch_calls")):
        status, text = await send(daemon, post(body, "Content-Type: application/json"))
        assert (status, limit in text) == (200, True), text


async def test_more_connections_than_there_may_be_are_told_the_limits_name(tmp_path: Path) -> None:
    async with serving(tmp_path, **EVALUATED, VMMD_LIMITS__CONNECTIONS="3") as daemon:
        open_ones = []
        for _ in range(3):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(daemon.socket))
            open_ones.append(connection)
        async with asyncio.timeout(20):
            while True:
                try:
                    status, text = await send(daemon, head(method="GET", path="/healthz"))
                    break
                except (ConnectionError, asyncio.IncompleteReadError):
                    continue
        assert (status, "limits.connections = 3" in text) == (503, True)
        for connection in open_ones:
            connection.close()
        async with asyncio.timeout(20):
            while (await send(daemon, head(method="GET", path="/healthz")))[0] != 200:
                pass


async def test_more_calls_of_a_client_than_it_may_have_under_way_get_429(tmp_path: Path) -> None:
    async with serving(tmp_path, **EVALUATED, VMMD_LIMITS__CALLS_IN_FLIGHT_PER_CLIENT="2") as daemon:
        waiting = head("Content-Type: application/json", "Content-Length: 100")
        async with raw(daemon) as (_, first), raw(daemon) as (_, second):
            first.write(waiting)
            second.write(waiting)
            await first.drain()
            body = json.dumps(request("kvm.get_api_version")).encode()
            async with asyncio.timeout(20):
                while True:
                    status, text = await send(daemon, post(body, "Content-Type: application/json"))
                    if status != 200:
                        break
            assert (status, "limits.calls_in_flight_per_client = 2" in text) == (429, True)
        async with asyncio.timeout(20):
            while (await send(daemon, post(body, "Content-Type: application/json")))[0] != 200:
                pass


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "unknown"])
async def test_a_body_with_an_encoding_is_refused_with_a_sentence_and_logs_no_error(
    tmp_path: Path, encoding: str
) -> None:
    async with serving(tmp_path, **EVALUATED) as daemon:
        data = post(CREATE, "Content-Type: application/json", f"Content-Encoding: {encoding}")
        status, text = await send(daemon, data)
        assert (status, encoding in text, "send it as it is" in text) == (415, True, True)
        as_it_is = post(CREATE, "Content-Type: application/json", "Content-Encoding: identity")
        assert (await send(daemon, as_it_is))[0] == 200
        _, log = await daemon.stop()
    assert not [line for line in log if line["level"] == "error"]
