"""A daemon in production: what it tells its service manager and its monitoring, and how it ends."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.process import TOKEN, Daemon, call, endless_vm, environment, launch, request, serving

CONFIG = Path(__file__).parents[2] / "config"
EVALUATED = {"VMMD_ENGINE": "evaluated"}

# The process is what the service manager would start: the sockets from 3 on, and its own pid in the environment.
ACTIVATED = """
import os, sys
descriptors = [int(word) for word in sys.argv[1].split(",")]
for target, descriptor in enumerate(descriptors, 3):
    os.dup2(descriptor, target, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(descriptors)), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-m", "vmmd", "serve", *sys.argv[3:]])
"""


def names(folder: Path) -> list[str]:
    """Give the names of what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


async def page(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with session.get(path) as response:
        return response.status, await response.text()


async def test_monitoring_reads_health_readiness_and_metrics_on_the_socket(tmp_path: Path) -> None:
    async with serving(tmp_path, **EVALUATED) as daemon, daemon.session() as session:
        await call(session, "kvm.create_vm")
        assert (await page(session, "/healthz"))[0] == 200
        assert await page(session, "/readyz") == (200, '{"status": "ready"}')
        status, text = await page(session, "/metrics")
        assert status == 200
        assert 'vmmd_rpc_calls_total{method="kvm.create_vm",outcome="ok"} 1.0' in text
        assert "vmmd_vms 1.0" in text
        assert "vmmd_connections 1.0" in text
        async with session.post("/rpc", data="{}", headers={"Content-Type": "text/plain"}):
            pass
        assert 'vmmd_http_refusals_total{status="415"} 1.0' in (await page(session, "/metrics"))[1]


async def test_over_tcp_metrics_want_the_token(tmp_path: Path) -> None:
    async with serving(tmp_path, "--port", "0", **EVALUATED) as daemon, aiohttp.ClientSession(daemon.tcp) as session:
        assert (await page(session, "/metrics"))[0] == 401
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        async with session.get("/metrics", headers=bearer) as response:
            assert response.status == 200


@asynccontextmanager
async def draining(folder: Path) -> AsyncIterator[tuple[Daemon, aiohttp.ClientSession, asyncio.Task[Any], str]]:
    """Give a daemon that was told to stop and has a minute for a call that waits; its session, that call and its VM."""
    async with serving(folder, **EVALUATED, VMMD_LIMITS__DRAIN_MS="60000") as daemon, daemon.session() as session:
        vm = await endless_vm(session)
        waiting = asyncio.create_task(ask(session, request("vcpu.run", vm=vm, vcpu=0)))
        async with asyncio.timeout(20):
            while not (await call(session, "vcpu.get_stats", vm=vm, vcpu=0))["instructions"]:
                pass
            await call(session, "vm.kick_all_running_vcpus", vm=vm, hold="left open", lease_ms=60_000)
            daemon.process.send_signal(signal.SIGTERM)
            while (await page(session, "/readyz"))[0] == 200:
                pass
        yield daemon, session, waiting, vm
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def ask(session: aiohttp.ClientSession, body: Any) -> Any:
    async with session.post("/rpc", json=body) as response:
        return await response.json()


async def test_while_it_drains_new_calls_are_refused_and_it_says_so(tmp_path: Path) -> None:
    async with draining(tmp_path) as (_, session, waiting, vm):
        async with session.post("/rpc", json=request("vm.get_stats", vm=vm)) as response:
            assert response.status == 503
            assert "shutting down" in await response.text()
        assert await page(session, "/readyz") == (503, '{"status": "draining"}')
        assert (await page(session, "/healthz"))[0] == 200
        metrics = (await page(session, "/metrics"))[1]
        assert 'vmmd_holds_ended_total{outcome="lapsed"} 1.0' in metrics
        assert "vmmd_holds_open 0.0" in metrics
        assert not waiting.done()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_before_it_listens_ends_it_with_0_and_nothing_is_made(tmp_path: Path, number: int) -> None:
    socket, settings = tmp_path / "vmmd.sock", tmp_path / "settings.toml"
    os.mkfifo(settings)
    process = await launch(tmp_path, "serve", "--socket", str(socket), "--config", str(settings))
    # It reads its settings now, and gets none.
    with await asyncio.to_thread(settings.open, "wb"):
        process.send_signal(number)
        async with asyncio.timeout(20):
            assert await process.communicate() == (b"", b"")
    assert process.returncode == 0
    assert not socket.exists()


async def test_what_may_be_meant_otherwise_in_its_settings_is_warned_of(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    settings = {"VMMD_TOKEN": "", "VMMD_TOKEN_FILE": str(token), "VMMD_PROT": "8000"}
    async with serving(tmp_path, "--port", "0", **EVALUATED, **settings) as daemon:
        _, log = await daemon.stop()
    warned = {line["event"]: line for line in log if line["level"] == "warning"}
    assert warned.keys() == {"settings.unknown_variable", "settings.token_file_is_open"}
    assert warned["settings.unknown_variable"]["variable"] == "VMMD_PROT"
    assert "chmod 600" in warned["settings.token_file_is_open"]["advice"]
    assert TOKEN not in json.dumps(log)


async def test_over_http_a_large_answer_is_not_made_before_its_client_has_read_the_one_before(tmp_path: Path) -> None:
    size = 4 << 20
    async with (
        serving(tmp_path, **EVALUATED, VMMD_LIMITS__UNREAD_BYTES=str(2 * size)) as daemon,
        daemon.session() as session,
    ):
        vm = (await call(session, "kvm.create_vm"))["vm"]
        hva = (await call(session, "vm.map_host_memory", vm=vm, size=size))["userspace_addr"]
        read = request("vm.read_host_memory", vm=vm, userspace_addr=hva, length=size)
        # Whoever asks has all of its connections in one, so the second waits for its own first.
        async with session.post("/rpc", json=read) as first:
            second = asyncio.create_task(session.post("/rpc", json=read))
            while "vmmd_rpc_in_flight 2.0" not in (metrics := await (await session.get("/metrics")).text()):
                await asyncio.sleep(0)
            assert 'vmmd_rpc_calls_total{method="vm.read_host_memory",outcome="ok"} 1.0' in metrics
            await first.read()
        answer = await (await second).json()
        assert len(answer["result"]["data"]) > size


async def test_the_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with draining(tmp_path) as (daemon, _, waiting, _):
        assert not waiting.done()
        daemon.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await daemon.process.wait() == -signal.SIGTERM
        assert not daemon.socket.exists()


async def test_a_websocket_is_told_that_the_daemon_goes(tmp_path: Path) -> None:
    async with serving(tmp_path, **EVALUATED) as daemon, daemon.session() as session, session.ws_connect("/ws") as ws:
        await ws.send_json(request("kvm.get_api_version"))
        assert (await ws.receive_json())["result"] == 12
        daemon.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            message = await ws.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)


async def test_a_name_with_newlines_and_controls_makes_no_line_of_its_own(tmp_path: Path) -> None:
    hostile = '\n{"event":"daemon.ready"}\r\x1b[2J\u2028\u202e'
    async with serving(tmp_path, **EVALUATED, VMMD_LOG__LEVEL="debug") as daemon:
        async with daemon.session() as session:
            await call(session, "kvm.create_vm", name=hostile)
            await ask(session, request("vm.get_stats", vm=hostile))
            await ask(session, request(hostile))
        _, log = await daemon.stop()
    assert [line["event"] for line in log].count("daemon.ready") == 1


async def test_the_service_manager_is_told_of_start_life_and_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        loop = asyncio.get_running_loop()

        async def next_with(word: str) -> str:
            async with asyncio.timeout(20):
                while word not in (message := (await loop.sock_recv(manager, 4096)).decode()):
                    pass
            return message

        async with serving(tmp_path, **EVALUATED, **told) as daemon:
            assert str(daemon.socket) in await next_with("READY=1")
            await next_with("WATCHDOG=1")
            await next_with("WATCHDOG=1")
            code, _ = await daemon.stop()
            await next_with("STOPPING=1")
        assert code == 0


async def activated(folder: Path, sockets: dict[str, socket.socket], *arguments: str) -> asyncio.subprocess.Process:
    """Start a daemon with sockets that are bound already."""
    descriptors = [passed.fileno() for passed in sockets.values()]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ACTIVATED, ",".join(map(str, descriptors)), ":".join(sockets), *arguments),
        env=environment(folder, **EVALUATED),
        pass_fds=descriptors,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_sockets_that_were_passed_are_served_and_their_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "passed.sock"
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        unix.bind(str(path))
        unix.listen()
        port = tcp.getsockname()[1]
        process = await activated(tmp_path, {"tcp": tcp, "unix": unix})
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert (await process.stdout.readline()).decode() == f"unix://{path} http://127.0.0.1:{port}\n"
        daemon = Daemon(process, path, f"http://127.0.0.1:{port}")
        async with daemon.session() as session:
            assert await call(session, "kvm.get_api_version") == 12
        async with aiohttp.ClientSession(daemon.tcp) as session:
            assert (await page(session, "/"))[0] == 401
        code, _ = await daemon.stop()
    assert code == 0
    assert path.exists()


