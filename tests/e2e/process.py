"""A process of `vmmd serve` for tests, and what speaks with it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

TOKEN = "a token of the tests"  # noqa: S105
ENDLESS = "1: addi a0, a0, 1\n   j 1b"


class Daemon:
    """A process of `vmmd serve`, and sessions that speak with it."""

    def __init__(self, process: Any, socket: Path, tcp: str | None) -> None:
        self.process = process
        self.socket = socket
        self.tcp = tcp

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Give a session over the UNIX socket."""
        connector = aiohttp.UnixConnector(str(self.socket))
        async with aiohttp.ClientSession("http://vmmd", connector=connector) as session:
            yield session

    async def stop(self, number: int = signal.SIGTERM) -> tuple[int, list[dict[str, Any]]]:
        """Signal the process; give its exit code and its log."""
        self.process.send_signal(number)
        return await self.end()

    async def end(self) -> tuple[int, list[dict[str, Any]]]:
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            log = await self.process.stderr.read()
            code = await self.process.wait()
        return code, [json.loads(line) for line in log.splitlines()]


def environment(folder: Path, **settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VMMD_", "XDG_"))}
    # All tests of a session share what the compiled engine keeps: only the first start has to make it.
    cache = str(folder.parent / "engine-cache")
    given = {"HOME": str(folder), "VMMD_TOKEN": TOKEN, "VMMD_CACHE_DIR": cache} | settings
    # What is empty is not set at all.
    return clean | {name: value for name, value in given.items() if value}


async def launch(
    folder: Path, *arguments: str, under: Sequence[str] = (), **settings: str
) -> asyncio.subprocess.Process:
    """Start `vmmd` with arguments and settings; `under` is a command that runs it in its own place."""
    return await asyncio.create_subprocess_exec(
        *under,
        sys.executable,
        "-m",
        "vmmd",
        *arguments,
        env=environment(folder, **settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def serving(folder: Path, *arguments: str, under: Sequence[str] = (), **settings: str) -> AsyncIterator[Daemon]:
    """Run a daemon and wait for its line; kill it if the test has not ended it."""
    socket = folder / "vmmd.sock"
    process = await launch(folder, "serve", "--socket", str(socket), *arguments, under=under, **settings)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = (await process.stdout.readline()).decode()
        assert line, (await process.communicate())[1].decode()
        unix, *tcp = line.split()
        assert unix == f"unix://{socket}"
        yield Daemon(process, socket, tcp[0] if tcp else None)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def request(name: str, /, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": name, "params": params, "id": name}


async def call(session: aiohttp.ClientSession, name: str, /, **params: Any) -> Any:
    async with session.post("/rpc", json=request(name, **params)) as response:
        answer = await response.json()
    assert "error" not in answer, answer
    return answer["result"]


async def endless_vm(session: aiohttp.ClientSession) -> str:
    """Make a VM whose vCPU 0 would run for good."""
    vm = (await call(session, "kvm.create_vm"))["vm"]
    await give_endless_guest(session, vm)
    return vm


async def give_endless_guest(session: aiohttp.ClientSession, vm: str) -> None:
    """Give a VM memory and a vCPU that would run for good."""
    hva = (await call(session, "vm.map_host_memory", vm=vm, size=0x1000))["userspace_addr"]
    fields = {"slot": 0, "flags": 0, "guest_phys_addr": 0, "memory_size": 0x1000, "userspace_addr": hva}
    await call(session, "vm.set_user_memory_region", vm=vm, **fields)
    code = (await call(session, "isa.assemble", source=ENDLESS))["code"]
    await call(session, "vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=code)
    await call(session, "vm.create_vcpu", vm=vm, vcpu=0)
