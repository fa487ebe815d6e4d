"""Kick and resume."""

from vmmd.api import holds
from vmmd.kvm.errors import KvmError
from vmmd.kvm.hold import Kick
from vmmd.rpc.caller import carry_through
from vmmd.rpc.handlers.registry import Core, handles
from vmmd.rpc.scope import BodyScope


@handles("vm.kick_all_running_vcpus")
async def _kick_all_running_vcpus(
    core: Core, params: holds.KickAllRunningVcpusParams, scope: BodyScope
) -> holds.KickResult:
    vm = core.vm(params)
    if params.hold is None:
        raw = vm.kick_all_running_vcpus(
            wait_ms=params.wait_ms, lease_ms=params.lease_ms, if_generation=params.if_generation
        )
        # Its request stands whoever goes, so it is carried through.
        kicked = await carry_through(raw)
        core.timings.note_raw(kicked.kick_ns)
        return _kick_result(kicked)
    scope.opening(vm, params.hold)
    kick = await vm.kick_all_running_vcpus(
        params.hold, wait_ms=params.wait_ms, lease_ms=params.lease_ms, if_generation=params.if_generation
    )
    if not kick.renewed:
        core.timings.note_opened(kick.kick_ns)
        scope.opened(vm, params.hold)
    return _kick_result(kick)


def _kick_result(kick: Kick) -> holds.KickResult:
    return holds.KickResult(
        hold=kick.hold,
        kicked=kick.kicked,
        kick_ns=kick.kick_ns,
        generation=kick.generation,
        lease_ms=kick.lease_ms,
        number=kick.number,
    )


@handles("vm.resume_all_kicked_vcpus")
async def _resume_all_kicked_vcpus(
    core: Core, params: holds.ResumeAllKickedVcpusParams, scope: BodyScope
) -> holds.ResumeResult:
    vm = core.vm(params)
    if params.hold is None:
        raw = await vm.resume_all_kicked_vcpus()
        return holds.ResumeResult(pause_ns=raw.pause_ns, generation=raw.generation)
    try:
        resume = await vm.resume_all_kicked_vcpus(params.hold)
    except KvmError as error:
        scope.ended(vm, params.hold, rolled_back=True)
        if error.data.get("rolled_back"):
            core.timings.note_ended("rolled_back", error.data["pause_ns"])
        raise
    scope.ended(vm, params.hold, rolled_back=False)
    if resume.pause_ns is not None:
        core.timings.note_ended("kept", resume.pause_ns)
    return holds.ResumeResult(pause_ns=resume.pause_ns, generation=resume.generation)
