"""https:// and wss:// in both twins, through a proxy that ends TLS in front of the daemon's UNIX socket."""

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from vmmd_client.sync.local_daemon import local_daemon

ASKS = {
    "async": """
import asyncio
from vmmd_client import VmmdError, connect
async def main():
    async with connect(URL) as vmmd:
        async with vmmd.events() as events:
            vm = await vmmd.kvm.create_vm("behind TLS", execution="cooperative")
            print((await events.receive(20)).type, (await vm.advance(5, progress=print)).ended_by)
        await vm.destroy()
try: asyncio.run(main())
except VmmdError as error: print(type(error).__name__, error)
""",
    "sync": """
from vmmd_client.sync import VmmdError, connect
def main():
    with connect(URL) as vmmd:
        with vmmd.events() as events:
            vm = vmmd.kvm.create_vm("behind TLS", execution="cooperative")
            print(events.receive(20).type, vm.advance(5, progress=print).ended_by)
        vm.destroy()
try: main()
except VmmdError as error: print(type(error).__name__, error)
""",
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that it has signed itself, and behind it its key."""
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(made), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command.split(), *names], check=True, capture_output=True, timeout=60)
    made.write_text((folder / "certificate.pem").read_text() + made.read_text())
    return made


@pytest.fixture(scope="module")
def socket_path() -> Iterator[str]:
    with local_daemon() as url:
        yield url.removeprefix("unix://")


@contextlib.asynccontextmanager
async def proxy(certificate: Path, socket_path: str) -> AsyncIterator[int]:
    """End TLS on a port of localhost, and hand the bytes on to a UNIX socket and back."""
    ongoing: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_unix_connection(socket_path)
        for task in (relay(reader, theirs[1]), relay(theirs[0], writer)):
            ongoing.add(asyncio.create_task(task))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = await asyncio.start_server(accept, "localhost", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*ongoing), 20)


async def ask(twin: str, url: str, **environment: str) -> str:
    """Give what a program prints that asks for events and progress."""
    program = ASKS[twin].replace("URL", repr(url))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=environment
    )
    written, _ = await asyncio.wait_for(process.communicate(), 60)
    return written.decode().strip()


@pytest.mark.parametrize(("twin", "scheme"), [("async", "https"), ("async", "wss"), ("sync", "https")])
async def test_calls_events_and_progress_go_through_tls_to_a_certificate_that_is_trusted(
    certificate: Path, socket_path: str, twin: str, scheme: str
):
    async with proxy(certificate, socket_path) as port:
        url = f"{scheme}://localhost:{port}"
        assert await ask(twin, url, SSL_CERT_FILE=str(certificate)) == "vm.created idle"
        refused = await ask(twin, url)
    assert refused.startswith("ConnectError")
    assert "certificate" in refused.lower()


async def test_threads_are_told_to_take_https_for_calls_by_websocket(certificate: Path, socket_path: str):
    async with proxy(certificate, socket_path) as port:
        told = await ask("sync", f"wss://localhost:{port}", SSL_CERT_FILE=str(certificate))
    assert told.startswith("ConnectError")
    assert "https://" in told
