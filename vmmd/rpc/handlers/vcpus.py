"""vCPUs: KVM_RUN, registers, interrupts, debugging, statistics."""

from vmmd.api import vcpus
from vmmd.kvm.vcpu import Stats
from vmmd.rpc.handlers.registry import Core, handles, handles_at_once
from vmmd.rpc.handlers.translate import exit_result
from vmmd.rpc.scope import BodyScope

# One entry of a dirty ring as JSON, with the largest numbers, and what stands around all of them.
_ENTRY_BYTES, _AROUND_BYTES = 48, 128

_MP_STATE_NAMES = {number: name for name, number in vcpus.MP_STATES.items()}


@handles("vm.create_vcpu")
async def _create_vcpu(core: Core, params: vcpus.CreateVcpuParams, _scope: BodyScope) -> vcpus.CreateVcpuResult:
    vcpu = await core.vm(params).create_vcpu(params.vcpu)
    return vcpus.CreateVcpuResult(vcpu=vcpu.id)


@handles("vcpu.run")
async def _run(core: Core, params: vcpus.RunParams, _scope: BodyScope) -> vcpus.RunResult:
    machine = core.machine(params)
    exit_ = await core.vcpu(params).run(params.data, params.timeout_ms)
    machine.exit_samples.saw(params.vcpu, exit_)
    return exit_result(exit_)


@handles("vcpu.harvest_dirty_ring")
async def _harvest_dirty_ring(
    core: Core, params: vcpus.HarvestDirtyRingParams, scope: BodyScope
) -> vcpus.HarvestDirtyRingResult:
    # What is harvested is gone from the ring, so no more is than the reply has room for.
    count = min(params.count, max(scope.reply_left - _AROUND_BYTES, 0) // _ENTRY_BYTES)
    found = core.vcpu(params).harvest_dirty_ring(count)
    return vcpus.HarvestDirtyRingResult(
        entries=tuple(vcpus.DirtyGfn(slot=slot, offset=offset) for slot, offset in found)
    )


@handles("vcpu.get_regs")
async def _get_regs(core: Core, params: vcpus.GetRegsParams, _scope: BodyScope) -> dict[str, int]:
    return await core.vcpu(params).get_regs()


@handles("vcpu.set_regs")
async def _set_regs(core: Core, params: vcpus.SetRegsParams, _scope: BodyScope) -> None:
    await core.vcpu(params).set_regs(params.regs)


@handles_at_once("vcpu.set_immediate_exit")
def _set_immediate_exit(core: Core, params: vcpus.SetImmediateExitParams, _scope: BodyScope) -> None:
    core.vcpu(params).set_immediate_exit(params.value)


@handles("vm.create_irqchip")
async def _create_irqchip(core: Core, params: vcpus.CreateIrqchipParams, _scope: BodyScope) -> None:
    await core.vm(params).create_irqchip()


@handles_at_once("vcpu.interrupt")
def _interrupt(core: Core, params: vcpus.InterruptParams, _scope: BodyScope) -> None:
    core.vcpu(params).interrupt()


@handles("vcpu.get_mp_state")
async def _get_mp_state(core: Core, params: vcpus.GetMpStateParams, _scope: BodyScope) -> str:
    return _MP_STATE_NAMES[await core.vcpu(params).get_mp_state()]


@handles("vcpu.set_mp_state")
async def _set_mp_state(core: Core, params: vcpus.SetMpStateParams, _scope: BodyScope) -> None:
    await core.vcpu(params).set_mp_state(vcpus.MP_STATES[params.mp_state])


@handles("vcpu.set_guest_debug")
async def _set_guest_debug(core: Core, params: vcpus.SetGuestDebugParams, _scope: BodyScope) -> None:
    await core.vcpu(params).set_guest_debug(params.control)


@handles_at_once("vcpu.get_stats")
def _get_vcpu_stats(core: Core, params: vcpus.GetVcpuStatsParams, _scope: BodyScope) -> vcpus.StatsResult:
    return _stats(core.vcpu(params).stats())


@handles_at_once("vm.get_stats")
def _get_vm_stats(core: Core, params: vcpus.GetVmStatsParams, _scope: BodyScope) -> vcpus.StatsResult:
    return _stats(core.vm(params).stats())


def _stats(stats: Stats) -> vcpus.StatsResult:
    return vcpus.StatsResult(
        instructions=stats.instructions, exits=stats.exits, stray_exits=stats.stray_exits, kicks=stats.kicks
    )
