"""Random transactions and random trees against a naive model of guest memory, in fair weather and in foul."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmmd_client import (
    BadAddress,
    Client,
    Draft,
    MemFlag,
    Memslot,
    PlanError,
    ProtocolError,
    RangeOverlap,
    TransactionRefused,
    TransportError,
    Vm,
)
from vmmd_client.address_space import AddressSpace, MemoryRegion
from vmmd_client.address_space.flat_view import flatten, slots_of

from .core import Fault, Wire, core, fair
from .trees import GUEST_PAGES, PAGE, Spec, look, specs, tree, userspace_addr_of

HOST_PAGES = 64
FIRST_HOST_PAGE = -24
OLD_MAP_STANDS = (TransportError, ProtocolError, TransactionRefused)
T = TypeVar("T")
Run = Callable[[Callable[[Client, Wire], Awaitable[T]]], T]

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def run() -> Iterator[Run[None]]:
    """Runs a coroutine function with the one core that all examples share: each has a VM of its own."""
    with asyncio.Runner() as runner:
        there = core(lease_ms=50)
        client, wire = runner.run(there.__aenter__())

        async def alone(example: Callable[[Client, Wire], Awaitable[None]]) -> None:
            try:
                await example(client, wire)
            finally:
                # Also where it fails: what those find that follow is no less than this one found.
                wire.set_weather(fair)
                for left in await client.kvm.list_vms():
                    await client.vm(left.vm).destroy()

        yield lambda example: runner.run(alone(example))
        runner.run(there.__aexit__(None, None, None))


# Transactions.


@dataclass
class NaiveSlot:
    """A slot as a list of its pages: which host page lies behind which guest page."""

    pages: list[tuple[int, int]]
    readonly: bool = False
    logs: bool = False


@dataclass
class Naive:
    """Guest memory as a person would draw it."""

    slots: dict[int, NaiveSlot] = field(default_factory=dict)
    stored: set[int] = field(default_factory=set)

    def copy(self) -> Naive:
        slots = {number: NaiveSlot(list(slot.pages), slot.readonly, slot.logs) for number, slot in self.slots.items()}
        return Naive(slots, self.stored)

    def page(self, gpa_page: int) -> tuple[int, NaiveSlot] | None:
        for slot in self.slots.values():
            for guest, host in slot.pages:
                if guest == gpa_page:
                    return host, slot
        return None

    def overlaps(self) -> bool:
        guests = [guest for slot in self.slots.values() for guest, _ in slot.pages]
        return len(guests) != len(set(guests))


small = st.integers(0, 6)
Op = tuple[str, int, int, int, bool]
KINDS = (
    *("create", "delete", "grow", "grow at start", "shrink", "shrink at start", "split", "merge", "move", "remap"),
    *("log", "readonly"),
)
ops = st.tuples(
    st.sampled_from(KINDS),
    small,
    st.integers(0, GUEST_PAGES - 1),
    st.integers(1, 6),
    st.booleans(),
)


def in_naive(naive: Naive, op: Op) -> None:
    """Make a change in the model; whether it can be meant, the draft has said."""
    what, slot, page, pages, flag = op
    slots = naive.slots
    if what == "create":
        slots[slot] = NaiveSlot([(page + n, page % 8 + n) for n in range(pages)], readonly=flag)
    elif what == "delete":
        del slots[slot]
    elif what.startswith("grow"):
        at_start = what.endswith("start")
        for _ in range(pages):
            guest, host = slots[slot].pages[0 if at_start else -1]
            step = -1 if at_start else 1
            slots[slot].pages.insert(0 if at_start else len(slots[slot].pages), (guest + step, host + step))
    elif what.startswith("shrink"):
        del slots[slot].pages[slice(0, pages) if what.endswith("start") else slice(-pages, None)]
    elif what == "split":
        old = slots[slot]
        low = [entry for entry in old.pages if entry[0] < page]
        slots[pages + 6] = NaiveSlot(old.pages[len(low) :], old.readonly, old.logs)
        slots[slot] = NaiveSlot(low, old.readonly, old.logs)
    elif what == "merge":
        other = slots.pop(pages)
        slots[slot].pages = sorted([*slots[slot].pages, *other.pages])
    elif what == "move":
        by = page - slots[slot].pages[0][0]
        slots[slot].pages = [(guest + by, host) for guest, host in slots[slot].pages]
    elif what == "remap":
        by = page % 8 - slots[slot].pages[0][1]
        slots[slot].pages = [(guest, host + by) for guest, host in slots[slot].pages]
    elif what == "log":
        slots[slot].logs = flag
    elif what == "readonly":
        slots[slot].readonly = flag


def in_draft(draft: Draft, base: int, op: Op) -> None:
    what, slot, page, pages, flag = op
    if what == "create":
        flags = int(MemFlag.READONLY) if flag else 0
        draft.create(Memslot(slot, flags, page * PAGE, pages * PAGE, base + page % 8 * PAGE))
    elif what == "delete":
        draft.delete(slot)
    elif what.startswith("grow"):
        draft.grow(slot, pages * PAGE, at_start=what.endswith("start"))
    elif what.startswith("shrink"):
        draft.shrink(slot, pages * PAGE, at_start=what.endswith("start"))
    elif what == "split":
        draft.split(slot, page * PAGE, second=pages + 6)
    elif what == "merge":
        draft.merge(slot, pages)
    elif what == "move":
        draft.move(slot, page * PAGE)
    elif what == "remap":
        draft.remap(slot, base + page % 8 * PAGE)
    elif what == "log":
        draft.set_flags(slot, log_dirty=flag)
    elif what == "readonly":
        draft.set_flags(slot, readonly=flag)


@dataclass(frozen=True)
class Round:
    stores: list[int]
    changes: list[Op]
    fault: Fault | None
    position: int
    fetch: tuple[int, int]


rounds = st.builds(
    Round,
    stores=st.lists(st.integers(0, GUEST_PAGES - 1), max_size=8),
    changes=st.lists(ops, max_size=6),
    fault=st.sampled_from([None, None, *Fault]),
    position=st.integers(0, 5),
    fetch=st.tuples(st.integers(0, GUEST_PAGES), st.integers(0, GUEST_PAGES)),
)


class Host:
    """Host memory whose pages can be told apart, and what they hold."""

    def __init__(self, vm: Vm, mapped: int) -> None:
        self.vm = vm
        self.base = mapped - FIRST_HOST_PAGE * PAGE
        self.holds: dict[int, int] = {}

    @classmethod
    async def of(cls, vm: Vm) -> Host:
        host = cls(vm, await vm.map_host_memory(HOST_PAGES * PAGE))
        for page in range(FIRST_HOST_PAGE, FIRST_HOST_PAGE + HOST_PAGES):
            host.holds[page] = page + 100
            await vm.write_host_memory(host.base + page * PAGE, bytes([page + 100]))
        return host

    async def check_page(self, reader: Vm, gpa_page: int, host_page: int | None) -> None:
        """Check that a guest page shows a host page: the one, or none that there is."""
        try:
            seen = (await reader.read_guest_memory(gpa_page * PAGE, 1))[0]
        except BadAddress:
            assert host_page not in self.holds
        else:
            assert host_page is not None
            assert seen == self.holds[host_page]


async def transact(vm: Vm, host: Host, naive: Naive, changes: list[Op]) -> Naive:
    """Make the changes in the VM and in a copy of the model, which is given."""
    trial = naive.copy()
    async with vm.transaction(wait_ms=50) as t:
        for op in changes:
            try:
                in_draft(t.draft, host.base, op)
            except PlanError:
                continue
            in_naive(trial, op)
        if trial.overlaps():
            with pytest.raises(RangeOverlap):
                t.plan()
    assert not trial.overlaps()
    return trial


@QUICK
@given(story=st.lists(rounds, min_size=1, max_size=5))
def test_after_every_transaction_the_guest_sees_what_the_model_says_and_every_store_is_told_once(
    run: Run[None], story: list[Round]
):
    async def example(client: Client, wire: Wire) -> None:
        wire.set_weather(fair)
        vm = await client.kvm.create_vm()
        reader, host, naive = client.vm(vm.id), await Host.of(vm), Naive()
        for a_round in story:
            for page in a_round.stores:
                found = naive.page(page)
                if found is not None and not found[1].readonly and found[0] in host.holds:
                    host.holds[found[0]] = page
                    await reader.write_guest_memory(page * PAGE, bytes([page]))
                    if found[1].logs:
                        naive.stored.add(page)
            wire.set_weather(lambda number, at=a_round: at.fault if number == at.position else None)
            # One fault is no reason to know nothing, or to leave a part: those errors come through.
            with contextlib.suppress(RangeOverlap, *(() if a_round.fault is None else OLD_MAP_STANDS)):
                naive = await transact(vm, host, naive, a_round.changes)
            wire.set_weather(fair)
            assert (await vm.slot_table()).slots == (await reader.get_memory_regions()).slots
            for page in range(GUEST_PAGES + 8):
                seen = naive.page(page)
                await host.check_page(reader, page, None if seen is None else seen[0])
            first, count = a_round.fetch
            told = {gpa // PAGE for gpa in await vm.dirty.fetch(first * PAGE, count * PAGE)}
            assert told == {page for page in naive.stored if first <= page < first + count}
            naive.stored -= told
        assert {gpa // PAGE for gpa in await vm.dirty.fetch()} == naive.stored

    run(example)


flag = st.booleans()


@settings(max_examples=300, deadline=None)
@given(made_of=st.lists(specs, max_size=10))
def test_a_flat_view_says_of_every_page_what_a_walk_of_the_tree_finds(made_of: list[Spec]):
    root, _ = tree(made_of, 1 << 20)
    view = flatten(root)
    for low, high in zip(view.ranges, view.ranges[1:], strict=False):
        assert low.end <= high.guest_phys_addr
        assert not low.goes_on_in(high)
    slots = list(slots_of(view))
    for gpa in range(0, GUEST_PAGES * PAGE, PAGE):
        flat, seen = view.at(gpa), look(root, gpa)
        if flat is None:
            assert seen is None
        else:
            assert seen == (flat.region, flat.offset + gpa - flat.guest_phys_addr, flat.readonly, flat.log_dirty)
        behind = [slot for slot in slots if slot.guest_phys_addr <= gpa < slot.end]
        assert len(behind) <= 1
        reached = [slot.userspace_addr + gpa - slot.guest_phys_addr for slot in behind]
        assert reached == [addr for addr in [userspace_addr_of(seen)] if addr is not None]
        if behind and seen is not None:
            assert bool(behind[0].flags & MemFlag.READONLY) == seen[2]
            assert bool(behind[0].flags & MemFlag.LOG_DIRTY_PAGES) == seen[3]


@dataclass(frozen=True)
class Turn:
    """Some changes of a tree, and what happens to the n-th round trip of the update."""

    changes: list[tuple[str, int, int]]
    fault: Fault | None
    position: int


turns = st.builds(
    Turn,
    changes=st.lists(
        st.tuples(
            st.sampled_from(["enabled", "readonly", "log_dirty", "reads_memory", "addr", "priority"]),
            st.integers(1, 10),
            st.integers(0, 20),
        ),
        max_size=5,
    ),
    fault=st.sampled_from([None, None, *Fault]),
    position=st.integers(0, 5),
)


def change_tree(made: list[MemoryRegion], changes: list[tuple[str, int, int]]) -> None:
    for what, which, value in changes:
        if len(made) == 1:
            return
        region = made[1 + which % (len(made) - 1)]
        container = region.container
        assert container is not None
        if what == "addr":
            # Inside, as `tree` places it: memory behind its container's end is refused.
            region.addr = value % (container.size // PAGE) * PAGE
        elif what == "priority":
            container.remove(region)
            container.add(region, region.addr, priority=value % 3 - 1)
        else:
            setattr(region, what, not getattr(region, what))


@QUICK
@given(made_of=st.lists(specs, min_size=1, max_size=8), story=st.lists(turns, min_size=1, max_size=5))
def test_after_every_update_of_a_tree_the_guest_sees_what_a_walk_of_it_finds(
    run: Run[None], made_of: list[Spec], story: list[Turn]
):
    async def example(client: Client, wire: Wire) -> None:
        wire.set_weather(fair)
        vm = await client.kvm.create_vm()
        reader, host = client.vm(vm.id), await Host.of(vm)
        root, made = tree(made_of, host.base)
        space = AddressSpace(vm, root)
        async with space.update():
            pass
        for turn in story:
            before = [look(root, page * PAGE) for page in range(GUEST_PAGES)]
            wire.set_weather(lambda number, at=turn: at.fault if number == at.position else None)
            done = False
            with contextlib.suppress(*(() if turn.fault is None else OLD_MAP_STANDS)):
                async with space.update(wait_ms=50):
                    change_tree(made, turn.changes)
                done = True
            if not done:
                assert [look(root, page * PAGE) for page in range(GUEST_PAGES)] == before
            wire.set_weather(fair)
            for page in range(GUEST_PAGES):
                userspace_addr = userspace_addr_of(look(root, page * PAGE))
                shown = None if userspace_addr is None else (userspace_addr - host.base) // PAGE
                await host.check_page(reader, page, shown)

    run(example)
