"""Memslots and their dirty log: models and methods."""

from typing import Annotated, Any

from pydantic import BeforeValidator, FailFast, Field

from vmmd.api.method import Method
from vmmd.api.types import (
    U32,
    Base64,
    ChangeOptions,
    Count,
    GateOptions,
    Hex64,
    MemFlags,
    Params,
    Result,
    U64In,
    VmParams,
    entries,
)

_MOST_REGIONS = 65_536


class MemoryRegion(Params):
    """The five fields of struct kvm_userspace_memory_region, in its order."""

    slot: U32 = Field(description="The slot's id in bits 0 to 15, the address space's in bits 16 to 31.")
    flags: MemFlags = Field(
        description="Bits: KVM_MEM_LOG_DIRTY_PAGES (1) and KVM_MEM_READONLY (2), the integer or a list of names."
    )
    guest_phys_addr: U64In = Field(description="The slot's first guest physical address, a multiple of 4096.")
    memory_size: U64In = Field(description="Bytes, a multiple of 4096; 0 deletes the slot.")
    userspace_addr: U64In = Field(
        description="Where the memory lies in the VM's own host address space, a multiple of 4096."
    )


class SetUserMemoryRegionParams(MemoryRegion, VmParams, GateOptions, ChangeOptions):
    """The five fields of struct kvm_userspace_memory_region."""


_REGION_MEMBERS = frozenset(MemoryRegion.model_fields)


def _known_members(regions: Any) -> Any:
    """Refuse a region with a member that is none; here, since pydantic would collect every one of thousands."""
    if isinstance(regions, list):
        for place, region in enumerate(regions):
            if isinstance(region, dict) and len(region) > len(_REGION_MEMBERS):
                name = next(name for name in region if name not in _REGION_MEMBERS)
                raise ValueError(f"entry {place} has the member {name!r:.60}, which is none of a region's")
    return regions


class SetUserMemoryRegionListParams(VmParams, GateOptions, ChangeOptions):
    """Changes that are made one."""

    regions: Annotated[
        tuple[MemoryRegion, ...], FailFast(), BeforeValidator(_known_members), entries(1, _MOST_REGIONS)
    ] = Field(
        max_length=_MOST_REGIONS,
        json_schema_extra={"minItems": 1},
        description="The changes, in their order; an id may occur twice.",
    )
    dry_run: bool = Field(default=False, strict=True, description="Check everything, and change nothing.")


class SlotLog(Result):
    """The last dirty bitmap of a slot that went, or whose log did."""

    slot: U32
    guest_phys_addr: Hex64 = Field(description="Where its first page was.")
    bitmap: Base64 = Field(description="Bit j of byte k is page 8k + j.")


class RegionListResult(Result):
    """What the changes did together."""

    generation: Count = Field(description="The slot table's generation: one more, for one publication.")
    pause_ns: Count | None = Field(
        description="Nanoseconds for which vCPUs were kept out of guest mode; null inside a hold, and for a dry run."
    )
    dirty: tuple[SlotLog, ...] = Field(description="The bitmaps of the logged slots that went.")


class GenerationResult(Result):
    """The slot table after the call."""

    generation: Count = Field(description="The slot table's generation: +1 for each table that was published.")


class GetMemoryRegionsParams(VmParams):
    """Which part of the slot table to give."""

    first: U32 = Field(default=0, description="How many slots to leave out, counted in order of slot ids.")
    count: U32 | None = Field(default=None, description="How many slots to give at most; left out: all.")


class RegionInfo(Result):
    """One memslot."""

    slot: U32
    flags: U32
    guest_phys_addr: Hex64
    memory_size: Hex64
    userspace_addr: Hex64


class RegionsResult(Result):
    """The slot table, or a part of it, in order of slot ids."""

    generation: Count
    regions: tuple[RegionInfo, ...]


class GetDirtyLogParams(VmParams, GateOptions, ChangeOptions):
    """Which slot's dirty pages to fetch (and, in KVM's default mode, to clear)."""

    slot: U32 = Field(description="The slot's id.")
    first_page: U64In | None = Field(
        default=None,
        description="The first page to fetch, a multiple of 64, counted from the slot's start; left out: 0.",
    )
    num_pages: U32 | None = Field(
        default=None,
        description="How many pages to fetch, a multiple of 64; left out: up to the slot's end.",
    )


class DirtyLogResult(Result):
    """A dirty bitmap."""

    bitmap: Base64 = Field(description="KVM's layout: bit j of byte k is page 8k+j, in whole 64-bit words, base64.")


class ClearDirtyLogParams(VmParams, GateOptions, ChangeOptions):
    """Which dirty bits to clear: struct kvm_clear_dirty_log."""

    slot: U32 = Field(description="The slot's id.")
    first_page: U64In = Field(description="The page of the bitmap's first bit, a multiple of 64.")
    num_pages: U32 = Field(description="How many pages, a multiple of 64 or up to the slot's end.")
    bitmap: Base64 = Field(description="The bits to clear, in KVM's layout, base64.")


