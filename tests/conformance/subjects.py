"""The two ways to a VM: through the RPC of a daemon process, and in process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.conformance.replay import Failure, RunExit
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import HltExit, InternalErrorExit, MmioExit
from vmmd.kvm.system import System
from vmmd.kvm.vm import Vm
from vmmd_client import Client, calls
from vmmd_client import KvmError as RemoteError
from vmmd_client import Vm as RemoteVm
from vmmd_client.wire.protocol import Call

_PREFIX = "KVM_EXIT_"


class InProcess:
    """A VM of the core, without a daemon around it."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    async def map_host_memory(self, size: int) -> int:
        return await self._vm.map_host_memory(size)

    async def unmap_host_memory(self, userspace_addr: int, size: int) -> None:
        await self._vm.unmap_host_memory(userspace_addr, size)

    async def read_host_memory(self, userspace_addr: int, length: int) -> bytes:
        return await self._vm.read_host_memory(userspace_addr, length)

    async def write_host_memory(self, userspace_addr: int, data: bytes) -> None:
        await self._vm.write_host_memory(userspace_addr, data)

    async def set_user_memory_region(self, slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
        try:
            await self._vm.set_user_memory_region(slot, flags, gpa, size, hva)
        except KvmError as error:
            raise Failure(error.name) from None

    async def get_dirty_log(self, slot: int) -> bytes:
        try:
            return await self._vm.get_dirty_log(slot)
        except KvmError as error:
            raise Failure(error.name) from None

    async def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes) -> None:
        try:
            await self._vm.clear_dirty_log(slot, first_page, num_pages, bitmap)
        except KvmError as error:
            raise Failure(error.name) from None

    async def enable_cap(self, cap: str, arg: int) -> None:
        try:
            await self._vm.enable_cap(cap, [arg])
        except KvmError as error:
            raise Failure(error.name) from None

    async def table(self) -> object:
        generation, regions = self._vm.memory_regions()
        return generation, [(r.slot, r.flags, r.guest_phys_addr, r.memory_size, r.userspace_addr) for r in regions]

    async def start(self, regs: dict[str, int]) -> RunExit:
        await self._vm.vcpu(0).set_regs(regs)
        return await self.run(None)

    async def run(self, data: bytes | None) -> RunExit:
        vcpu = self._vm.vcpu(0)
        try:
            exit_ = await vcpu.run(data)
        except KvmError as error:
            raise Failure(error.name) from None
        reason = exit_.reason.removeprefix(_PREFIX)
        if isinstance(exit_, MmioExit):
            return RunExit(reason, exit_.phys_addr, exit_.len, exit_.is_write, exit_.data or b"")
        if isinstance(exit_, HltExit):
            return RunExit(reason, a0=(await vcpu.get_regs())["x10"])
        return RunExit(reason, suberror=exit_.suberror if isinstance(exit_, InternalErrorExit) else 0)


@asynccontextmanager
async def in_process(system: System) -> AsyncIterator[InProcess]:
    """Make a VM with one vCPU for as long as a block lasts."""
    vm = system.create_vm()
    try:
        await vm.create_vcpu(0)
        yield InProcess(vm)
    finally:
        await system.destroy_vm(vm.id)


class OverRpc:
    """A VM of a daemon process, through the client library."""

    def __init__(self, vmmd: Client, vm: RemoteVm) -> None:
        self._vmmd = vmmd
        self._vm = vm

    async def map_host_memory(self, size: int) -> int:
        return await self._vm.map_host_memory(size)

    async def unmap_host_memory(self, userspace_addr: int, size: int) -> None:
        await self._vm.unmap_host_memory(userspace_addr, size)

    async def read_host_memory(self, userspace_addr: int, length: int) -> bytes:
        return await self._vm.read_host_memory(userspace_addr, length)

    async def write_host_memory(self, userspace_addr: int, data: bytes) -> None:
        await self._vm.write_host_memory(userspace_addr, data)

    async def set_user_memory_region(self, slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
        try:
            await self._vm.set_user_memory_region(
                slot, guest_phys_addr=gpa, memory_size=size, userspace_addr=hva, flags=flags
            )
        except RemoteError as error:
            raise Failure(error.errno) from None

    async def get_dirty_log(self, slot: int) -> bytes:
        try:
            return await self._vm.get_dirty_log(slot)
        except RemoteError as error:
            raise Failure(error.errno) from None

    async def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes) -> None:
        try:
            await self._vm.clear_dirty_log(slot, first_page=first_page, num_pages=num_pages, bitmap=bitmap)
        except RemoteError as error:
            raise Failure(error.errno) from None

    async def enable_cap(self, cap: str, arg: int) -> None:
        try:
            await self._vm.enable_cap(cap, [arg])
        except RemoteError as error:
            raise Failure(error.errno) from None

    async def table(self) -> object:
        return await self._vm.get_memory_regions()

    async def start(self, regs: dict[str, int]) -> RunExit:
        return await self._run(calls.set_regs(self._vm.id, 0, regs), calls.run(self._vm.id, 0))

    async def run(self, data: bytes | None) -> RunExit:
        return await self._run(calls.run(self._vm.id, 0, data))

    async def _run(self, *upto_run: Call[Any]) -> RunExit:
        """Send calls of which the last is KVM_RUN, and ask for the registers behind it in the same round trip."""
        async with self._vmmd.batch() as batch:
            *before, ran = [batch.add(call) for call in upto_run]
            regs = batch.add(calls.get_regs(self._vm.id, 0))
        for reply in before:
            reply.result()
        try:
            exit_ = ran.result()
        except RemoteError as error:
            raise Failure(error.errno) from None
        reason = exit_.exit_reason.removeprefix(_PREFIX)
        if exit_.mmio is not None:
            mmio = exit_.mmio
            return RunExit(reason, mmio.phys_addr, mmio.len, mmio.is_write, mmio.data or b"")
        suberror = exit_.internal.suberror if exit_.internal is not None else 0
        return RunExit(reason, suberror=suberror, a0=regs.result()["x10"])


@asynccontextmanager
async def over_rpc(vmmd: Client) -> AsyncIterator[OverRpc]:
    """Make a VM of a daemon, with one vCPU, for as long as a block lasts."""
    vm = await vmmd.kvm.create_vm()
    try:
        await vm.create_vcpu(0)
        yield OverRpc(vmmd, vm)
    finally:
        await vm.destroy()
