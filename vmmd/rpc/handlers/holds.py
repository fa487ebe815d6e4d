"""Kick and resume.

A hold that nobody could use is given back by the kick that opened it: one on a slot table that moved on while the kick
waited, and one whose caller went away meanwhile and so never learns that it has to resume.
"""

import errno

from vmmd.api import holds
from vmmd.kvm.errors import KvmError
from vmmd.rpc.handlers.registry import Core, handles
from vmmd.rpc.handlers.translate import stale
from vmmd.rpc.scope import BodyScope


@handles("vm.kick_all_running_vcpus")
async def _kick_all_running_vcpus(
    core: Core, params: holds.KickAllRunningVcpusParams, scope: BodyScope
) -> holds.KickResult:
    vm = core.vm(params)
    scope.opening(vm, params.hold)
    kick = await vm.kick_all_running_vcpus(params.hold, wait_ms=params.wait_ms)
    if params.if_generation is not None and kick.generation != params.if_generation:
        if not kick.renewed:
            vm.abandon_hold(params.hold)
        raise stale(vm, params.if_generation)
    if not kick.renewed and scope.caller_is_gone():
        vm.abandon_hold(params.hold)
        raise KvmError(errno.ECANCELED, f"the caller went before its hold {params.hold!r} was open; it is given back")
    if not kick.renewed:
        scope.opened(vm, params.hold)
    return holds.KickResult(hold=kick.hold, kicked=kick.kicked, kick_ns=kick.kick_ns, generation=kick.generation)


@handles("vm.resume_all_kicked_vcpus")
async def _resume_all_kicked_vcpus(
    core: Core, params: holds.ResumeAllKickedVcpusParams, scope: BodyScope
) -> holds.ResumeResult:
    vm = core.vm(params)
    try:
        resume = await vm.resume_all_kicked_vcpus(params.hold)
    except KvmError:
        scope.ended(vm, params.hold, rolled_back=True)
        raise
    scope.ended(vm, params.hold, rolled_back=False)
    return holds.ResumeResult(pause_ns=resume.pause_ns, generation=resume.generation)
