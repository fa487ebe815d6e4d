"""Every way to a real daemon process: both twins, by HTTP and by WebSocket."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import vmmd_client
from vmmd_client import (
    ClientClosed,
    ConnectError,
    Deadlock,
    Disconnected,
    ForeignEventLoop,
    GapEvent,
    HoldConflict,
    HoldFailed,
    Interrupted,
    KickTimeout,
    Outcome,
    RangeOverlap,
    sync,
)
from vmmd_client.address_space import container, ram, reservation
from vmmd_client.sync.address_space import AddressSpace
from vmmd_client.sync.local_daemon import local_daemon
from vmmd_client.wire.protocol import Question

PAGE = 4096


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with local_daemon() as url:
        yield url


@pytest.fixture(params=["unix:", "ws+unix:"])
def each_url(request: pytest.FixtureRequest, url: str) -> str:
    return url.replace("unix:", request.param)


def two_slots(vmmd: sync.Client) -> sync.Vm:
    vm = vmmd.kvm.create_vm("two slots")
    memory = vm.map_host_memory(4 * PAGE)
    for slot in (0, 1):
        offset = slot * 2 * PAGE
        vm.set_user_memory_region(slot, guest_phys_addr=offset, memory_size=2 * PAGE, userspace_addr=memory + offset)
    return vm


def test_a_thread_makes_a_transaction(each_url: str):
    with sync.connect(each_url) as vmmd:
        vm = two_slots(vmmd)
        with vm.transaction() as change:
            merged = change.merge(0, 1)
        assert change.result.pause_ns is not None
        assert vm.get_memory_regions().slots == {0: merged}
        vm.destroy()


def overlap(vm: sync.Vm) -> None:
    """Put a slot over a part of another."""
    with vm.transaction(hold=True) as change:
        old = change.delete(0)
        change.create(7, guest_phys_addr=PAGE, memory_size=2 * PAGE, userspace_addr=old.userspace_addr)


def test_what_would_overlap_is_refused_before_anything_is_sent(each_url: str):
    with sync.connect(each_url) as vmmd:
        vm = two_slots(vmmd)
        before = vm.get_memory_regions()
        with pytest.raises(RangeOverlap):
            overlap(vm)
        assert vm.get_memory_regions() == before
        vm.destroy()


def test_every_store_is_told_once_and_a_tree_is_kept_in_slots_by_threads_too(each_url: str):
    with sync.connect(each_url) as vmmd:
        vm = vmmd.kvm.create_vm()
        root = container("system", 1 << 30)
        memory = root.add(ram("ram", 0x4000, vm.map_host_memory(0x4000)), 0)
        space = AddressSpace(vm, root)
        with space.update():
            memory.log_dirty = True
        vm.write_guest_memory(0x1000, b"x")
        vm.write_guest_memory(0x3000, b"x")
        with space.update() as update:
            root.add(reservation("window", 0x1000), 0x2000, priority=1)
        assert update.result.pause_ns is not None
        assert sorted(slot.guest_phys_addr for slot in vm.get_memory_regions().slots.values()) == [0, 0x3000]
        assert list(vm.dirty.fetch()) == [0x1000, 0x3000]
        assert list(vm.dirty.fetch()) == []
        vm.destroy()


def test_threads_share_one_client(each_url: str):
    with sync.connect(each_url) as vmmd, ThreadPoolExecutor(8) as threads:
        vms = list(threads.map(vmmd.kvm.create_vm, (f"vm {n}" for n in range(40))))
        names = {info.vm: info.name for info in vmmd.kvm.list_vms()}
        assert [names[vm.id] for vm in vms] == [f"vm {n}" for n in range(40)]
        list(threads.map(lambda vm: vm.destroy(), vms))


def test_a_kick_that_waits_keeps_no_other_thread_from_the_resume_it_waits_for(url: str):
    with sync.connect(url) as vmmd:
        vm = vmmd.kvm.create_vm("held")
        opened = threading.Event()

        def second() -> int:
            with vmmd.vm(vm.id).hold(wait_ms=30_000) as hold:
                opened.set()
                return hold.kick.kicked

        with ThreadPoolExecutor(1) as threads:
            with vm.hold():
                waiting = threads.submit(second)
                assert not opened.is_set()
            assert waiting.result() == 0
        vm.destroy()


def test_one_websocket_has_one_hold_of_a_vm_and_says_so(url: str):
    with sync.connect(url.replace("unix:", "ws+unix:")) as vmmd:
        vm = vmmd.kvm.create_vm("held")
        with vm.hold(), pytest.raises(Deadlock, match="another connection"):
            vm.kick_all_running_vcpus("a second one")
        vm.destroy()


def test_a_hold_ends_with_the_websocket_that_kicked(url: str):
    with sync.connect(url) as vmmd:
        vm = vmmd.kvm.create_vm("abandoned")
        gone = sync.connect(url.replace("unix:", "ws+unix:"))
        with gone:
            gone.vm(vm.id).kick_all_running_vcpus("h", lease_ms=60_000)
            with pytest.raises(HoldConflict):
                vm.map_host_memory(PAGE)
        # It waits for the hold's end, which the lease would bring far too late.
        vm.map_host_memory(PAGE, wait_ms=20_000)
        with pytest.raises(HoldFailed) as caught:
            vm.resume_all_kicked_vcpus("h")
        assert caught.value.became is not None
        assert "WebSocket" in caught.value.became
        vm.destroy()


async def test_a_task_makes_a_transaction_by_websocket(url: str):
    async with vmmd_client.connect(url.replace("unix:", "ws+unix:")) as vmmd:
        vm = await vmmd.kvm.create_vm("tasks")
        memory = await vm.map_host_memory(2 * PAGE)
        await vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=PAGE, userspace_addr=memory)
        async with vm.transaction() as change:
            change.delete(0)
            change.create(0, guest_phys_addr=0, memory_size=2 * PAGE, userspace_addr=memory)
        assert change.result.pause_ns is not None
        await vm.destroy()


class LosesReplies:
    """A transport whose first answers are lost behind the daemon, as often as a test says."""

    def __init__(self, url: str) -> None:
        self._inner = sync.HttpTransport(url)
        self.losing = 0

    def exchange(self, question: Question, timeout_s: float) -> bytes:
        answer = self._inner.exchange(question, timeout_s)
        if self.losing:
            self.losing -= 1
            raise Disconnected("lost by the test")
        return answer

    def link(self) -> sync.Link:
        return self._inner.link()

    def close(self) -> None:
        self._inner.close()


def test_changes_whose_replies_are_lost_are_done_once(url: str):
    transport = LosesReplies(url)
    with sync.Client(transport) as vmmd:
        transport.losing = 2
        vm = vmmd.kvm.create_vm("once alone")
        assert [info.vm for info in vmmd.kvm.list_vms() if info.name == "once alone"] == [vm.id]
        memory = vm.map_host_memory(2 * PAGE)
        for size in (PAGE, 2 * PAGE):
            transport.losing = 1
            with vm.transaction(hold=True) as change:
                if size > PAGE:
                    change.delete(0)
                change.create(0, guest_phys_addr=0, memory_size=size, userspace_addr=memory)
            table = vm.get_memory_regions()
            assert table.generation == change.result.generation
            assert table.slots[0].memory_size == size
        vm.destroy()


def test_a_hold_is_seen_in_the_events_of_its_vm_and_a_later_iterator_goes_on_from_there(each_url: str):
    with sync.connect(each_url) as vmmd:
        vm, other = two_slots(vmmd), vmmd.kvm.create_vm("other")
        with vm.events() as events:
            with other.hold(), vm.transaction() as change:
                change.merge(0, 1)
            types = [events.receive(20).type for _ in range(3)]
        assert types == ["hold.opened", "slots.changed", "hold.resumed"]
        vm.destroy()
        other.destroy()
        with vmmd.events(since=events.place) as later:
            assert [(event.type, event.vm) for event in (later.receive(20) for _ in range(3))] == [
                ("hold.resumed", other.id),
                ("vm.destroyed", vm.id),
                ("vm.destroyed", other.id),
            ]


def test_a_place_in_a_daemon_that_was_started_anew_is_a_gap(url: str):
    with sync.connect(url) as vmmd:
        vm = vmmd.kvm.create_vm("before")
        with local_daemon() as another, sync.connect(another) as started_anew:
            started_anew.kvm.create_vm("after")
            with vmmd.events() as events:
                vm.destroy()
                events.receive(20)
            with started_anew.events(since=events.place) as later:
                gap, created = later.receive(20), later.receive(20)
        assert isinstance(gap, GapEvent)
        assert gap.missed is None
        assert created.type == "vm.created"


@pytest.mark.parametrize("closed", ["events", "client"])
def test_a_thread_that_waits_for_an_event_is_told_when_another_closes(
    each_url: str, closed: str, monkeypatch: pytest.MonkeyPatch
):
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        assert len(waits) <= 1, "a closed client is tried again"

    monkeypatch.setattr(vmmd_client.sync.events, "sleep", sleep)
    with sync.connect(each_url) as vmmd, vmmd.events() as events, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(list, events)
        (events if closed == "events" else vmmd).close()
        if closed == "events":
            assert waiting.result() == []
        else:
            with pytest.raises(ClientClosed):
                waiting.result()


@pytest.mark.parametrize("closed", ["events", "client"])
async def test_a_task_that_waits_for_an_event_is_told_when_another_closes(
    each_url: str, closed: str, monkeypatch: pytest.MonkeyPatch
):
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        assert len(waits) <= 1, "a closed client is tried again"

    monkeypatch.setattr(vmmd_client.events, "sleep", sleep)
    async with vmmd_client.connect(each_url) as vmmd, vmmd.events() as events:
        waiting = asyncio.create_task(anext(events, None))
        await asyncio.sleep(0)
        await (events if closed == "events" else vmmd).aclose()
        if closed == "events":
            assert await waiting is None
        else:
            with pytest.raises(ClientClosed):
                await waiting


def test_a_daemon_that_has_gone_is_an_error_that_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vmmd_client.sync.events, "RECONNECT_TIMEOUT_S", 0.1)
    with contextlib.ExitStack() as clients:
        with local_daemon() as url:
            ways = [clients.enter_context(sync.connect(url.replace("unix:", way))) for way in ("unix:", "ws+unix:")]
            events = clients.enter_context(ways[0].events())
        for vmmd in ways:
            with pytest.raises(ConnectError, match="vmmd serve"):
                vmmd.kvm.list_vms()
        with pytest.raises(ConnectError, match="vmmd serve"):
            events.receive()


async def test_a_run_that_is_cancelled_over_a_websocket_leaves_the_vcpu_free(url: str):
    async with vmmd_client.connect(url.replace("unix:", "ws+unix:")) as vmmd:
        vm = await vmmd.kvm.create_vm("endless")
        memory = await vm.map_host_memory(PAGE)
        await vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=PAGE, userspace_addr=memory)
        await vm.write_guest_memory(0, (await vmmd.isa.assemble("1: j 1b")).code)
        vcpu = await vm.create_vcpu(0)
        run = asyncio.create_task(vcpu.run())
        while (await vmmd.vm(vm.id).vcpu(0).get_stats()).instructions == 0:
            await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        with pytest.raises(Interrupted) as caught:
            await run_when_free(vcpu)
        assert caught.value.exit_reason == "KVM_EXIT_INTR"
        await vm.destroy()


async def run_when_free(vcpu: vmmd_client.Vcpu) -> None:
    while True:
        try:
            await vcpu.run(timeout_ms=1)
        except HoldConflict:
            continue
        return


def test_a_client_of_an_earlier_event_loop_says_what_to_do(each_url: str):
    vmmd = vmmd_client.connect(each_url)

    async def ask() -> int:
        return await vmmd.kvm.get_api_version()

    async def close() -> None:
        await vmmd.aclose()

    async def delete(vm: vmmd_client.Vm) -> None:
        async with vm.transaction() as change:
            change.delete(0)

    async def with_a_slot() -> vmmd_client.Vm:
        vm = await vmmd.kvm.create_vm()
        memory = await vm.map_host_memory(PAGE)
        await vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=PAGE, userspace_addr=memory)
        await vm.slot_table()
        return vm

    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(ask()) == 12
        vm = loop.run_until_complete(with_a_slot())
        with pytest.raises(ForeignEventLoop) as caught:
            asyncio.run(delete(vm))
        assert caught.value.outcome is Outcome.NOTHING_DONE
        with pytest.raises(ForeignEventLoop, match=r"connect inside each asyncio\.run"):
            asyncio.run(ask())
        with pytest.raises(ForeignEventLoop):
            asyncio.run(close())
        assert loop.run_until_complete(ask()) == 12
        loop.run_until_complete(close())
    finally:
        loop.close()


def test_an_advance_that_takes_too_long_ends_at_its_deadline(each_url: str):
    with sync.connect(each_url) as vmmd:
        vm = vmmd.kvm.create_vm(execution="cooperative")
        memory = vm.map_host_memory(PAGE)
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=PAGE, userspace_addr=memory)
        vm.write_guest_memory(0, vmmd.isa.assemble("again: j again").code)
        vm.create_vcpu(0)
        with pytest.raises(KickTimeout, match="deadline_ms"):
            vm.with_timeout(20).advance(1 << 50, deadline_ms=50)
        vm.destroy()