@pytest.mark.parametrize(("name", "said"), [("web", "FileDescriptorName="), ("tcp", "no listening stream socket")])
async def test_a_socket_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "passed.sock"))
        unix.listen()
        process = await activated(tmp_path, {name: unix})
        _, stderr = await process.communicate()
    assert process.returncode == 3
    assert said in stderr.decode()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    # The program's place is the distribution's matter.
    for name in ("vmmd.service", "vmmd.socket"):
        text = (CONFIG / name).read_text().replace("/usr/bin/vmmd", sys.executable)
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / name) for name in ("vmmd.service", "vmmd.socket")]
    verified = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")


async def test_config_show_tells_where_each_setting_comes_from_and_hides_the_token(tmp_path: Path) -> None:
    file = tmp_path / "vmmd.toml"
    file.write_text("[limits]\nvms = 3\nwait_ms = 4\n")
    arguments = ["--config", str(file), "--set", "limits.wait_ms=5"]
    process = await launch(tmp_path, "config", "show", "--json", *arguments, VMMD_LIMITS__BATCH_CALLS="6")
    table = json.loads((await process.communicate())[0])
    assert process.returncode == 0
    assert table["limits.vms"] == {"value": 3, "source": "file"}
    assert table["limits.wait_ms"] == {"value": 5, "source": "command line"}
    assert table["limits.batch_calls"] == {"value": 6, "source": "environment"}
    assert table["limits.json_depth"]["source"] == "default"
    assert table["token"]["source"] == "environment"
    assert TOKEN not in json.dumps(table)
    process = await launch(tmp_path, "config", "show", *arguments)
    shown = (await process.communicate())[0].decode()
    assert TOKEN not in shown
    (tmp_path / "shown.toml").write_text(shown)
    again = await launch(tmp_path, "config", "show", "--json", "--config", str(tmp_path / "shown.toml"))
    settings = json.loads((await again.communicate())[0])
    assert settings["limits.wait_ms"] == {"value": 5, "source": "file"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[limits]\nvms = 0", "limits.vms"),
        ("unknown = 1", "unknown"),
        ('port = 1\nhost = "0.0.0.0"', "VMMD_TOKEN"),
        ("port = 70000", "port"),
    ],
)
async def test_config_check_finds_what_a_start_would_whatever_the_environment(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "vmmd.toml"
    file.write_text(text)
    process = await launch(tmp_path, "config", "check", str(file), VMMD_LIMITS__VMS="1", VMMD_PORT="1")
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert said in stderr.decode()
    good = await launch(tmp_path, "config", "check", str(CONFIG / "vmmd.toml"))
    await good.communicate()
    assert good.returncode == 0
    assert names(tmp_path) == ["vmmd.toml"]


async def test_any_setting_can_be_set_on_the_command_line_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    for assignment, said in (("limits.vmz=1", "limits.vmz"), ("limits.vms", "VALUE"), ("limits.vms=x", "limits.vms")):
        process = await launch(tmp_path, "serve", "--set", assignment)
        _, stderr = await process.communicate()
        assert (process.returncode, said in stderr.decode()) == (2, True), assignment
    arguments = ["--set", "limits.vms=1", "--set", "engine=evaluated"]
    async with serving(tmp_path, *arguments) as daemon, daemon.session() as session:
        assert (await call(session, "daemon.get_info"))["limits"]["vms"] == 1


async def test_a_log_that_nobody_reads_stops_neither_calls_nor_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path, "--set", "log.calls_per_second=100000", **EVALUATED) as daemon:
        async with daemon.session() as session:
            # Each call has a line, and together they are more than the pipe and this side's buffer take.
            for _ in range(4):
                await ask(session, [request("vm.stop", vm=f"none{number}") for number in range(1000)])
        daemon.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            # The pipe is full: nothing of it is read before the process has ended.
            while daemon.process.returncode is None:
                await asyncio.sleep(0.01)
        assert daemon.process.returncode == 0


