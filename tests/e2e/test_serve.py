"""The real process on real sockets: it starts, answers, drains, and says with its exit code why it did not."""

import asyncio
import base64
import json
import os
import signal
import stat
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.process import TOKEN, Daemon, call, endless_vm, environment, launch, request, serving
from vmmd import __version__


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_on_the_socket_and_drains_with_a_guest_running(tmp_path: Path, number: int) -> None:
    async with serving(tmp_path) as daemon:
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
        assert daemon.tcp is None
        async with daemon.session() as session:
            assert (await call(session, "daemon.get_info"))["version"] == __version__
            vm = await endless_vm(session)
            await call(session, "vm.start", vm=vm)
            before = int((await call(session, "vcpu.get_regs", vm=vm, vcpu=0))["x10"], 16)
            async with asyncio.timeout(10):
                while int((await call(session, "vcpu.get_regs", vm=vm, vcpu=0))["x10"], 16) == before:
                    pass
            code, log = await daemon.stop(number)
        assert code == 0
        assert not daemon.socket.exists()
        assert [line["event"] for line in log if line["event"].startswith("daemon.")] == [
            "daemon.ready",
            "daemon.draining",
            "daemon.stopped",
        ]
        assert daemon.process.stdout is not None
        assert await daemon.process.stdout.read() == b""


