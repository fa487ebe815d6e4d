"""Random trees of regions, and the naive walk that says what an address of one is."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from vmmd_client.address_space import Kind, MemoryRegion

PAGE = 4096
GUEST_PAGES = 40


@dataclass(frozen=True)
class Spec:
    """A region to be made: sizes and places in pages."""

    kind: Kind
    size: int
    inside: int
    addr: int
    priority: int
    enabled: bool
    readonly: bool
    log_dirty: bool
    shows: int
    offset: int


specs = st.builds(
    Spec,
    kind=st.sampled_from(Kind),
    size=st.integers(1, 14),
    inside=st.integers(0, 7),
    addr=st.integers(0, 20),
    priority=st.integers(-1, 1),
    enabled=st.sampled_from([True, True, True, False]),
    readonly=st.sampled_from([False, False, True]),
    log_dirty=st.sampled_from([False, False, True]),
    shows=st.integers(0, 7),
    offset=st.integers(0, 10),
)


def tree(made_of: list[Spec], base: int) -> tuple[MemoryRegion, list[MemoryRegion]]:
    """Build a tree; an alias shows only what was made before it, so that nothing lies in itself."""
    root = MemoryRegion("root", Kind.CONTAINER, GUEST_PAGES * PAGE)
    made = [root]
    containers = [root]
    for number, spec in enumerate(made_of):
        shown = [other for other in made[1:] if other.kind is not Kind.CONTAINER]
        is_alias = spec.kind is Kind.ALIAS and bool(shown)
        kind = Kind.RESERVATION if spec.kind is Kind.ALIAS and not shown else spec.kind
        is_backed = kind in {Kind.RAM, Kind.ROM, Kind.ROM_DEVICE}
        region = MemoryRegion(
            str(number),
            kind,
            spec.size * PAGE,
            userspace_addr=base + number % 8 * 2 * PAGE if is_backed else None,
            target=shown[spec.shows % len(shown)] if is_alias else None,
            target_offset=spec.offset * PAGE if is_alias else 0,
            reads_memory=spec.enabled or not is_backed,
        )
        region.enabled, region.readonly, region.log_dirty = spec.enabled, spec.readonly, spec.log_dirty
        place = containers[spec.inside % len(containers)]
        place.add(region, spec.addr % (place.size // PAGE) * PAGE, priority=spec.priority)
        made.append(region)
        if spec.kind is Kind.CONTAINER:
            containers.append(region)
    return root, made


Seen = tuple[MemoryRegion, int, bool, bool]


def look(region: MemoryRegion, at: int, *, readonly: bool = False, log_dirty: bool = False) -> Seen | None:
    """Say what a reader of the tree finds at one address of a region, the slow way."""
    if not region.enabled or not 0 <= at < region.size:
        return None
    through = {"readonly": readonly or region.readonly, "log_dirty": log_dirty or region.log_dirty}
    if region.target is not None:
        return look(region.target, at + region.target_offset, **through)
    for child in region.children:
        found = look(child, at - child.addr, **through)
        if found is not None:
            return found
    if region.kind in {Kind.CONTAINER, Kind.ALIAS}:
        return None
    return region, at, through["readonly"], through["log_dirty"]


def userspace_addr_of(seen: Seen | None) -> int | None:
    """Say which host address a guest's load reaches; None where it exits."""
    if seen is None or seen[0].userspace_addr is None:
        return None
    region, offset = seen[0], seen[1]
    return None if region.kind is Kind.ROM_DEVICE and not region.reads_memory else region.userspace_addr + offset