async def test_sighup_drains_as_sigterm_does(tmp_path: Path) -> None:
    async with serving(tmp_path, **EVALUATED) as daemon:
        code, log = await daemon.stop(signal.SIGHUP)
        assert (code, log[-1]["event"]) == (0, "daemon.stopped")
        assert not daemon.socket.exists()


async def test_a_hold_has_no_name_in_the_log_and_the_frames_of_a_websocket_have_numbers(tmp_path: Path) -> None:
    async with serving(tmp_path, **EVALUATED, VMMD_LOG__LEVEL="debug") as daemon:
        async with daemon.session() as session, session.ws_connect("/ws") as ws:
            for name, params in (
                ("kvm.create_vm", {}),
                ("vm.kick_all_running_vcpus", {"vm": "vm1", "hold": "secret1"}),
                ("vm.kick_all_running_vcpus", {"vm": "vm1", "hold": "secret2"}),
                ("vm.write_guest_memory", {"vm": "vm1", "hold": "secret1", "guest_phys_addr": 0, "data": "AA=="}),
                ("vm.resume_all_kicked_vcpus", {"vm": "vm1", "hold": "secret1"}),
                ("vm.write_guest_memory", {"vm": "vm1", "hold": "secret1", "guest_phys_addr": 0, "data": "AA=="}),
                ("vm.kick_all_running_vcpus", {"vm": "vm1", "hold": "secret3" * 100}),
            ):
                await ws.send_json(request(name, **params))
                await ws.receive_json()
        _, log = await daemon.stop()
    calls = [line for line in log if line["event"] == "rpc.call"]
    assert [line["frame"] for line in calls] == [1, 2, 3, 4, 5, 6, 7]
    assert calls[2]["errno"] == "EDEADLK"
    assert not [line for line in log if "secret" in json.dumps(line)]


