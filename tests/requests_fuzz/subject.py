"""The daemon under test: a live process, VMs that may be harmed, and bystanders that nothing may reach."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.process import Daemon, call, serving
from tests.requests_fuzz.values import HVA, PAGE, World

JSON = {"Content-Type": "application/json"}
PREY = 4

# How long a request may take, in seconds, before its caller goes: some wait for what never comes.
PATIENCE_S = 5

# Whoever waits is not to wait long, and memory is not to be full after a few calls.
_SETTINGS = {
    "VMMD_LOG__LEVEL": "error",
    "VMMD_LIMITS__WAIT_MS": "5",
    "VMMD_LIMITS__MAX_WAIT_MS": "20",
    "VMMD_LIMITS__LEASE_MS": "20",
    "VMMD_LIMITS__MAX_LEASE_MS": "50",
    "VMMD_LIMITS__VMS": "24",
}
_COUNTING = "1: addi a0, a0, 1\n sd a0, 64(zero)\n j 1b"


class Subject:
    """A daemon, and what it is asked.

    Attributes:
        world: The VMs that may be harmed.
        spared: The bystanders' ids.
    """

    def __init__(self, daemon: Daemon, session: aiohttp.ClientSession) -> None:
        self.daemon = daemon
        self.world = World([])
        self.spared: frozenset[str] = frozenset()
        self._session = session

    async def send(self, body: bytes) -> tuple[int, bytes]:
        """Send a body; give the status and what came back.

        Raises:
            TimeoutError: It took longer than `PATIENCE_S`, and its connection was closed.
            aiohttp.ClientError: The daemon does not speak HTTP any more.
        """
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with self._session.post("/rpc", data=io.BytesIO(body), headers=JSON, timeout=timeout) as response:
            return response.status, await response.read()

    async def call(self, method: str, /, **params: Any) -> Any:
        """Make a call that has to succeed."""
        return await call(self._session, method, **params)

    async def settle_bystanders(self) -> None:
        """Create the bystanders: a parallel VM with a past, and a cooperative one between two advances."""
        parallel = await self._vm()
        await self.call("vcpu.run", vm=parallel, vcpu=0, timeout_ms=10_000)
        cooperative = await self._vm(execution="cooperative", seed=7)
        await self.call("vm.advance", vm=cooperative, instructions=1000)
        self.spared = frozenset({parallel, cooperative})

    async def snapshot(self) -> dict[str, Any]:
        """Give all that can be seen of the bystanders, but for what a clock of the host tells."""
        seen: dict[str, Any] = {}
        for info in await self.call("kvm.list_vms"):
            vm = info["vm"]
            if vm not in self.spared:
                continue
            regs = await self.call("vcpu.get_regs", vm=vm, vcpu=0)
            memory = await self.call("vm.read_host_memory", vm=vm, userspace_addr=HVA, length=16 * PAGE)
            seen[vm] = {
                "info": info,
                "regs": {name: value for name, value in regs.items() if name != "time"},
                "memory": hashlib.sha256(base64.b64decode(memory["data"])).hexdigest(),
                "regions": await self.call("vm.get_memory_regions", vm=vm),
                "stats": await self.call("vm.get_stats", vm=vm),
            }
            if info["execution"] == "cooperative":
                seen[vm]["digest"] = (await self.call("vm.advance", vm=vm, instructions=0))["digest"]
        return seen

    async def renew_prey(self) -> None:
        """Destroy every VM but the bystanders, and create the next that may be harmed."""
        for info in await self.call("kvm.list_vms"):
            if info["vm"] not in self.spared:
                await self.call("kvm.destroy_vm", vm=info["vm"])
        self.world.vms = [await self._vm() for _ in range(PREY - 1)]
        self.world.vms.append(await self._vm(execution="cooperative"))
        self.world.generation = (await self.call("vm.get_memory_regions", vm=self.world.vms[0]))["generation"]

    async def _vm(self, **params: Any) -> str:
        """Create a VM with memory, a logged slot, code and a vCPU; the code ends at an MMIO exit unless it is advanced.

        The parallel ones run into the hole behind their slot at once.
        """
        cooperative = params.get("execution") == "cooperative"
        vm: str = (await self.call("kvm.create_vm", **params))["vm"]
        await self.call("vm.map_host_memory", vm=vm, size=16 * PAGE)
        region = {"slot": 0, "flags": 1, "guest_phys_addr": 0, "memory_size": 4 * PAGE, "userspace_addr": HVA}
        await self.call("vm.set_user_memory_region", vm=vm, **region)
        source = _COUNTING if cooperative else "li a0, 0x9000\nsd a0, 64(zero)\nld a1, 0(a0)\nwfi"
        code = (await self.call("isa.assemble", source=source))["code"]
        await self.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=code)
        await self.call("vm.create_vcpu", vm=vm, vcpu=0)
        return vm


@asynccontextmanager
async def subject(folder: Path) -> AsyncIterator[Subject]:
    """Run a daemon with its bystanders in place."""
    async with serving(folder, **_SETTINGS) as daemon, daemon.session() as session:
        found = Subject(daemon, session)
        await found.settle_bystanders()
        await found.renew_prey()
        yield found


def decoded(status: int, answer: bytes) -> Any:
    """Give the decoded answer; None where nothing was said.

    Raises:
        ValueError: It is neither JSON with 200 nor nothing with 204.
    """
    if (status, answer) == (204, b""):
        return None
    if status != 200:
        raise ValueError(f"HTTP status {status}: {answer[:200]!r}")
    return json.loads(answer)
