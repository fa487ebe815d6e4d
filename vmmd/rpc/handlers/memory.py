"""Host memory and guest memory."""

from vmmd.api import memory
from vmmd.rpc.handlers.registry import Core, handles
from vmmd.rpc.handlers.translate import check_reply_has_room, entry
from vmmd.rpc.scope import BodyScope


@handles("vm.map_host_memory")
async def _map_host_memory(
    core: Core, params: memory.MapHostMemoryParams, _scope: BodyScope
) -> memory.MapHostMemoryResult:
    vm = core.vm(params)
    addr = await vm.map_host_memory(params.size, params.name, sparse=params.sparse, **entry(params))
    return memory.MapHostMemoryResult(userspace_addr=addr)


@handles("vm.unmap_host_memory")
async def _unmap_host_memory(core: Core, params: memory.UnmapHostMemoryParams, _scope: BodyScope) -> None:
    vm = core.vm(params)
    await vm.unmap_host_memory(params.userspace_addr, params.size, **entry(params))


@handles("vm.read_host_memory")
async def _read_host_memory(core: Core, params: memory.ReadHostMemoryParams, scope: BodyScope) -> memory.MemoryResult:
    vm = core.vm(params)
    check_reply_has_room(params.length, scope, "length")
    data = await vm.read_host_memory(params.userspace_addr, params.length, **entry(params))
    return memory.MemoryResult(data=data)


@handles("vm.write_host_memory")
async def _write_host_memory(core: Core, params: memory.WriteHostMemoryParams, _scope: BodyScope) -> None:
    vm = core.vm(params)
    await vm.write_host_memory(params.userspace_addr, params.data, **entry(params))


@handles("vm.read_guest_memory")
async def _read_guest_memory(core: Core, params: memory.ReadGuestMemoryParams, scope: BodyScope) -> memory.MemoryResult:
    vm = core.vm(params)
    check_reply_has_room(params.length, scope, "length")
    data = await vm.read_guest_memory(params.guest_phys_addr, params.length, **entry(params))
    return memory.MemoryResult(data=data)


@handles("vm.write_guest_memory")
async def _write_guest_memory(core: Core, params: memory.WriteGuestMemoryParams, _scope: BodyScope) -> None:
    vm = core.vm(params)
    await vm.write_guest_memory(params.guest_phys_addr, params.data, **entry(params))
