"""`vmmctl vm`: VMs are made, listed, started, advanced, stopped and destroyed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..slots.memslots import MemFlag
from .numbers import NUMBER, SIZE, VM, vm_argument
from .screen import Screen, table
from .session import asks, asks_if

if TYPE_CHECKING:
    from vmmd.api.system import EndedVcpu, VmInfo

    from ..connection import Client

stray_option = click.option(
    "--mmio",
    type=click.Choice(["stop", "ones"]),
    default="stop",
    show_default=True,
    help="What an access without memory does: end that vCPU's run, or read all ones.",
)
"""What becomes of stray MMIO exits."""


@click.group()
def vm() -> None:
    """Make, list, start, advance, stop and destroy VMs."""


@vm.command("list")
@asks
async def list_(vmmd: Client, screen: Screen) -> None:
    """List the VMs, and what ended their vCPUs' runs.

    JSON: [{"vm", "name", "execution", "state", "vcpus": [id], "generation", "dirty_log",
    "ended": [{"vcpu", "exit", "error"}]}]
    """
    infos = await vmmd.kvm.list_vms()
    rows = [
        (
            info.vm,
            info.name or "",
            info.state,
            info.execution,
            len(info.vcpus),
            info.generation,
            "; ".join(ended_text(end) for end in info.ended),
        )
        for info in infos
    ]
    shown = table(("vm", "name", "state", "execution", ">vcpus", ">generation", "ended"), rows)
    screen.give([info.model_dump(mode="json") for info in infos], shown if infos else "no VMs")


def ended_text(end: EndedVcpu) -> str:
    """Say in a few words what ended a vCPU's run loop."""
    if end.error is not None:
        return f"vcpu {end.vcpu}: {end.error.message}"
    if end.exit is None:
        return f"vcpu {end.vcpu}: unknown"
    data = end.exit
    details = ""
    if data.mmio is not None:
        details = f" {'store' if data.mmio.is_write else 'load'} at {data.mmio.phys_addr:#x}"
    elif data.internal is not None:
        details = f" no memory for the instruction at {data.internal.phys_addr:#x}"
    elif data.shutdown is not None:
        details = f" exception {data.shutdown.cause} with {data.shutdown.value:#x}"
    elif data.hypercall is not None:
        details = f" {data.hypercall.nr:#x}"
    return f"vcpu {end.vcpu}: {data.exit_reason}{details}"


def _memory_makes_sense(memory_size: int | None, reserve: int | None, **options: Any) -> None:
    if memory_size is None and (reserve is not None or options["is_logged"] or options["gpa"]):
        raise click.UsageError("--gpa, --reserve and --log say more about --memory, which is not given")
    if reserve is not None and memory_size is not None and reserve < memory_size:
        raise click.UsageError(f"--reserve {reserve:#x} is less than --memory {memory_size:#x}")


@vm.command()
@click.option("--name", metavar="NAME", help="A name for people; it need not be unique.")
@click.option("--memory", "memory_size", type=SIZE, metavar="SIZE", help="Give it memory: slot 0, from --gpa on.")
@click.option("--gpa", type=SIZE, default=0, metavar="ADDRESS", help="Where that memory begins.  [default: 0]")
@click.option(
    "--reserve", type=SIZE, metavar="SIZE", help="Map so much host memory for it, which slot 0 can grow into."
)
@click.option("--log", "is_logged", is_flag=True, help="Keep a dirty log of slot 0.")
@click.option("--vcpus", type=click.IntRange(0, 1024), default=0, metavar="N", help="Create vCPUs 0 to N-1.")
@click.option("--irqchip", is_flag=True, help="Give it the in-kernel interrupt controller.")
@click.option("--cooperative", is_flag=True, help="Its vCPUs run by `vmmctl vm advance` alone, the same each time.")
@click.option("--seed", type=NUMBER, metavar="NUMBER", help="What decides the order in a cooperative VM.")
@asks_if(_memory_makes_sense)
async def create(vmmd: Client, screen: Screen, name: str | None, **options: Any) -> None:
    """Create a VM, on wish with memory and vCPUs; where a step is refused, it is destroyed again.

    JSON: {"vm", "userspace_addr": "0x…" or null}
    """
    memory_size, reserve = options["memory_size"], options["reserve"]
    made = await vmmd.kvm.create_vm(
        name, execution="cooperative" if options["cooperative"] else None, seed=options["seed"]
    )
    userspace_addr = None
    try:
        if memory_size is not None:
            userspace_addr = await made.map_host_memory(reserve or memory_size, "memory")
            await made.set_user_memory_region(
                0,
                guest_phys_addr=options["gpa"],
                memory_size=memory_size,
                userspace_addr=userspace_addr,
                flags=MemFlag.LOG_DIRTY_PAGES if options["is_logged"] else 0,
            )
        if options["irqchip"]:
            await made.create_irqchip()
        for vcpu in range(options["vcpus"]):
            await made.create_vcpu(vcpu)
    except BaseException:
        await made.destroy()
        raise
    screen.give({"vm": made.id, "userspace_addr": None if userspace_addr is None else hex(userspace_addr)}, made.id)


@vm.command()
@click.argument("vms", metavar="VM...", type=VM, nargs=-1, required=True)
@asks
async def destroy(vmmd: Client, screen: Screen, vms: tuple[str, ...]) -> None:
    """Destroy VMs.

    JSON: {"destroyed": [vm]}
    """
    for each in vms:
        await vmmd.kvm.destroy_vm(each)
    screen.give({"destroyed": list(vms)}, *(f"destroyed {each}" for each in vms))


@vm.command()
@vm_argument
@stray_option
@asks
async def start(vmmd: Client, screen: Screen, vm: str, mmio: str) -> None:
    """Start a run loop for each vCPU.

    JSON: {"vm", "state"}
    """
    await vmmd.vm(vm).start("ones" if mmio == "ones" else "stop")
    await _give_state(vmmd, screen, vm)


@vm.command()
@vm_argument
@asks
async def stop(vmmd: Client, screen: Screen, vm: str) -> None:
    """End all run loops of a VM; also where none runs.

    JSON: {"vm", "state"}
    """
    await vmmd.vm(vm).stop()
    await _give_state(vmmd, screen, vm)


async def _give_state(vmmd: Client, screen: Screen, vm: str) -> None:
    states: list[VmInfo] = [info for info in await vmmd.kvm.list_vms() if info.vm == vm]
    state = states[0].state if states else "destroyed"
    screen.give({"vm": vm, "state": state}, table(("", ""), [(vm, state)]))


@vm.command()
@vm_argument
@click.argument("instructions", type=NUMBER)
@stray_option
@asks
async def advance(vmmd: Client, screen: Screen, vm: str, instructions: int, mmio: str) -> None:
    """Let a cooperative VM go on for so many retired instructions.

    It may take as long as it takes: --call-timeout is how long the daemon may say nothing of how far it is.

    JSON: {"instructions", "ended_by", "digest"}
    """
    with screen.progress("advancing", instructions) as ahead:
        before = 0

        def show(done: int, _total: int) -> None:
            nonlocal before
            ahead(done - before)
            before = done

        result = await vmmd.vm(vm).advance(instructions, mmio="ones" if mmio == "ones" else "stop", progress=show)
    rows = [
        ("instructions", result.instructions),
        ("ended by", result.ended_by),
        ("digest", result.digest),
    ]
    screen.give(result.model_dump(mode="json"), table(("", ""), rows))