async def test_a_kick_in_line_is_refused_when_the_drain_ends_the_hold_before_it(tmp_path: Path) -> None:
    async with serving(tmp_path, **EVALUATED) as daemon, daemon.session() as session:
        vm = (await call(session, "kvm.create_vm"))["vm"]
        await call(session, "vm.kick_all_running_vcpus", vm=vm, hold="open", lease_ms=60_000)
        async with session.ws_connect("/ws") as ws:
            await ws.send_json(request("vm.kick_all_running_vcpus", vm=vm, hold="in line", wait_ms=60_000))
            # It stands in line once another answer has come behind it, and the same name is in line already.
            await ws.send_json(request("vm.kick_all_running_vcpus", vm=vm, hold="in line", wait_ms=60_000))
            assert "in line already" in (await ws.receive_json())["error"]["message"]
            daemon.process.send_signal(signal.SIGTERM)
            answer = await ws.receive_json()
        assert answer["error"]["data"]["errno"] == "ESHUTDOWN"


async def test_over_tcp_nobody_takes_the_last_connection_from_the_unix_socket(tmp_path: Path) -> None:
    async with serving(tmp_path, "--port", "0", **EVALUATED, VMMD_LIMITS__CONNECTIONS="3") as daemon:
        assert daemon.tcp is not None
        host, _, port = daemon.tcp.removeprefix("http://").partition(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(8)]
        for connection in idle[2:]:
            # There was room for two: all others are told so, or reset.
            with suppress(ConnectionError):
                text = (await asyncio.to_thread(connection.recv, 1000)).decode()
                assert "limits.connections = 3" in text
        async with daemon.session() as session:
            assert (await page(session, "/healthz"))[0] == 200
        for connection in idle:
            connection.close()


async def test_where_files_are_few_the_daemon_says_how_many_connections_it_has_room_for(tmp_path: Path) -> None:
    few = ("sh", "-c", 'ulimit -n 67 && exec "$@"', "sh")
    async with serving(tmp_path, under=few, **EVALUATED, VMMD_LIMITS__CONNECTIONS="1000") as daemon:
        async with daemon.session() as session:
            held = [await asyncio.open_unix_connection(str(daemon.socket)) for _ in range(3)]
            status, text = await page(session, "/healthz")
            assert (status, "limits.connections = 3" in text) == (503, True)
            for _, writer in held:
                writer.close()
                await writer.wait_closed()
        _, log = await daemon.stop()
    warning = next(line for line in log if line["event"] == "daemon.fewer_connections")
    assert (warning["connections"], warning["setting"]) == (3, "limits.connections=1000")
    assert "LimitNOFILE" in warning["advice"]
