"""The system level, and the daemon itself."""

import asyncio
import errno
import os
import time
from functools import cache
from typing import Any

from vmmd.api import system
from vmmd.api.errors import RpcError
from vmmd.api.methods import METHODS
from vmmd.api.openrpc import document
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import Exit
from vmmd.kvm.uapi import KVM_API_VERSION
from vmmd.machine.machine import Machine
from vmmd.rpc.handlers.registry import Core, handles, handles_at_once
from vmmd.rpc.handlers.translate import call_error, exit_result
from vmmd.rpc.scope import BodyScope


@handles_at_once("kvm.get_api_version")
def _get_api_version(_core: Core, _params: system.GetApiVersionParams, _scope: BodyScope) -> int:
    return KVM_API_VERSION


@handles_at_once("kvm.check_extension")
def _check_extension(core: Core, params: system.CheckExtensionParams, _scope: BodyScope) -> int:
    return core.kvm.check_extension(params.extension)


@handles_at_once("kvm.create_vm")
def _create_vm(core: Core, params: system.CreateVmParams, _scope: BodyScope) -> system.CreateVmResult:
    if params.execution == "cooperative":
        return system.CreateVmResult(vm=core.machines.create(params.name, params.seed or 0).vm.id)
    if params.seed is not None:
        sentence = f"seed {params.seed:#x}: only a cooperative VM has one, and this is to be parallel"
        raise KvmError(errno.EINVAL, sentence)
    return system.CreateVmResult(vm=core.machines.create(params.name).vm.id)


@handles("kvm.destroy_vm")
async def _destroy_vm(core: Core, params: system.DestroyVmParams, _scope: BodyScope) -> None:
    vm = core.vm(params)
    await core.machines.destroy(params.vm)
    core.totals.leave(vm)


@handles("kvm.list_vms")
async def _list_vms(core: Core, _params: system.ListVmsParams, _scope: BodyScope) -> list[system.VmInfo]:
    return [_vm_info(machine) for machine in core.machines.all()]


def _vm_info(machine: Machine) -> system.VmInfo:
    return system.VmInfo(
        vm=machine.vm.id,
        name=machine.vm.name,
        execution="parallel" if machine.vm.cooperative is None else "cooperative",
        state=machine.state.value,
        vcpus=tuple(sorted(machine.vm.vcpus)),
        generation=machine.vm.generation,
        dirty_log=machine.vm.dirty_log,
        ended=tuple(_ended(vcpu, end) for vcpu, end in sorted(machine.ended.items())),
    )


def _ended(vcpu: int, end: Exit | KvmError) -> system.EndedVcpu:
    if isinstance(end, KvmError):
        error = call_error(end, METHODS["vcpu.run"])
        return system.EndedVcpu(vcpu=vcpu, error=RpcError(code=error.code, message=error.message, data=error.data))
    return system.EndedVcpu(vcpu=vcpu, exit=exit_result(end))


@handles("rpc.discover")
async def _discover(_core: Core, _params: system.DiscoverParams, _scope: BodyScope) -> dict[str, Any]:
    # The first time it takes a while to make.
    return await asyncio.to_thread(_document)


# The table is the same for as long as the daemon runs.
_document = cache(document)


@handles_at_once("daemon.get_info")
def _get_info(core: Core, _params: system.GetInfoParams, _scope: BodyScope) -> system.InfoResult:
    return system.InfoResult(
        version=core.about.version,
        engine=core.about.engine,
        pid=os.getpid(),
        uptime_ms=(time.monotonic_ns() - core.about.started_ns) // 1_000_000,
        limits=dict(core.about.limits),
    )
