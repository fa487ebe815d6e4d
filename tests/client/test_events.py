import asyncio
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import vmmd_client.events
import vmmd_client.sync.events
from vmmd.api.events import Event, HoldFailedEvent, VmStartedEvent
from vmmd_client import (
    CallTimeout,
    ClientClosed,
    ConnectError,
    GapEvent,
    OtherEvent,
    Place,
    ProtocolError,
    UnusableArgument,
    VmmdError,
)
from vmmd_client.testing import Fault, MemoryDaemon

from .twin_driver import TWINS, Driven

pytestmark = pytest.mark.parametrize("twin", TWINS)


@pytest.fixture
def daemon() -> MemoryDaemon:
    return MemoryDaemon()


def client(daemon: MemoryDaemon, twin: str) -> Driven:
    return Driven(daemon.connect() if twin == "async" else daemon.connect_sync())


async def events_of(vmmd: Driven, *args: Any, **kwargs: Any) -> Driven:
    events = await vmmd.do("events", *args, **kwargs)
    assert isinstance(events, Driven)
    return events


async def next_seq(events: Driven) -> int:
    event = await received(events)
    return int(event.seq)


async def received(events: Driven) -> Any:
    event = await events.do("receive", 20.0)
    return event.inner if isinstance(event, Driven) else event


async def test_what_happens_behind_the_subscription_comes_typed_and_in_order(daemon: MemoryDaemon, twin: str):
    daemon.emit("vm.started", "vm1")
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        daemon.emit("vm.started", "vm1")
        daemon.emit("hold.failed", "vm2", hold=3, errno="EEXIST")
        first, second = await received(events), await received(events)
    assert isinstance(first, VmStartedEvent)
    assert (first.seq, first.vm) == (2, "vm1")
    assert isinstance(second, HoldFailedEvent)
    assert (second.seq, second.hold, second.errno) == (3, 3, "EEXIST")


