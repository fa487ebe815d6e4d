import array
import errno
import importlib.util
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import vmmd_client
import vmmd_client.sync
from vmmd_client import (
    BadVm,
    Client,
    ClientClosed,
    PlanError,
    ProtocolError,
    RpcError,
    UnsendableParam,
    UnusableArgument,
    VmmdError,
    calls,
    connect,
)
from vmmd_client.wire.protocol import Call

from .fake_daemon import FakeDaemon, RefusedError


async def test_a_daemon_of_another_api_version_is_refused_on_entering(daemon: FakeDaemon):
    daemon.answers["kvm.get_api_version"] = lambda params: 13
    with pytest.raises(ProtocolError, match="13"):
        async with daemon.client():
            pass


async def test_any_method_can_be_called_and_its_result_comes_as_it_is(daemon: FakeDaemon, vmmd: Client):
    daemon.answers["vm.frobnicate"] = lambda params: {"given": params}
    assert await vmmd.call("vm.frobnicate", vm="1", how=[1, 2]) == {"given": {"vm": "1", "how": [1, 2]}}


async def test_an_unknown_method_is_an_rpc_error(vmmd: Client):
    with pytest.raises(RpcError, match=r"no\.such") as caught:
        await vmmd.call("no.such")
    assert caught.value.code == -32601


async def test_an_errno_becomes_its_exception(daemon: FakeDaemon, vmmd: Client):
    def no_vm(params: object) -> object:
        raise RefusedError(errno.EBADF, "there is no VM '9'")

    daemon.answers["vm.get_stats"] = no_vm
    with pytest.raises(BadVm, match="no VM '9'"):
        await vmmd.vm("9").get_stats()


async def test_a_batch_is_one_round_trip_and_each_call_has_its_own_outcome(daemon: FakeDaemon, vmmd: Client):
    round_trips = len(daemon.requests)
    async with vmmd.batch() as batch:
        version = batch.add(calls.get_api_version())
        unknown = batch.call("no.such")
        again = batch.call("kvm.get_api_version")
    assert len(daemon.requests) == round_trips + 1
    assert (version.result(), again.result()) == (12, 12)
    assert (version.error, unknown.error is None) == (None, False)
    with pytest.raises(RpcError, match=r"no\.such"):
        unknown.result()


async def test_an_exception_in_a_batch_block_sends_nothing(daemon: FakeDaemon, vmmd: Client):
    round_trips = len(daemon.requests)
    batch = vmmd.batch()
    reply = batch.add(calls.get_api_version())
    with pytest.raises(KeyError):
        async with batch:
            raise KeyError("x")
    assert len(daemon.requests) == round_trips
    with pytest.raises(VmmdError, match="has not been sent"):
        reply.result()


async def test_an_empty_batch_sends_nothing(daemon: FakeDaemon, vmmd: Client):
    round_trips = len(daemon.requests)
    async with vmmd.batch():
        pass
    assert len(daemon.requests) == round_trips


async def send_batch(vmmd: Client, *batched: Call[Any]) -> None:
    async with vmmd.batch() as batch:
        for call in batched:
            batch.add(call)


@pytest.mark.parametrize("value", [b"\0", object(), {1, 2}, float("nan"), [b"deep"], {"deep": (b"er",)}])
async def test_what_json_cannot_hold_is_refused_with_the_parameters_name_and_nothing_is_sent(
    daemon: FakeDaemon, vmmd: Client, value: object
):
    round_trips = len(daemon.requests)
    with pytest.raises(UnsendableParam, match=r"vm\.do: the parameter what cannot be sent") as caught:
        await vmmd.call("vm.do", vm="1", what=value)
    assert (caught.value.method, caught.value.parameter) == ("vm.do", "what")
    with pytest.raises(PlanError):
        await send_batch(vmmd, calls.get_api_version(), calls.raw("vm.do", {"what": value}))
    assert len(daemon.requests) == round_trips


async def test_a_time_that_is_no_number_is_for_the_daemon_to_refuse(daemon: FakeDaemon, vmmd: Client):
    daemon.answers["vm.do"] = lambda params: params["wait_ms"]
    assert await vmmd.call("vm.do", wait_ms="soon") == "soon"


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("inf"), float("nan")])
async def test_a_time_for_calls_that_is_none_is_refused(daemon: FakeDaemon, vmmd: Client, timeout_s: float):
    with pytest.raises(ValueError, match="more than 0 and finite"):
        connect("unix:///run/vmmd.sock", timeout_s=timeout_s)
    for handle in (vmmd, vmmd.vm("vm1"), vmmd.vm("vm1").vcpu(0)):
        with pytest.raises(ValueError, match="more than 0 and finite"):
            handle.with_timeout(timeout_s)


