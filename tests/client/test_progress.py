"""How far a call is, told to whoever asks for it, in both twins; and that an advance is never sent twice."""

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
    UnusableArgument,
)
from vmmd_client.local_daemon import local_daemon
from vmmd_client.testing import Fault, MemoryDaemon

from .twin_driver import TWINS, Driven, connect

pytestmark = pytest.mark.parametrize("twin", TWINS)

FOR_EVER = 1 << 50
PAGE = 4096


class Enough(Exception):  # noqa: N818
    """Raised by whoever has been told enough."""


def until(times: int, told: list[tuple[int, int]]) -> Callable[[int, int], None]:
    """Give a listener that has enough when it has been told so often."""

    def listen(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == times:
            raise Enough

    return listen


@pytest.fixture
def daemon() -> MemoryDaemon:
    daemon = MemoryDaemon()
    daemon.answer("vm.advance", {"instructions": 100, "ended_by": "instructions", "digest": "00"})
    return daemon


def client(daemon: MemoryDaemon, twin: str) -> Driven:
    return Driven(daemon.connect() if twin == "async" else daemon.connect_sync())


async def test_each_word_is_handed_on_before_the_result(daemon: MemoryDaemon, twin: str):
    daemon.tell_progress("vm.advance", (10, 100), (60, 100))
    told: list[tuple[int, int]] = []
    async with client(daemon, twin) as vmmd:
        vm = await vmmd.do("vm", "vm1")
        result = await vm.do("advance", 100, progress=lambda *now: told.append(now))
    assert told == [(10, 100), (60, 100)]
    assert result.instructions == 100


async def test_what_the_listener_raises_ends_the_call(daemon: MemoryDaemon, twin: str):
    daemon.tell_progress("vm.advance", (10, 100))
    async with client(daemon, twin) as vmmd:
        with pytest.raises(Enough):
            await (await vmmd.do("vm", "vm1")).do("advance", 100, progress=until(1, []))


async def test_a_listener_that_cannot_be_called_is_refused_before_anything_is_sent(daemon: MemoryDaemon, twin: str):
    async with client(daemon, twin) as vmmd:
        with pytest.raises(UnusableArgument, match="progress"):
            await (await vmmd.do("vm", "vm1")).do("advance", 100, progress="yes")
    assert [call.method for call in daemon.calls] == ["kvm.get_api_version"]


async def test_progress_of_another_shape_is_a_protocol_error(daemon: MemoryDaemon, twin: str):
    daemon.tell_progress("vm.advance", ("half", 100))  # type: ignore[arg-type]
    async with client(daemon, twin) as vmmd:
        with pytest.raises(ProtocolError, match="another version"):
            await (await vmmd.do("vm", "vm1")).do("advance", 100, progress=until(9, []))


@pytest.mark.parametrize("options", [{}, {"progress": print}, {"request_id": "mine"}])
async def test_an_advance_whose_answer_is_lost_is_not_sent_again(
    daemon: MemoryDaemon, twin: str, options: dict[str, Any]
):
    daemon.inject(Fault.REQUEST_LOST, method="vm.advance")
    async with client(daemon, twin) as vmmd:
        with pytest.raises(Disconnected):
            await (await vmmd.do("vm", "vm1")).do("advance", 100, **options)
        assert "vm.advance" not in [call.method for call in daemon.calls]
        await (await vmmd.do("vm", "vm1")).do("advance", 100, **options)
    assert daemon.calls[-1].params["request_id"] == options.get("request_id", daemon.calls[-1].params["request_id"])


@pytest.mark.parametrize("scheme", ["unix", "ws+unix"])
async def test_a_daemon_tells_how_far_an_endless_advance_is_and_ends_it_with_the_listener(twin: str, scheme: str):
    async with local_daemon() as url, connect(twin, url.replace("unix", scheme)) as vmmd:
        vm = await vmmd.do("kvm.create_vm", execution="cooperative")
        memory = await vm.do("map_host_memory", PAGE)
        await vm.do("set_user_memory_region", 0, guest_phys_addr=0, memory_size=PAGE, userspace_addr=memory)
        program = await vmmd.do("isa.assemble", "again: j again")
        await vm.do("write_guest_memory", 0, program.code)
        await vm.do("create_vcpu", 0)
        told: list[tuple[int, int]] = []
        with pytest.raises(Enough):
            await vm.do("advance", FOR_EVER, progress=until(2, told))
        (first, total), (second, _) = told
        assert 0 < first < second < total == FOR_EVER
        # The daemon hears a moment later that the connection has gone.
        assert (await _advance_when_free(vm)).instructions == 5


async def _advance_when_free(vm: Driven) -> Any:
    while True:
        try:
            return await vm.do("advance", 5, wait_ms=5_000)
        except HoldConflict:
            continue


@pytest.mark.parametrize("kind", [ConnectError, CallTimeout])
async def test_what_a_listener_met_elsewhere_is_told_as_it_is_and_has_nothing_sent_again(
    daemon: MemoryDaemon, twin: str, kind: type[TransportError]
):
    daemon.tell_progress("vm.advance", (10, 100))

    def listen(done: int, total: int) -> None:
        raise kind(f"another daemon is not there, at {done} of {total}")

    async with client(daemon, twin) as vmmd:
        with pytest.raises(kind, match=r"^another daemon is not there, at 10 of 100$"):
            await (await vmmd.do("vm", "vm1")).do("advance", 100, progress=listen)
    assert [call.method for call in daemon.calls].count("vm.advance") == 1


async def test_a_deadline_that_is_weeks_away_is_waited_for_as_any_other(twin: str):
    async with local_daemon() as url, connect(twin, url) as vmmd:
        vm = await vmmd.do("kvm.create_vm", execution="cooperative")
        advanced = await vm.do("advance", 5, deadline_ms=2**32 - 1, progress=lambda done, total: None)
        assert advanced.ended_by == "idle"
