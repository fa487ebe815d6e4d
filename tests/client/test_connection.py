import errno

import pytest

from vmmd_client import BadVm, Client, ProtocolError, RpcError, VmmdError, calls

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
