"""The kernel is the judge: what its KVM was recorded to answer, vmmd answers too, in process and through the RPC."""

from __future__ import annotations

from collections import Counter

from tests.conformance.recording import recorded_sequences
from tests.conformance.replay import differences
from tests.conformance.subjects import InProcess, OverRpc
from vmmd.kvm.system import System
from vmmd_client import connect
from vmmd_client.local_daemon import local_daemon


def test_the_recording_is_whole() -> None:
    operations = Counter(operation["op"] for sequence in recorded_sequences() for operation in sequence["ops"])
    assert sum(operations.values()) == 17_703


async def test_every_recorded_answer_is_given_in_process(system: System) -> None:
    for sequence in recorded_sequences():
        vm = system.create_vm()
        await vm.create_vcpu(0)
        assert await differences(InProcess(vm), sequence) == []
        await system.destroy_vm(vm.id)


async def test_every_recorded_answer_is_given_through_the_rpc() -> None:
    async with local_daemon() as url, connect(url) as vmmd:
        for sequence in recorded_sequences():
            vm = await vmmd.kvm.create_vm()
            await vm.create_vcpu(0)
            assert await differences(OverRpc(vm), sequence) == []
            await vm.destroy()
