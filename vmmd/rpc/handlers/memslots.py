"""Memslots and their dirty log."""

from vmmd.api import memslots
from vmmd.kvm.errors import KvmError
from vmmd.kvm.guest_memory import log_part
from vmmd.kvm.vm import Vm
from vmmd.memory.memslots import Memslot
from vmmd.memory.region import Region
from vmmd.rpc.handlers.registry import HAS_TO_WAIT, Core, handles, handles_at_once
from vmmd.rpc.handlers.translate import check_reply_has_room, entry, room_bytes
from vmmd.rpc.results import Encoded, make_all
from vmmd.rpc.scope import BodyScope

# One bitmap's members beside its bytes, as JSON.
_SLOT_LOG_BYTES = 80


@handles("vm.set_user_memory_region")
async def _set_user_memory_region(
    core: Core, params: memslots.SetUserMemoryRegionParams, _scope: BodyScope
) -> memslots.GenerationResult:
    generation = await core.vm(params).set_user_memory_region(
        params.slot,
        params.flags,
        params.guest_phys_addr,
        params.memory_size,
        params.userspace_addr,
        **entry(params),
    )
    return memslots.GenerationResult(generation=generation)


@handles_at_once("vm.set_user_memory_region")
def _set_user_memory_region_at_once(
    core: Core, params: memslots.SetUserMemoryRegionParams, _scope: BodyScope
) -> Encoded | object:
    if params.hold is not None or params.if_generation is not None:
        return HAS_TO_WAIT
    generation = core.vm(params).set_user_memory_region_at_once(_region(params))
    # A model that is made to be written at once would cost a tenth of the call.
    return HAS_TO_WAIT if generation is None else Encoded(b'{"generation":%d}' % generation)


@handles("vm.set_user_memory_region_list")
async def _set_user_memory_region_list(
    core: Core, params: memslots.SetUserMemoryRegionListParams, scope: BodyScope
) -> memslots.RegionListResult:
    vm = core.vm(params)
    if params.hold is None and not params.dry_run:
        scope.changing_by_itself(vm)
    changes = await make_all(_region, params.regions, at_once=scope.is_holding)
    # What goes with its slot cannot be fetched again, so it must have room in the reply.
    published = await vm.set_user_memory_region_list(
        changes,
        dry_run=params.dry_run,
        max_log_bytes=max(room_bytes(scope) - _SLOT_LOG_BYTES * len(changes), 0),
        **entry(params),
    )
    if published.pause_ns is not None:
        core.timings.note_published(published.pause_ns)
    dirty = tuple(
        memslots.SlotLog(slot=slot.slot, guest_phys_addr=slot.guest_phys_addr, bitmap=bitmap)
        for slot, bitmap in published.dirty
    )
    return memslots.RegionListResult(generation=published.generation, pause_ns=published.pause_ns, dirty=dirty)


def _region(region: memslots.MemoryRegion) -> Region:
    return Region(region.slot, region.flags, region.guest_phys_addr, region.memory_size, region.userspace_addr)


@handles("vm.get_memory_regions")
async def _get_memory_regions(
    core: Core, params: memslots.GetMemoryRegionsParams, scope: BodyScope
) -> memslots.RegionsResult:
    generation, slots = core.vm(params).memory_regions(params.first, params.count)
    regions = await make_all(_region_info, slots, at_once=scope.is_holding)
    return memslots.RegionsResult(generation=generation, regions=regions)


def _region_info(slot: Memslot) -> memslots.RegionInfo:
    return memslots.RegionInfo(
        slot=slot.slot,
        flags=slot.flags,
        guest_phys_addr=slot.guest_phys_addr,
        memory_size=slot.memory_size,
        userspace_addr=slot.userspace_addr,
    )


@handles("vm.get_dirty_log")
async def _get_dirty_log(core: Core, params: memslots.GetDirtyLogParams, scope: BodyScope) -> memslots.DirtyLogResult:
    vm = core.vm(params)
    # Fetching clears, so a bitmap that does not fit must be refused before, and not when the reply is written.
    check_reply_has_room(_size_of_log(vm, params), scope, "num_pages")
    bitmap = await vm.get_dirty_log(
        params.slot,
        first_page=params.first_page,
        num_pages=params.num_pages,
        **entry(params),
    )
    return memslots.DirtyLogResult(bitmap=bitmap)


def _size_of_log(vm: Vm, params: memslots.GetDirtyLogParams) -> int:
    """Give the bytes that are asked for; 0 where the core refuses, whose error comes before one of the reply's room."""
    slot = vm.memslots.get(params.slot)
    log = slot.dirty.bitmap if slot is not None and slot.dirty is not None else None
    if log is None:
        return 0
    try:
        return log_part(log, params.first_page, params.num_pages)[1]
    except KvmError:
        return 0


@handles("vm.clear_dirty_log")
async def _clear_dirty_log(core: Core, params: memslots.ClearDirtyLogParams, _scope: BodyScope) -> None:
    await core.vm(params).clear_dirty_log(
        params.slot, params.first_page, params.num_pages, params.bitmap, **entry(params)
    )


@handles("vm.enable_cap")
async def _enable_cap(core: Core, params: memslots.EnableCapParams, _scope: BodyScope) -> None:
    await core.vm(params).enable_cap(params.cap, params.args)


@handles("vm.reset_dirty_rings")
async def _reset_dirty_rings(
    core: Core, params: memslots.ResetDirtyRingsParams, _scope: BodyScope
) -> memslots.ResetDirtyRingsResult:
    return memslots.ResetDirtyRingsResult(count=await core.vm(params).reset_dirty_rings())