async def test_a_call_that_waits_for_a_guest_gets_its_answer_when_the_daemon_drains(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.session() as session:
        vm = await endless_vm(session)
        waiting = asyncio.create_task(session.post("/rpc", json=request("vcpu.run", vm=vm, vcpu=0)))
        async with asyncio.timeout(10):
            while not (await call(session, "vcpu.get_stats", vm=vm, vcpu=0))["instructions"]:
                pass
        code, _ = await daemon.stop()
        async with await waiting as response:
            answer = await response.json()
        assert (code, answer["error"]["data"]["errno"]) == (0, "ECANCELED")


async def test_a_batch_over_the_socket_is_one_update(tmp_path: Path) -> None:
    async with serving(tmp_path, VMMD_ENGINE="evaluated") as daemon, daemon.session() as session:
        vm = await endless_vm(session)
        await call(session, "vm.start", vm=vm)
        (old,) = (await call(session, "vm.get_memory_regions", vm=vm))["regions"]
        moved = old | {"guest_phys_addr": "0x0", "slot": 1}
        batch = [
            request("vm.kick_all_running_vcpus", vm=vm, hold="h"),
            request("vm.set_user_memory_region", vm=vm, hold="h", **(old | {"memory_size": 0})),
            request("vm.set_user_memory_region", vm=vm, hold="h", **moved),
            request("vm.resume_all_kicked_vcpus", vm=vm, hold="h"),
        ]
        async with session.post("/rpc", json=batch) as response:
            answers = await response.json()
        assert all("result" in answer for answer in answers), answers
        assert answers[0]["result"]["kicked"] == 1
        assert (await call(session, "kvm.list_vms"))[0]["ended"] == []
        notifications = [{key: value for key, value in entry.items() if key != "id"} for entry in batch[:1]]
        async with session.post("/rpc", json=notifications) as response:
            assert (response.status, await response.read()) == (204, b"")


async def test_tcp_wants_the_token_our_host_and_a_json_type(tmp_path: Path) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    info = request("daemon.get_info")
    async with serving(tmp_path, "--port", "0") as daemon, aiohttp.ClientSession(daemon.tcp) as session:
        assert daemon.tcp is not None
        assert daemon.tcp.startswith("http://127.0.0.1:")
        refusals = [
            (401, {}),
            (421, bearer | {"Host": "evil.example"}),
            (403, bearer | {"Origin": "http://evil.example"}),
            (415, bearer | {"Content-Type": "text/plain"}),
        ]
        for status, headers in refusals:
            async with session.post("/rpc", json=info, headers=headers) as response:
                assert response.status == status
        async with session.post("/rpc", json=info, headers=bearer) as response:
            assert (await response.json())["result"]["version"] == __version__
        async with session.get("/", headers=bearer) as response:
            assert (await response.json())["name"] == "vmmd"
        code, log = await daemon.stop()
        assert code == 0
        assert TOKEN not in json.dumps(log)


async def test_a_first_start_makes_a_token_file_and_its_token_opens_tcp(tmp_path: Path) -> None:
    file = tmp_path / "made" / "token"
    settings = {"VMMD_TOKEN_FILE": str(file)}
    config = tmp_path / "vmmd.toml"
    config.write_text("port = 0\n[log]\nlevel = 'debug'\n")
    socket = tmp_path / "vmmd.sock"
    arguments = ["serve", "--socket", str(socket), "--config", str(config)]
    clean = {name: value for name, value in environment(tmp_path, **settings).items() if name != "VMMD_TOKEN"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "vmmd",
        *arguments,
        env=clean,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(120):
        url = (await process.stdout.readline()).decode().split()[1]
    bearer = {"Authorization": f"Bearer {file.read_text().strip()}", "X-Request-Id": "test-1"}
    async with aiohttp.ClientSession(url, headers=bearer) as session:
        assert await call(session, "kvm.get_api_version") == 12
    code, log = await Daemon(process, socket, url).stop()
    assert code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (line,) = [line for line in log if line["event"] == "rpc.call"]
    assert (line["method"], line["request_id"], line["level"]) == ("kvm.get_api_version", "test-1", "debug")


async def test_only_calls_that_change_something_are_logged_one_line_each(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        async with daemon.session() as session:
            vm = (await call(session, "kvm.create_vm"))["vm"]
            await call(session, "kvm.list_vms")
            await call(session, "kvm.destroy_vm", vm=vm)
        _, log = await daemon.stop()
    calls = [(line["method"], line["vm"]) for line in log if line["event"] == "rpc.call"]
    assert calls == [("kvm.create_vm", None), ("kvm.destroy_vm", vm)]


async def test_a_socket_left_by_a_killed_daemon_is_taken_over(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        daemon.process.kill()
        await daemon.process.wait()
        assert daemon.socket.exists()
        async with serving(tmp_path) as second, second.session() as session:
            assert await call(session, "kvm.get_api_version") == 12


async def test_a_second_daemon_on_the_same_socket_is_a_bind_failure(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        second = await launch(tmp_path, "serve", "--socket", str(daemon.socket))
        stdout, stderr = await second.communicate()
        assert (second.returncode, stdout) == (3, b"")
        assert b"a daemon listens on" in stderr
        async with daemon.session() as session:
            assert await call(session, "kvm.get_api_version") == 12


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "said"),
    [
        (["serve", "--config", "missing.toml"], {}, 2, "missing.toml"),
        (["serve"], {"VMMD_LIMITS__VMS": "0"}, 2, "limits.vms"),
        (["serve"], {"VMMD_TOKEN": "short"}, 2, "token"),
        (["serve", "--port", "70000"], {}, 2, "port"),
        (["serve", "--port", "none"], {}, 2, "--port"),
        ([], {}, 2, "COMMAND"),
        (["serve", "--port", "0"], {"VMMD_HOST": "192.0.2.1"}, 3, "192.0.2.1"),
        (["serve", "--socket", "x" * 200], {}, 3, "--socket"),
    ],
)
async def test_a_start_that_cannot_be_says_why_and_with_which_code(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], code: int, said: str
) -> None:
    process = await launch(tmp_path, *arguments, **settings)
    stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (code, b"")
    assert said in stderr.decode()
    assert "Traceback" not in stderr.decode()


async def test_no_address_of_the_world_without_a_token_that_was_set_on_purpose(tmp_path: Path) -> None:
    clean = {name: value for name, value in environment(tmp_path).items() if name != "VMMD_TOKEN"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vmmd", "serve", "--port", "0"),
        env=clean | {"VMMD_HOST": "0.0.0.0"},  # noqa: S104
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert "VMMD_TOKEN" in stderr.decode()


async def test_the_version_is_printed(tmp_path: Path) -> None:
    process = await launch(tmp_path, "--version")
    stdout, _ = await process.communicate()
    assert (process.returncode, stdout.decode()) == (0, f"vmmd {__version__}\n")


async def test_large_memory_goes_through_and_too_large_a_body_is_refused_by_name(tmp_path: Path) -> None:
    async with serving(tmp_path, VMMD_LIMITS__BODY_BYTES="1000000") as daemon, daemon.session() as session:
        vm = (await call(session, "kvm.create_vm"))["vm"]
        hva = (await call(session, "vm.map_host_memory", vm=vm, size=1 << 20))["userspace_addr"]
        data = base64.b64encode(os.urandom(700_000)).decode()
        await call(session, "vm.write_host_memory", vm=vm, userspace_addr=hva, data=data)
        assert await call(session, "vm.read_host_memory", vm=vm, userspace_addr=hva, length=700_000) == {"data": data}
        async with session.post("/rpc", data="1" * 1_000_001, headers={"Content-Type": "application/json"}) as response:
            assert response.status == 413
            assert "limits.body_bytes = 1000000" in await response.text()