async def test_one_vms_events_can_be_had_alone(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd:
        vm = await vmmd.do("vm", "vm2")
        async with await events_of(vm) as events:
            daemon.emit("vm.started", "vm1")
            daemon.emit("vm.started", "vm2")
            assert await next_seq(events) == 2


async def test_a_lost_connection_goes_on_behind_the_last_event_and_nothing_comes_twice(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        daemon.emit("vm.started", "vm1")
        assert await next_seq(events) == 1
        daemon.drop_links()
        daemon.emit("vm.stopped", "vm1")
        daemon.emit("vm.started", "vm1")
        assert [await next_seq(events), await next_seq(events)] == [2, 3]
    assert [call.params.get("since") for call in daemon.calls if call.method == "events.subscribe"] == [None, 1]


async def test_a_connection_lost_before_the_first_event_loses_none(daemon: MemoryDaemon, twin: str):
    daemon.emit("vm.started", "vm1")
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        daemon.drop_links()
        daemon.emit("vm.stopped", "vm1")
        assert await next_seq(events) == 2


async def test_what_the_daemon_has_forgotten_meanwhile_is_a_gap(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        daemon.drop_links()
        for _ in range(3):
            daemon.emit("vm.started", "vm1")
        daemon.forget_events()
        daemon.emit("vm.stopped", "vm1")
        gap, event = await received(events), await received(events)
    assert isinstance(gap, GapEvent)
    assert (gap.missed, gap.seq, event.seq) == (3, 3, 4)


async def test_a_daemon_that_was_started_anew_is_a_gap_of_unknown_size_and_then_its_own_events(
    daemon: MemoryDaemon, twin: str
):
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        for _ in range(5):
            daemon.emit("vm.started", "vm1")
        assert [await next_seq(events) for _ in range(5)] == [1, 2, 3, 4, 5]
        daemon.restart()
        daemon.emit("vm.created", "vm1", name=None, execution="parallel")
        gap = await received(events)
        assert isinstance(gap, GapEvent)
        assert gap.missed is None
        assert await next_seq(events) == 1
        daemon.drop_links()
        daemon.emit("vm.started", "vm1")
        assert await next_seq(events) == 2


async def test_a_daemon_that_takes_a_while_to_start_anew_is_tried_again(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        for _ in range(5):
            daemon.emit("vm.started", "vm1")
        assert await next_seq(events) == 1
        daemon.restart()
        daemon.emit("vm.started", "vm1")
        # What was sent before the connection ended is given still; then the new start's gap.
        assert [await next_seq(events) for _ in range(4)] == [2, 3, 4, 5]
        daemon.inject(Fault.NOT_CONNECTED, method="events.subscribe")
        assert isinstance(await received(events), GapEvent)
        assert await next_seq(events) == 1


async def test_another_iterator_goes_on_from_a_place(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd:
        async with await events_of(vmmd) as events:
            daemon.emit("vm.started", "vm1")
            daemon.emit("vm.stopped", "vm1")
            assert await next_seq(events) == 1
        async with await events_of(vmmd, since=events.inner.place) as later:
            assert await next_seq(later) == 2


async def test_an_event_that_does_not_come_is_a_timeout_and_the_iterator_stands(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        with pytest.raises(CallTimeout):
            await events.do("receive", 0.01)
        daemon.emit("vm.started", "vm1")
        assert await next_seq(events) == 1


async def test_an_event_of_a_type_that_is_not_known_keeps_its_fields(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        daemon.emit("vm.teleported", "vm1", to="the moon")
        event = await received(events)
    assert isinstance(event, OtherEvent)
    assert (event.type, event.wire_type, event.fields) == ("other", "vm.teleported", {"to": "the moon"})


async def test_an_event_of_another_shape_is_a_protocol_error(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        daemon.emit_unchecked({"type": "hold.failed", "vm": "vm1", "hold": "three"})
        with pytest.raises(ProtocolError, match="another shape"):
            await received(events)


async def test_closed_events_end_the_iteration_and_say_so(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd:
        async with await events_of(vmmd) as events:
            pass
        with pytest.raises(ClientClosed, match=r"since=events\.place"):
            await received(events)
        if twin == "async":
            assert [event async for event in events.inner] == []
        else:
            assert list(events.inner) == []


async def test_a_daemon_that_stays_away_is_an_error_in_its_time(
    daemon: MemoryDaemon, twin: str, monkeypatch: pytest.MonkeyPatch
):
    for module in (vmmd_client.events, vmmd_client.sync.events):
        monkeypatch.setattr(module, "RECONNECT_TIMEOUT_S", 0.0)
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        daemon.drop_links()
        daemon.inject(Fault.NOT_CONNECTED, method="events.subscribe")
        with pytest.raises(ConnectError):
            await received(events)


async def test_while_the_daemon_is_away_each_receive_waits_out_its_time_and_the_iterator_then_goes_on(
    daemon: MemoryDaemon, twin: str, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    for module in (vmmd_client.events, vmmd_client.sync.events):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(vmmd_client.events, "sleep", clock.sleep)
    monkeypatch.setattr(vmmd_client.sync.events, "sleep", clock.pass_by)
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        daemon.drop_links()
        for _ in range(40):
            daemon.inject(Fault.NOT_CONNECTED, method="events.subscribe")
        for timeout_s in (0.1, 1.0, 3.0):
            began = clock.now
            with pytest.raises(ConnectError):
                await events.do("receive", timeout_s)
            assert clock.now - began == pytest.approx(timeout_s)
        assert daemon.pending_faults > 20, "it was asked over and over"
        while daemon.pending_faults:
            with pytest.raises(ConnectError):
                await events.do("receive", 0.0)
        daemon.emit("vm.started", "vm1")
        assert await next_seq(events) == 1


class Clock:
    """Time that passes by waiting alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_a_first_subscription_that_fails_is_told_at_once(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd:
        daemon.inject(Fault.NOT_CONNECTED, method="events.subscribe")
        events = await events_of(vmmd)
        with pytest.raises(ConnectError):
            await events.do("receive", 60.0)
        assert daemon.pending_faults == 0


async def test_a_time_without_an_event_is_told_as_that(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        with pytest.raises(CallTimeout, match=r"^no event came within 0\.01 s; the subscription stands$"):
            await events.do("receive", 0.01)


async def test_a_second_reader_is_refused_and_takes_nothing_from_the_first(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        readers = {asyncio.create_task(received(events)) for _ in range(2)}
        [refused], [reader] = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(VmmdError, match="iterator of its own"):
            await refused
        daemon.emit("vm.started", "vm1")
        assert (await reader).vm == "vm1"


async def test_a_number_is_no_place_and_a_text_no_time(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd:
        with pytest.raises(UnusableArgument, match=r"Place\(5\)") as caught:
            await vmmd.do("events", since=5)
        assert caught.value.argument == "since"
        events = await events_of(vmmd)
        with pytest.raises(UnusableArgument, match="timeout_s"):
            await events.do("receive", "3")
        with pytest.raises(UnusableArgument, match="timeout_s"):
            await events.do("receive", float("nan"))
        await events_of(vmmd, since=Place(5))


@pytest.mark.parametrize(
    ("event_type", "fields", "wrong"),
    [("vm.created", {"name": "x"}, "execution"), ("hold.failed", {"hold": "3", "errno": "EEXIST"}, "hold")],
)
async def test_an_event_that_no_daemon_makes_is_refused_where_it_is_emitted(
    daemon: MemoryDaemon, twin: str, event_type: str, fields: dict[str, Any], wrong: str
):
    async with client(daemon, twin) as vmmd, await events_of(vmmd) as events:
        with pytest.raises(UnusableArgument, match=event_type) as caught:
            daemon.emit(event_type, "vm1", **fields)
        assert caught.value.argument == wrong
        daemon.emit("vm.started", "vm1")
        assert await next_seq(events) == 1


def test_every_type_of_the_wire_is_one_class_that_both_packages_export(twin: str):
    package = vmmd_client if twin == "async" else vmmd_client.sync
    classes = {kind.__name__: kind.model_fields["type"].default for kind in EVENT_CLASSES}
    assert len(set(classes.values())) == len(classes)
    for name, event_type in classes.items():
        assert getattr(package, name).model_fields["type"].default == event_type


def test_a_checker_of_types_narrows_an_event_by_its_type_and_by_its_class(twin: str, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(NARROWING.replace("PACKAGE", "vmmd_client" if twin == "async" else "vmmd_client.sync"))
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=Path(__file__).parents[2],
    )
    assert checked.stdout == ""


EVENT_CLASSES = typing.get_args(typing.get_args(Event)[0])
NARROWING = """
from PACKAGE import AnyEvent, HoldExpiredEvent, OtherEvent

def what(event: AnyEvent) -> str:
    if event.type == "vm.created":
        return event.execution
    if event.type == "other":
        return event.wire_type
    if isinstance(event, HoldExpiredEvent):
        return event.became
    return event.type
"""
