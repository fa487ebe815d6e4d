import errno
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from vmmd_client import (
    CallTimeout,
    ConnectError,
    Disconnected,
    HoldConflict,
    ProtocolError,
    TransportError,
    UnknownMethod,
    VmmdError,
)
from vmmd_client.testing import Fault, MemoryDaemon, Refusal

from .twin_driver import TWINS, Driven

KINDS = {
    Fault.NOT_CONNECTED: (ConnectError, False),
    Fault.REQUEST_LOST: (Disconnected, False),
    Fault.REPLY_LOST: (Disconnected, True),
    Fault.NO_REPLY: (CallTimeout, True),
    Fault.REPLY_TORN: (ProtocolError, True),
}

pytestmark = pytest.mark.parametrize("twin", TWINS)


@pytest.fixture
def daemon() -> MemoryDaemon:
    daemon = MemoryDaemon()
    daemon.answer("kvm.create_vm", {"vm": "vm1"})
    daemon.answer("vm.start", None)
    return daemon


def client(daemon: MemoryDaemon, twin: str, **kwargs: Any) -> Driven:
    return Driven(daemon.connect(**kwargs) if twin == "async" else daemon.connect_sync(**kwargs))


def methods(daemon: MemoryDaemon) -> list[str]:
    return [call.method for call in daemon.calls]


async def test_calls_are_answered_as_told_and_recorded_with_their_parameters(daemon: MemoryDaemon, twin: str):
    daemon.answer("vm.read_console", lambda params: {"data": "aGk=", "next": params["since"] + 2})
    async with client(daemon, twin) as vmmd:
        vm = await vmmd.do("kvm.create_vm", "name")
        console = await (await vmmd.do("vm", "vm1")).do("read_console", 5)
        assert (vm.inner.id, console.inner if isinstance(console, Driven) else console.data) == ("vm1", b"hi")
    assert methods(daemon) == ["kvm.get_api_version", "kvm.create_vm", "vm.read_console"]
    assert daemon.calls[1].params["name"] == "name"
    assert [call.round_trip for call in daemon.calls] == [0, 1, 2]


async def test_a_refusal_comes_as_the_daemons_own_would(daemon: MemoryDaemon, twin: str):
    daemon.refuse("vm.start", errno.EBUSY, "the loops run already", ioctl=None)
    async with client(daemon, twin) as vmmd:
        with pytest.raises(HoldConflict, match="EBUSY: the loops run already"):
            await (await vmmd.do("vm", "vm1")).do("start")


async def test_a_method_that_the_test_told_nothing_of_is_unknown(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd:
        with pytest.raises(UnknownMethod, match="no answer for it"):
            await (await vmmd.do("vm", "vm1")).do("stop")


async def test_the_calls_of_a_batch_share_a_round_trip(daemon: MemoryDaemon, twin: str):
    def refuse(params: Any) -> Any:
        raise Refusal(errno.EBUSY, "no")

    daemon.answer("vm.stop", refuse)
    async with client(daemon, twin) as vmmd:
        batch = await vmmd.do("batch")
        async with batch:
            started, stopped = (batch.inner.call(f"vm.{what}", vm="vm1") for what in ("start", "stop"))
    assert (started.result(), type(stopped.error)) == (None, HoldConflict)
    assert [call.round_trip for call in daemon.calls] == [0, 1, 1]


@pytest.mark.parametrize("fault", Fault)
async def test_a_fault_is_its_exception_and_the_daemon_has_done_it_or_not(
    daemon: MemoryDaemon, twin: str, fault: Fault
):
    kind, done = KINDS[fault]
    async with client(daemon, twin, attempts=1) as vmmd:
        daemon.inject(fault, method="vm.start")
        await vmmd.do("kvm.create_vm")
        with pytest.raises(kind):
            await (await vmmd.do("vm", "vm1")).do("start")
    assert methods(daemon).count("vm.start") == done
    assert daemon.pending_faults == 0


async def test_a_fault_can_be_had_at_every_round_trip_in_turn(daemon: MemoryDaemon, twin: str):
    failed = []
    for skip in itertools.count():
        daemon.inject(Fault.REQUEST_LOST, skip=skip)
        try:
            async with client(daemon, twin, attempts=1) as vmmd:
                await vmmd.do("kvm.create_vm")
                await (await vmmd.do("vm", "vm1")).do("start")
        except VmmdError:
            failed.append(skip)
        else:
            break
    assert failed == [0, 1, 2]
    assert daemon.pending_faults == 1


@pytest.mark.parametrize("fault", [Fault.NOT_CONNECTED, Fault.REQUEST_LOST, Fault.REPLY_LOST])
async def test_a_read_is_asked_again_and_its_caller_notices_nothing(daemon: MemoryDaemon, twin: str, fault: Fault):
    async with client(daemon, twin) as vmmd:
        daemon.inject(fault)
        daemon.inject(fault)
        assert await vmmd.do("kvm.get_api_version") == 12


async def test_attempts_are_bounded(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin, attempts=2) as vmmd:
        daemon.inject(Fault.REQUEST_LOST)
        daemon.inject(Fault.REQUEST_LOST)
        with pytest.raises(Disconnected):
            await vmmd.do("kvm.get_api_version")
        assert await vmmd.do("kvm.get_api_version") == 12


@pytest.mark.parametrize("fault", [Fault.REQUEST_LOST, Fault.REPLY_LOST])
async def test_a_change_that_bears_a_request_id_is_done_once_however_often_it_is_sent(
    daemon: MemoryDaemon, twin: str, fault: Fault
):
    started: list[Any] = []
    daemon.answer("vm.start", started.append)
    async with client(daemon, twin) as vmmd:
        daemon.inject(fault, method="vm.start")
        await vmmd.do("call", "vm.start", vm="vm1", request_id="mine")
    assert len(started) == 1
    assert [call.repeated for call in daemon.calls if call.method == "vm.start"] in ([False], [False, True])


@pytest.mark.parametrize("fault", [Fault.REQUEST_LOST, Fault.REPLY_LOST])
async def test_a_change_without_one_is_not_sent_again(daemon: MemoryDaemon, twin: str, fault: Fault):
    async with client(daemon, twin) as vmmd:
        daemon.inject(fault, method="vm.start")
        with pytest.raises(Disconnected):
            await vmmd.do("call", "vm.start", vm="vm1")
    assert methods(daemon).count("vm.start") <= 1


@pytest.mark.parametrize("fault", [Fault.NO_REPLY, Fault.REPLY_TORN])
async def test_a_time_that_is_up_and_an_answer_that_is_none_are_not_asked_again(
    daemon: MemoryDaemon, twin: str, fault: Fault
):
    async with client(daemon, twin) as vmmd:
        daemon.inject(fault)
        with pytest.raises((TransportError, ProtocolError)):
            await vmmd.do("kvm.get_api_version")
        assert methods(daemon) == ["kvm.get_api_version"] * 2


@pytest.mark.parametrize("attempts", [0, -1])
def test_fewer_attempts_than_one_are_refused(daemon: MemoryDaemon, twin: str, attempts: int):
    connect: Callable[..., Any] = daemon.connect if twin == "async" else daemon.connect_sync
    with pytest.raises(ValueError, match="at least once"):
        connect(attempts=attempts)