class ResetDirtyRingsParams(VmParams, ChangeOptions):
    """Whose dirty rings to reset."""


class ResetDirtyRingsResult(Result):
    """What the reset came to."""

    count: int = Field(description="How many harvested entries are free again, of all vCPUs.")


class EnableCapParams(VmParams, ChangeOptions):
    """Which capability to switch on: struct kvm_enable_cap."""

    cap: str = Field(min_length=1, max_length=128, description='The capability\'s name, "KVM_CAP_…".')
    args: Annotated[tuple[U64In, ...], FailFast(), entries(0, 4)] = Field(
        default=(), max_length=4, description="Up to four 64-bit arguments; the rest are 0."
    )


_BAD_REGION = (
    "A field breaks a rule of KVM's: alignment, address space, an unknown flag, a range that wraps or is too large, "
    "a change that a slot cannot make, or the deletion of one that is not set."
)
_NO_LOG = "The slot is not set, or KVM_MEM_LOG_DIRTY_PAGES is off."
_RINGS_ALONE = "The VM logs to dirty rings alone."
_HELD = "The VM is held, or an advance is under way."
_DESTROYED = "The VM was destroyed meanwhile."

ROWS = (
    Method(
        "vm.set_user_memory_region",
        SetUserMemoryRegionParams,
        GenerationResult,
        "Create, move, delete or re-flag one memslot.",
        changes=True,
        ioctl="KVM_SET_USER_MEMORY_REGION",
        errors={
            "EINVAL": _BAD_REGION,
            "EEXIST": "The range overlaps another slot's.",
            "ENOMEM": "The host has no memory for the slot's dirty log.",
        },
    ),
    Method(
        "vm.set_user_memory_region_list",
        SetUserMemoryRegionListParams,
        RegionListResult,
        "Make several changes of memslots one, all or nothing, in a hold of its own unless it is given one.",
        changes=True,
        ioctl="KVM_SET_USER_MEMORY_REGION_LIST",
        errors={
            "EINVAL": _BAD_REGION,
            "EEXIST": "A range overlaps another slot's, after the changes before it.",
            "E2BIG": "The dirty bitmaps of the slots that go have no room in the reply.",
            "EDEADLK": "The same batch or WebSocket has the VM in a hold, and the call does not name it.",
            "ETIMEDOUT": "Its own hold was not open within `wait_ms`, or limits.wait_ms.",
            "ENOMEM": "The host has no memory for a slot's dirty log.",
        },
    ),
    Method(
        "vm.get_memory_regions",
        GetMemoryRegionsParams,
        RegionsResult,
        "Give the slot table, or a part of it, in order of slot ids.",
        errors={"E2BIG": "The slots have no room in the reply; ask for less at a time with `count`."},
    ),
    Method(
        "vm.get_dirty_log",
        GetDirtyLogParams,
        DirtyLogResult,
        "Fetch a slot's dirty bitmap, whole or a part, and clear what was fetched.",
        changes=True,
        ioctl="KVM_GET_DIRTY_LOG",
        errors={
            "ENXIO": _RINGS_ALONE,
            "EINVAL": "The slot's id is out of range, or the part is not of whole words of 64 pages in the slot.",
            "ENOENT": _NO_LOG,
            "E2BIG": "The bitmap has no room in the reply; nothing was cleared; ask for less with `num_pages`.",
        },
    ),
    Method(
        "vm.clear_dirty_log",
        ClearDirtyLogParams,
        None,
        "Clear dirty bits of a slot.",
        changes=True,
        ioctl="KVM_CLEAR_DIRTY_LOG",
        errors={
            "ENXIO": _RINGS_ALONE,
            "EINVAL": "The slot's id is out of range, `first_page` is no multiple of 64, or `num_pages` neither one "
            "nor up to the slot's end.",
            "ENOENT": _NO_LOG,
            "EFAULT": "`bitmap` is shorter than `num_pages` bits.",
        },
    ),
    Method(
        "vm.enable_cap",
        EnableCapParams,
        None,
        "Switch a capability of the VM on.",
        changes=True,
        ioctl="KVM_ENABLE_CAP",
        errors={
            "EINVAL": "No VM can enable the capability, not now, or not with these arguments.",
            "E2BIG": "The dirty ring would be too large.",
            "EBUSY": _HELD,
            "ENOMEM": "The host has no memory for new dirty logs.",
            "ECANCELED": _DESTROYED,
        },
    ),
    Method(
        "vm.reset_dirty_rings",
        ResetDirtyRingsParams,
        ResetDirtyRingsResult,
        "Free every harvested entry of the dirty rings; the next store to its page is logged again.",
        changes=True,
        carried_through=True,
        ioctl="KVM_RESET_DIRTY_RINGS",
        errors={"EINVAL": "The VM has no dirty rings.", "EBUSY": _HELD, "ECANCELED": _DESTROYED},
    ),
)
