"""The two ways to a VM: through the RPC of a daemon process, and in process."""

from __future__ import annotations

from tests.conformance.replay import Failure, RunExit
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import InternalErrorExit, MmioExit
from vmmd.kvm.vm import Vm
from vmmd_client import KvmError as RemoteError
from vmmd_client import Vm as RemoteVm

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

    async def set_regs(self, regs: dict[str, int]) -> None:
        await self._vm.vcpu(0).set_regs(regs)

    async def get_reg(self, name: str) -> int:
        return (await self._vm.vcpu(0).get_regs())[name]

    async def run(self, data: bytes | None) -> RunExit:
        try:
            exit_ = await self._vm.vcpu(0).run(data)
        except KvmError as error:
            raise Failure(error.name) from None
        reason = exit_.reason.removeprefix(_PREFIX)
        if isinstance(exit_, MmioExit):
            return RunExit(reason, exit_.phys_addr, exit_.len, exit_.is_write, exit_.data or b"")
        return RunExit(reason, suberror=exit_.suberror if isinstance(exit_, InternalErrorExit) else 0)


class OverRpc:
    """A VM of a daemon process, through the client library."""

    def __init__(self, vm: RemoteVm) -> None:
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

    async def set_regs(self, regs: dict[str, int]) -> None:
        await self._vm.vcpu(0).set_regs(regs)

    async def get_reg(self, name: str) -> int:
        return (await self._vm.vcpu(0).get_regs())[name]

    async def run(self, data: bytes | None) -> RunExit:
        try:
            exit_ = await self._vm.vcpu(0).run(data)
        except RemoteError as error:
            raise Failure(error.errno) from None
        reason = exit_.exit_reason.removeprefix(_PREFIX)
        if exit_.mmio is not None:
            mmio = exit_.mmio
            return RunExit(reason, mmio.phys_addr, mmio.len, mmio.is_write, mmio.data or b"")
        return RunExit(reason, suberror=exit_.internal.suberror if exit_.internal is not None else 0)