async def test_handles_with_another_time_share_the_connection(daemon: FakeDaemon, vmmd: Client):
    daemon.answers["vcpu.get_mp_state"] = lambda params: "KVM_MP_STATE_RUNNABLE"
    hasty = vmmd.with_timeout(0.5)
    assert await hasty.kvm.get_api_version() == 12
    assert await vmmd.vm("vm1").vcpu(3).with_timeout(2).get_mp_state() == "KVM_MP_STATE_RUNNABLE"
    await hasty.aclose()
    with pytest.raises(ClientClosed):
        await vmmd.kvm.get_api_version()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: array.array("B", data)])
async def test_whatever_has_bytes_is_taken_for_bytes(daemon: FakeDaemon, vmmd: Client, kind: Callable[[bytes], Any]):
    daemon.answers["vm.write_guest_memory"] = lambda params: None
    await vmmd.vm("1").write_guest_memory(0, kind(b"nope"))
    assert daemon.requests[-1]["params"]["data"] == "bm9wZQ=="


async def test_bytes_with_gaps_go_without_them(daemon: FakeDaemon, vmmd: Client):
    daemon.answers["vm.write_guest_memory"] = lambda params: None
    await vmmd.vm("1").write_guest_memory(0, memoryview(b"n.o.p.e.")[::2])
    assert daemon.requests[-1]["params"]["data"] == "bm9wZQ=="


@pytest.mark.parametrize(
    ("asking", "parameter"),
    [
        (lambda vmmd, wrong: vmmd.vm("1").write_guest_memory(0, wrong), "data"),
        (lambda vmmd, wrong: vmmd.vm("1").write_host_memory(0, wrong), "data"),
        (lambda vmmd, wrong: vmmd.vm("1").load_elf(wrong), "data"),
        (lambda vmmd, wrong: vmmd.vm("1").clear_dirty_log(0, 0, 64, wrong), "bitmap"),
        (lambda vmmd, wrong: vmmd.vm("1").vcpu(0).run(wrong), "data"),
        (lambda vmmd, wrong: vmmd.isa.disassemble(wrong), "code"),
    ],
)
@pytest.mark.parametrize("wrong", ["nope", 4, [1, 2]])
async def test_text_for_bytes_is_refused_and_nothing_is_sent(
    daemon: FakeDaemon, vmmd: Client, asking: Callable[[Client, Any], Awaitable[Any]], parameter: str, wrong: object
):
    round_trips = len(daemon.requests)
    with pytest.raises(UnsendableParam, match="bytes are wanted") as caught:
        await asking(vmmd, wrong)
    assert caught.value.parameter == parameter
    assert len(daemon.requests) == round_trips


@pytest.mark.parametrize("wrong", [b"nop", bytearray(b"nop"), memoryview(b"nop")])
async def test_bytes_for_text_are_refused_and_nothing_is_sent(daemon: FakeDaemon, vmmd: Client, wrong: Any):
    round_trips = len(daemon.requests)
    with pytest.raises(UnsendableParam, match="text is wanted") as caught:
        await vmmd.isa.assemble(wrong)
    assert caught.value.parameter == "source"
    assert len(daemon.requests) == round_trips


async def test_a_batch_has_one_block(daemon: FakeDaemon, vmmd: Client):
    async with vmmd.batch() as batch:
        reply = batch.add(calls.get_api_version())
        with pytest.raises(VmmdError, match="entered before"):
            async with batch:
                pass
    round_trips = len(daemon.requests)
    with pytest.raises(VmmdError, match="entered before"):
        async with batch:
            pass
    with pytest.raises(VmmdError, match="is over"):
        batch.call("kvm.get_api_version")
    assert (reply.result(), len(daemon.requests)) == (12, round_trips)


@pytest.mark.parametrize("arguments", [{"timeout_s": "3"}, {"timeout_s": None}, {"attempts": "2"}, {"attempts": 0}])
def test_arguments_that_cannot_be_meant_are_refused_by_their_names(arguments: dict[str, Any]):
    (name,) = arguments
    with pytest.raises(UnusableArgument, match=name) as caught:
        connect("unix:///run/vmmd.sock", **arguments)
    assert caught.value.argument == name


@pytest.mark.parametrize("package", [vmmd_client, vmmd_client.sync])
def test_objects_show_whose_they_are(package: Any):
    for url in ("unix:///run/vmmd.sock", "ws://127.0.0.1:1"):
        client = package.connect(url)
        assert url in repr(client)
    assert repr(client.vm("vm7")) == "Vm('vm7')"
    assert repr(client.vm("vm7").vcpu(3)) == "Vcpu(3, vm='vm7')"
    assert "vm7" in repr(client.events("vm7"))


def test_the_package_names_the_modules_that_are_imported_by_themselves():
    for name in ("address_space", "testing", "local_daemon", "audit", "replay", "errors", "sync"):
        assert f"`{name}`" in (vmmd_client.__doc__ or "")
        assert importlib.util.find_spec(f"vmmd_client.{name}") is not None
