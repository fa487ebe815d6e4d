"""The real daemon and real clients by WebSocket: killed while they hold, run or wait, and drained while they read."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.process import call, endless_vm, give_endless_guest, request, serving
from tests.rpc.sockets import client_transport

CLIENT = """
import asyncio, sys, aiohttp

async def main(path, frame):
    async with aiohttp.ClientSession("http://vmmd", connector=aiohttp.UnixConnector(path)) as session:
        async with session.ws_connect("/ws") as socket:
            await socket.send_str(frame)
            print("sent", flush=True)
            async for message in socket:
                print(message.data, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def client(path: Path, *requests: dict[str, Any]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process that sends one frame and prints what comes back, to be killed."""
    frame = json.dumps(list(requests) if len(requests) > 1 else requests[0])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, str(path), frame, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"sent\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def said(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    return json.loads(await process.stdout.readline())


async def is_free(session: aiohttp.ClientSession, vm: str) -> None:
    """Wait until nobody holds the VM."""
    await call(session, "vm.map_host_memory", vm=vm, size=0x1000, wait_ms=20_000)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def change(vm: str, hold: str) -> dict[str, Any]:
    """Take the slot away that the guest runs in."""
    fields = {"slot": 0, "flags": 0, "guest_phys_addr": 0, "memory_size": 0, "userspace_addr": 0}
    return request("vm.set_user_memory_region", vm=vm, hold=hold, **fields)


async def test_a_client_that_is_killed_while_it_holds_leaves_the_old_map_and_the_guest_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.session() as session, asyncio.timeout(60):
        vm = await endless_vm(session)
        await call(session, "vm.start", vm=vm)
        before = await call(session, "vm.get_memory_regions", vm=vm)
        batch = [
            request("vm.kick_all_running_vcpus", vm=vm, hold="h", lease_ms=60_000, wait_ms=20_000),
            change(vm, "h"),
        ]
        async with client(daemon.socket, *batch) as holder:
            assert not [answer for answer in await said(holder) if "error" in answer]
            assert (await call(session, "vm.get_memory_regions", vm=vm))["regions"] == []
            holder.send_signal(signal.SIGKILL)
            await is_free(session, vm)
        after = await call(session, "vm.get_memory_regions", vm=vm)
        assert after["regions"] == before["regions"]
        assert after["generation"] > before["generation"]
        retired = (await call(session, "vm.get_stats", vm=vm))["instructions"]
        while (await call(session, "vm.get_stats", vm=vm))["instructions"] == retired:
            await asyncio.sleep(0)
        assert (await call(session, "kvm.list_vms"))[0]["ended"] == []


async def test_a_client_that_is_killed_while_its_kick_waits_leaves_nobody_held(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.session() as session, asyncio.timeout(60):
        vm = await endless_vm(session)
        await call(session, "vm.kick_all_running_vcpus", vm=vm, hold="first", lease_ms=60_000)
        kick = request("vm.kick_all_running_vcpus", vm=vm, hold="second", lease_ms=60_000, wait_ms=60_000)
        async with client(daemon.socket, kick) as waiting:
            waiting.send_signal(signal.SIGKILL)
        await call(session, "vm.resume_all_kicked_vcpus", vm=vm, hold="first")
        await is_free(session, vm)


@pytest.mark.parametrize("in_batch", [False, True])
async def test_a_run_whose_client_is_killed_gives_the_vcpu_back(tmp_path: Path, in_batch: bool) -> None:
    async with serving(tmp_path) as daemon, daemon.session() as session, asyncio.timeout(60):
        vm = await endless_vm(session)
        run = request("vcpu.run", vm=vm, vcpu=0)
        async with client(daemon.socket, *[run] * (1 + in_batch)) as runner:
            while not (await call(session, "vm.get_stats", vm=vm))["instructions"]:
                await asyncio.sleep(0)
            runner.send_signal(signal.SIGKILL)
        probe = request("vcpu.run", vm=vm, vcpu=0, timeout_ms=1)
        while True:
            async with session.post("/rpc", json=probe) as response:
                error = (await response.json())["error"]["data"]["errno"]
            if error != "EBUSY":
                break
        assert error == "EINTR"


async def test_an_advance_over_http_whose_client_goes_ends(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.session() as session, asyncio.timeout(60):
        vm = (await call(session, "kvm.create_vm", execution="cooperative"))["vm"]
        await give_endless_guest(session, vm)
        body = json.dumps([request("vm.advance", vm=vm, instructions=10**15)]).encode()
        _, writer = await asyncio.open_unix_connection(daemon.socket)
        head = (
            f"POST /rpc HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        while not (await call(session, "vm.get_stats", vm=vm))["instructions"]:
            await asyncio.sleep(0)
        writer.transport.abort()
        assert (await call(session, "vm.advance", vm=vm, instructions=5, wait_ms=20_000))["instructions"] == 5


async def test_clients_that_are_killed_one_after_another_leave_no_descriptor_and_no_hold(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.session() as session, asyncio.timeout(60):
        vm = await endless_vm(session)
        await is_free(session, vm)
        before = descriptors(daemon.process.pid)
        for number in range(8):
            socket = await session.ws_connect("/ws")
            hold = request("vm.kick_all_running_vcpus", vm=vm, hold=f"h{number}", lease_ms=60_000, wait_ms=20_000)
            await socket.send_str(json.dumps(hold))
            await socket.receive()
            await socket.send_str(json.dumps(change(vm, f"h{number}")))
            # Gone without a word, as a process is that is killed.
            connection = socket._response.connection
            assert connection is not None
            assert connection.transport is not None
            connection.transport.abort()
            await is_free(session, vm)
        while descriptors(daemon.process.pid) > before:
            await asyncio.sleep(0)
        assert len((await call(session, "vm.get_memory_regions", vm=vm))["regions"]) == 1


async def test_a_drain_tells_events_to_the_last_and_closes_with_a_reason(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.session() as session, asyncio.timeout(60):
        vm = await endless_vm(session)
        async with session.ws_connect("/ws", autoclose=False) as socket:
            await socket.send_str(json.dumps(request("events.subscribe")))
            assert "result" in json.loads((await socket.receive()).data)
            daemon.process.send_signal(signal.SIGTERM)
            types = []
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                types.append((json.loads(message.data)["params"]["type"], json.loads(message.data)["params"]["vm"]))
            assert types == [("vm.destroyed", vm)]
            assert (message.data, message.extra) == (1001, "the daemon goes")
        code, log = await daemon.end()
        assert code == 0
        assert not [line for line in log if line["level"] == "error"]


async def test_a_peer_that_does_not_read_has_few_large_answers_made_for_it_and_gets_all_once_it_reads(
    tmp_path: Path,
) -> None:
    limits = {"VMMD_LIMITS__UNREAD_BYTES": str(24 << 20), "VMMD_LIMITS__UNREAD_MS": "60000"}
    async with serving(tmp_path, VMMD_ENGINE="evaluated", **limits) as daemon, daemon.session() as session:
        vm = (await call(session, "kvm.create_vm"))["vm"]
        hva = (await call(session, "vm.map_host_memory", vm=vm, size=8 << 20))["userspace_addr"]
        read = request("vm.read_host_memory", vm=vm, userspace_addr=hva, length=8 << 20)
        async with session.ws_connect("/ws", max_msg_size=0) as ws:
            transport = client_transport(ws)
            transport.pause_reading()
            for number in range(8):
                await ws.send_json(read | {"id": number})
            for _ in range(300):
                await call(session, "kvm.get_api_version")
            async with session.get("/metrics") as response:
                metrics = await response.text()
            made = [
                line for line in metrics.splitlines() if line.startswith("vmmd_rpc_calls_total") and "read_host" in line
            ]
            assert sum(float(line.split()[-1]) for line in made) <= 2
            transport.resume_reading()
            async with asyncio.timeout(30):
                assert {(await ws.receive_json())["id"] for _ in range(8)} == set(range(8))
