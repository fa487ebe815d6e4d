"""What tasks alone can do: be cancelled, and be many on one connection."""

import asyncio
import json
from typing import Any

import pytest

from vmmd_client import Client, ClientClosed, Disconnected, MemoryTransport, Place, connect
from vmmd_client.testing import MemoryDaemon

from .web_server import Server, version


@pytest.fixture
def websocket_url(server: Server) -> str:
    return server.unix_url.replace("unix:", "ws+unix:")


class Late:
    """Answers of one method that come when they are let."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.asked = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, asked: Any) -> Any:
        if asked["method"] == self.method:
            self.asked.set()
            await self.release.wait()
            return 99
        return await version(asked)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_call_is_told_to_the_daemon_and_its_late_answer_reaches_nobody(
    server: Server, websocket_url: str
):
    server.answer = late = Late("vcpu.run")
    async with connect(websocket_url) as vmmd:
        call = asyncio.create_task(vmmd.call("vcpu.run", vm="vm1", vcpu=0))
        await late.asked.wait()
        await cancelled(call)
        late.release.set()
        assert [await vmmd.kvm.get_api_version() for _ in range(3)] == [12, 12, 12]
        assert [told["params"] for told in server.notified] == [{"id": 2}]
    assert len(server.connections) == 1


@pytest.mark.parametrize("batched", [True, False])
async def test_a_cancelled_batch_or_resume_is_carried_through(server: Server, websocket_url: str, batched: bool):
    server.answer = late = Late("vm.resume_all_kicked_vcpus")
    async with connect(websocket_url) as vmmd:

        async def send() -> None:
            if not batched:
                await vmmd.call("vm.resume_all_kicked_vcpus", vm="vm1", hold="h")
                return
            async with vmmd.batch() as batch:
                batch.call("vm.kick_all_running_vcpus", vm="vm1", hold="h")
                batch.call("vm.resume_all_kicked_vcpus", vm="vm1", hold="h")

        call = asyncio.create_task(send())
        await late.asked.wait()
        await cancelled(call)
        late.release.set()
        assert await vmmd.kvm.get_api_version() == 12
    assert server.notified == []


async def test_calls_under_way_are_told_that_the_client_was_closed(server: Server, websocket_url: str):
    server.answer = late = Late("vcpu.run")
    async with connect(websocket_url) as vmmd:
        call = asyncio.create_task(vmmd.call("vcpu.run", vm="vm1", vcpu=0))
        await late.asked.wait()
    with pytest.raises(ClientClosed):
        await call
    late.release.set()


async def test_all_calls_of_a_lost_websocket_are_told_so_and_the_next_call_has_a_new_one(
    server: Server, websocket_url: str
):
    server.answer = late = Late("vcpu.run")
    async with connect(websocket_url) as vmmd:
        under_way = [asyncio.create_task(vmmd.call("vcpu.run", vm="vm1", vcpu=n)) for n in range(3)]
        await late.asked.wait()
        (socket,) = server.sockets
        await socket.close(code=1001, message=b"the daemon goes")
        ends = await asyncio.gather(*under_way, return_exceptions=True)
        assert [type(end) for end in ends] == [Disconnected] * 3
        assert {end.close_code for end in ends if isinstance(end, Disconnected)} == {1001}
        late.release.set()
        assert await vmmd.kvm.get_api_version() == 12
    assert len(server.connections) == 2


async def test_a_message_that_the_daemon_finds_too_large_is_not_sent_again(server: Server, websocket_url: str):
    times = 0

    async def too_large(asked: Any) -> int:
        nonlocal times
        times += 1
        await server.sockets[-1].close(code=1009, message=b"the frame has more than limits.body_bytes")
        return 12

    async with connect(websocket_url) as vmmd:
        server.answer = too_large
        with pytest.raises(Disconnected, match=r"limits\.body_bytes"):
            await vmmd.kvm.get_api_version()
    assert times == 1


async def test_a_cancelled_wait_for_an_event_loses_none():
    daemon = MemoryDaemon()
    async with daemon.connect() as vmmd, vmmd.events() as events:
        waiting = asyncio.create_task(events.receive())
        await asyncio.sleep(0)
        await cancelled(waiting)
        daemon.emit("vm.started", "vm1")
        assert (await events.receive()).seq == 1


class ScriptedLink:
    """A link that gives what a script says: a standing is the answer to a subscription, an exception is raised."""

    def __init__(self, script: list[Any]) -> None:
        self._script = script
        self.asked: list[Any] = []

    async def open(self) -> "ScriptedLink":
        return self

    async def send(self, body: bytes) -> None:
        self.asked.append(json.loads(body))

    async def receive(self, timeout_s: float | None) -> bytes:
        step = self._script.pop(0)
        if isinstance(step, Exception):
            raise step
        head = {"jsonrpc": "2.0", "id": self.asked[-1]["id"]}
        if "epoch" in step:
            return json.dumps({**head, "result": step}).encode()
        return json.dumps({"jsonrpc": "2.0", "method": "event", "params": step}).encode()

    async def aclose(self) -> None:
        pass


async def test_a_connection_lost_before_the_gap_of_a_new_start_was_read_asks_for_it_again():
    started = {"time": "2026-01-02T03:04:05.678901Z", "vm": "vm1", "type": "vm.started"}
    link = ScriptedLink(
        [
            {"seq": 5, "oldest": 1, "epoch": "first"},
            {**started, "seq": 6},
            Disconnected("the daemon went"),
            {"seq": 2, "oldest": 1, "epoch": "second"},
            Disconnected("and the network behind it"),
            {"seq": 2, "oldest": 1, "epoch": "second"},
            {**started, "seq": 0, "type": "gap", "vm": None, "missed": None},
            Disconnected("once more"),
            {"seq": 2, "oldest": 1, "epoch": "second"},
            {**started, "seq": 1},
        ]
    )

    async def answer(body: bytes) -> bytes:
        return b""

    events = Client(MemoryTransport(answer, link.open)).events()
    assert [(await events.receive()).seq for _ in range(3)] == [6, 0, 1]
    assert [(asked["params"].get("since"), asked["params"].get("epoch")) for asked in link.asked] == [
        (None, None),
        (6, "first"),
        (6, "first"),
        (0, "second"),
    ]
    assert events.place == Place(1, "second")
