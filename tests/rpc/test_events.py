"""Events: what is told, in which order, from where on, and what becomes of what cannot be told."""

import asyncio
from typing import Any

import pytest

from tests.rpc.sockets import Socket, connected, serving
from tests.rpc.test_websocket import endless
from tests.rpc.wire import PAGE, Failed, Wire, request, set_region
from vmmd.api.events import EVENT_ADAPTER
from vmmd.kvm.observer import Resumed
from vmmd.rpc.handlers.subscription import Subscription
from vmmd.rpc.journal import Journal
from vmmd.rpc.websocket import SOCKET_CLOSED


async def events_until(socket: Socket, last: str) -> list[dict[str, Any]]:
    """Read events, each checked by its model, until one of that type."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] != last:
        event = await socket.notified("event")
        assert EVENT_ADAPTER.validate_python(event).type == event["type"]
        events.append(event)
    return events


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def test_over_http_there_are_no_events_and_the_error_says_where_there_are(wire: Wire) -> None:
    with pytest.raises(Failed, match="WebSocket, at /ws") as failed:
        await wire.call("events.subscribe")
    assert failed.value.data["errno"] == "EOPNOTSUPP"


async def test_the_life_of_a_vm_is_told_in_order_with_consecutive_numbers(wire: Wire) -> None:
    async with serving(wire) as client, connected(client) as socket:
        seq = (await socket.call("events.subscribe"))["seq"]
        vm = (await wire.call("kvm.create_vm", name="first"))["vm"]
        await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
        await wire.call("vm.start", vm=vm)
        # Without any memory its first instruction is none.
        events = await events_until(socket, "vcpu.ended")
        await wire.call("vm.stop", vm=vm)
        await wire.call("kvm.destroy_vm", vm=vm)
        events += await events_until(socket, "vm.destroyed")
        assert types(events) == ["vm.created", "vm.started", "vcpu.exit", "vcpu.ended", "vm.stopped", "vm.destroyed"]
        assert {event["vm"] for event in events} == {vm}
        assert [event["seq"] for event in events] == list(range(seq + 1, seq + 7))
        assert (events[0]["name"], events[0]["execution"]) == ("first", "parallel")
        assert events[2]["exit"]["exit_reason"] == events[3]["exit"]["exit_reason"] == "KVM_EXIT_INTERNAL_ERROR"


async def test_a_hold_is_told_by_its_number_and_never_by_its_name(wire: Wire, vm: str, memory: str) -> None:
    async with serving(wire) as client, connected(client) as socket:
        await socket.call("events.subscribe")
        kick, *_ = await wire.batch(
            request("vm.kick_all_running_vcpus", vm=vm, hold="a secret"),
            set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="a secret"),
            request("vm.resume_all_kicked_vcpus", vm=vm, hold="a secret"),
        )
        opened, changed, resumed = await events_until(socket, "hold.resumed")
        assert types([opened, changed]) == ["hold.opened", "slots.changed"]
        assert kick["number"] == opened["hold"] == changed["hold"] == resumed["hold"]
        (region,) = changed["regions"]
        assert (region["slot"], region["guest_phys_addr"], changed["left_out"]) == (3, hex(8 * PAGE), 0)
        assert changed["generation"] == resumed["generation"]
        assert resumed["pause_ns"] > 0
        assert "secret" not in str([opened, changed, resumed])


async def test_a_hold_that_fails_tells_so_and_tells_no_change_that_was_undone(wire: Wire, vm: str, memory: str) -> None:
    async with serving(wire) as client, connected(client) as socket:
        await socket.call("events.subscribe")
        await wire.batch(
            request("vm.kick_all_running_vcpus", vm=vm, hold="a secret"),
            set_region(vm, 3, 8 * PAGE, PAGE, memory, hold="a secret"),
            set_region(vm, 4, 8 * PAGE, PAGE, memory, hold="a secret"),
            request("vm.resume_all_kicked_vcpus", vm=vm, hold="a secret"),
        )
        events = await events_until(socket, "hold.rolled_back")
        assert types(events) == ["hold.opened", "hold.failed", "hold.rolled_back"]
        assert events[1]["errno"] == "EEXIST"
        assert "secret" not in str(events)


async def test_a_lease_that_runs_out_and_a_websocket_that_goes_are_told(wire: Wire, vm: str) -> None:
    async with serving(wire) as client, connected(client) as socket:
        await socket.call("events.subscribe")
        await wire.call("vm.kick_all_running_vcpus", vm=vm, hold="h", lease_ms=1)
        assert "lease" in (await events_until(socket, "hold.expired"))[-1]["became"]
        async with connected(client) as other:
            await other.call("vm.kick_all_running_vcpus", vm=vm, hold="i", lease_ms=60_000)
        assert (await events_until(socket, "hold.expired"))[-1]["became"] == SOCKET_CLOSED


async def test_changes_without_a_hold_lists_and_raw_kicks_are_told(wire: Wire, vm: str, memory: str) -> None:
    async with serving(wire) as client, connected(client) as socket:
        await socket.call("events.subscribe")
        await wire.send(set_region(vm, 3, 8 * PAGE, PAGE, memory))
        # Nothing changes, so there is nothing to tell.
        await wire.send(set_region(vm, 3, 8 * PAGE, PAGE, memory))
        region = set_region(vm, 3, 9 * PAGE, PAGE, memory)["params"]
        del region["vm"]
        await wire.call("vm.set_user_memory_region_list", vm=vm, regions=[region])
        await wire.call("vm.kick_all_running_vcpus", vm=vm)
        await wire.call("vm.resume_all_kicked_vcpus", vm=vm)
        events = await events_until(socket, "resumed")
        assert types(events) == [
            "slots.changed",
            "hold.opened",
            "slots.changed",
            "hold.resumed",
            "kicked",
            "resumed",
        ]
        assert events[0]["hold"] is None
        assert events[2]["regions"][0]["guest_phys_addr"] == hex(9 * PAGE)


async def test_exits_are_sampled_and_what_was_left_out_is_counted(wire: Wire, vm: str, memory: str) -> None:
    code = (await wire.call("isa.assemble", source="1: sd a0, 0x700(zero)\n lui a1, 0x100\n sd a0, 0(a1)\n j 1b"))[
        "code"
    ]
    await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=0, data=code)
    await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
    async with serving(wire) as client, connected(client) as socket:
        await socket.call("events.subscribe")
        await wire.call("vm.start", vm=vm, mmio="ones")
        events = await events_until(socket, "vcpu.exit")
        events += await events_until(socket, "vcpu.exit")
        await wire.call("vm.stop", vm=vm)
        first, second = (event for event in events if event["type"] == "vcpu.exit")
        assert first["exit"]["mmio"]["phys_addr"] == "0x100000"
        assert (first["left_out"], second["left_out"] > 0) == (0, True)
        exits = (await wire.call("vm.get_stats", vm=vm))["exits"]["KVM_EXIT_MMIO"]
        assert second["left_out"] + 2 <= exits


async def test_a_reader_that_comes_back_goes_on_where_it_was(wire: Wire, vm: str) -> None:
    async with serving(wire) as client:
        async with connected(client) as socket:
            seq = (await socket.call("events.subscribe"))["seq"]
        await wire.call("vm.kick_all_running_vcpus", vm=vm)
        await wire.call("vm.resume_all_kicked_vcpus", vm=vm)
        async with connected(client) as socket:
            await socket.call("events.subscribe", since=seq)
            events = await events_until(socket, "resumed")
            assert [(event["seq"], event["type"]) for event in events] == [(seq + 1, "kicked"), (seq + 2, "resumed")]


async def test_what_the_daemon_has_forgotten_is_one_gap(wire: Wire, vm: str) -> None:
    for _ in range(75):
        await wire.call("vm.kick_all_running_vcpus", vm=vm)
        await wire.call("vm.resume_all_kicked_vcpus", vm=vm)
    async with serving(wire) as client, connected(client) as socket:
        place = await socket.call("events.subscribe", since=1)
        assert place["seq"] - place["oldest"] == 99
        gap, following = await socket.notified("event"), await socket.notified("event")
        assert gap["type"] == "gap"
        assert gap["missed"] == place["oldest"] - 2
        assert following["seq"] == gap["seq"] + 1 == place["oldest"]


async def test_a_number_from_another_life_of_the_daemon_is_refused_or_with_its_epoch_a_gap(wire: Wire, vm: str) -> None:
    async with serving(wire) as client, connected(client) as socket:
        with pytest.raises(Failed, match="epoch") as failed:
            await socket.call("events.subscribe", since=10_000)
        assert failed.value.data["errno"] == "EINVAL"
        await socket.call("events.subscribe", since=10_000, epoch="another")
        gap, first = await socket.notified("event"), await socket.notified("event")
        assert (gap["type"], gap["missed"], gap["seq"]) == ("gap", None, 0)
        assert (first["seq"], first["type"]) == (1, "vm.created")


async def test_one_vms_events_are_sent_where_one_is_asked_for(wire: Wire, vm: str) -> None:
    async with serving(wire) as client, connected(client) as socket:
        await socket.call("events.subscribe", vm=vm)
        other = (await wire.call("kvm.create_vm"))["vm"]
        await wire.call("vm.kick_all_running_vcpus", vm=other)
        await wire.call("kvm.destroy_vm", vm=vm)
        assert types(await events_until(socket, "vm.destroyed")) == ["vm.destroyed"]
        with pytest.raises(Failed):
            await socket.call("events.subscribe", vm=vm)


async def test_a_second_subscription_takes_the_place_of_the_first(wire: Wire, vm: str) -> None:
    async with serving(wire) as client, connected(client) as socket:
        await socket.call("events.subscribe")
        place = await socket.call("events.subscribe")
        await wire.call("vm.kick_all_running_vcpus", vm=vm)
        await wire.call("vm.resume_all_kicked_vcpus", vm=vm)
        events = await events_until(socket, "resumed")
        assert [event["seq"] for event in events] == [place["seq"] + 1, place["seq"] + 2]


async def test_a_reader_that_does_not_read_costs_no_memory_and_finds_one_gap() -> None:
    journal = Journal(100)
    subscription = Subscription(journal, None, 0, is_of_another_epoch=False)
    sent: list[dict[str, Any]] = []
    may_send, is_sending = asyncio.Event(), asyncio.Event()

    async def send(event: dict[str, Any]) -> None:
        is_sending.set()
        await may_send.wait()
        sent.append(event)
        if event["seq"] == journal.last:
            caught_up.set_result(None)

    reading = asyncio.create_task(subscription.run(send))
    caught_up = asyncio.get_running_loop().create_future()
    journal.note("vm1", Resumed())
    await is_sending.wait()
    for _ in range(5000):
        journal.note("vm1", Resumed())
    may_send.set()
    await caught_up
    assert [event["type"] for event in sent] == ["resumed", "gap"] + ["resumed"] * 100
    assert (sent[1]["seq"], sent[1]["missed"]) == (4901, 4900)
    assert [event["seq"] for event in sent[2:]] == list(range(4902, 5002))
    reading.cancel()


async def test_exits_of_an_advance_are_told_and_what_ended_a_loop(wire: Wire) -> None:
    async with serving(wire) as client, connected(client) as socket:
        await socket.call("events.subscribe")
        vm = (await wire.call("kvm.create_vm", execution="cooperative"))["vm"]
        await wire.call("vm.create_vcpu", vm=vm, vcpu=0)
        await wire.call("vm.advance", vm=vm, instructions=10)
        events = await events_until(socket, "vcpu.ended")
        assert types(events) == ["vm.created", "vm.started", "vcpu.exit", "vcpu.ended"]
        assert events[0]["execution"] == "cooperative"


async def test_the_answer_to_a_subscription_comes_before_its_first_event(wire: Wire, vm: str, memory: str) -> None:
    await endless(wire, vm, memory)
    async with serving(wire) as client, connected(client) as socket:
        call = await socket.ask("events.subscribe", since=0)
        await socket.answer(call)
        assert not socket.notifications
        assert (await socket.notified("event"))["type"] == "vm.created"
