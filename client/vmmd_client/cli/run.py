"""`vmmctl run`: a guest from a file, in a VM of its own, until it ends.

The VM lives as long as the command: Ctrl-C, an error or a reader that goes away destroy it too. What the guest writes
to port 0x3f8 goes to stdout, as it is where stdout is no terminal (bytes are data there) or with --raw; a terminal gets
it as text, with control characters written as escapes, since a guest may be anybody's.

How a guest ends, and what the command's exit code is then:

    every vCPU waits in wfi                        0
    ecall with a7 = 93, as RISC-V's Linux exits    the low eight bits of a0
    a vCPU cannot go on                            125, and the reason on stderr
    its time is up (--timeout)                     124
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from ..errors import VmmdError
from ..wire import calls
from .exits import GUEST_DIED, TIME_IS_UP
from .files import SOURCE, Source
from .numbers import SIZE
from .session import asks, stdout_is_terminal
from .text import ConsoleText
from .vm import ended_text, stray_option

if TYPE_CHECKING:
    from vmmd.api.system import EndedVcpu

    from ..connection import Client
    from ..vm import Vm
    from .screen import Screen

EXIT_CALL = 93
"""The number of `exit` among RISC-V Linux's system calls."""

_PAGE_SIZE = 4096
_SHORTEST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Ending:
    """How a guest ended.

    Attributes:
        by: "halt", "exit", "death" or "timeout".
        status: the command's exit code.
        message: a sentence for people; empty where there is nothing to say.
    """

    by: str
    status: int
    message: str = ""


@dataclass(slots=True)
class Guest:
    """A guest that runs: its VM, and what of it was seen.

    Attributes:
        vm: the VM.
        vcpus: how many vCPUs it has.
        position: how far the console was read, in bytes.
        retired: each vCPU's instructions when it was last looked at.
        ended: what ended vCPUs' run loops.
    """

    vm: Vm
    vcpus: int
    position: int = 0
    retired: dict[int, int] = field(default_factory=dict)
    ended: tuple[EndedVcpu, ...] = ()

    async def look(self, vmmd: Client) -> tuple[bytes, Ending | None]:
        """Give what the console has had since the last look, and how the guest has ended, if it has."""
        async with vmmd.batch() as batch:
            listed = batch.add(calls.list_vms())
            stats = {vcpu: batch.add(calls.get_vcpu_stats(self.vm.id, vcpu)) for vcpu in range(self.vcpus)}
            # Read last: what a vCPU wrote before it ended is there when its end is seen.
            console = batch.add(calls.read_console(self.vm.id, self.position))
        self.ended = next((info.ended for info in listed.result() if info.vm == self.vm.id), ())
        retired = {vcpu: reply.result().instructions for vcpu, reply in stats.items()}
        # Nobody but an interrupt from outside wakes a wfi that left KVM_RUN; then its vCPU retires instructions again.
        rests = all(
            reply.result().exits.get("KVM_EXIT_HLT") and retired[vcpu] == self.retired.get(vcpu)
            for vcpu, reply in stats.items()
        )
        self.retired = retired
        written = console.result()
        self.position = written.next
        return written.data, self._ending(rests=rests)

    def _ending(self, *, rests: bool) -> Ending | None:
        for end in self.ended:
            call = end.exit.hypercall if end.exit is not None else None
            if call is not None and call.nr == EXIT_CALL:
                return Ending("exit", call.args[0] & 0xFF)
        if self.ended:
            return Ending("death", GUEST_DIED, "; ".join(ended_text(end) for end in self.ended))
        return Ending("halt", 0) if rests else None


@click.command()
@click.argument("file", type=SOURCE)
@click.option(
    "--vcpus", type=click.IntRange(1, 1024), default=1, metavar="N", show_default=True, help="How many vCPUs."
)
@click.option("--memory", "memory_size", type=SIZE, default="16M", metavar="SIZE", show_default=True, help="How much.")
@click.option("--gpa", type=SIZE, metavar="ADDRESS", help="Where memory begins.  [default: as the ELF says, else 0]")
@click.option("--irqchip", is_flag=True, help="With the in-kernel interrupt controller; wfi ends no guest then.")
@stray_option
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Stop it after that time.")
@click.option("--raw", is_flag=True, help="Write the guest's bytes as they are to a terminal too.")
@asks
async def run(vmmd: Client, screen: Screen, file: Source, raw: bool, **options: Any) -> int:
    """Run a guest, T64 assembly source or an ELF file, and stream its console; - is stdin.

    All vCPUs begin at the entry, with their id in a0. Exit code: 0 once every vCPU waits in wfi; a0 of an ecall with
    a7 = 93; 125 where the guest cannot go on, 124 where its time is up.

    JSON: {"ended_by": "halt", "exit", "death" or "timeout", "status", "message", "vcpus": [{"vcpu", "exit", "error"}],
    "instructions", "stray_exits", "console": base64}
    """
    vm = await vmmd.kvm.create_vm(Path(file.name).name[:64] or None)
    try:
        guest = await _set_up(vmmd, vm, file, options)
        text = ConsoleText()
        kept = bytearray()

        def write(data: bytes, *, last: bool = False) -> None:
            if screen.as_json:
                kept.extend(data)
            elif raw or not stdout_is_terminal():
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            else:
                sys.stdout.write(text.take(data, last=last))
                sys.stdout.flush()

        ending = await _watch(vmmd, guest, screen, write, options)
        write(b"", last=True)
        total = await vm.get_stats()
    finally:
        with contextlib.suppress(VmmdError):
            await vm.destroy()
    if screen.as_json:
        screen.json(
            {
                "ended_by": ending.by,
                "status": ending.status,
                "message": ending.message,
                "vcpus": [end.model_dump(mode="json") for end in guest.ended],
                "instructions": total.instructions,
                "stray_exits": total.stray_exits,
                "console": base64.b64encode(kept).decode("ascii"),
            }
        )
    elif ending.message:
        screen.note(f"vmmctl: {ending.message}")
    return ending.status


async def _set_up(vmmd: Client, vm: Vm, file: Source, options: Mapping[str, Any]) -> Guest:
    """Give a VM memory, vCPUs and the image, and start it."""
    image = file.data
    is_elf = image.startswith(b"\x7fELF")
    gpa = options["gpa"]
    if gpa is None:
        gpa = lowest_address(image) if is_elf else 0
    if options["irqchip"]:
        await vm.create_irqchip()
    userspace_addr = await vm.map_host_memory(options["memory_size"], "memory")
    await vm.set_user_memory_region(
        0, guest_phys_addr=gpa, memory_size=options["memory_size"], userspace_addr=userspace_addr
    )
    if is_elf:
        entry = (await vm.load_elf(image)).entry
    else:
        program = await vmmd.isa.assemble(file.text(), gpa)
        await vm.write_guest_memory(gpa, program.code)
        entry = gpa
    for number in range(options["vcpus"]):
        vcpu = await vm.create_vcpu(number)
        await vcpu.set_regs({"pc": entry, "a0": number})
    await vm.start("ones" if options["mmio"] == "ones" else "stop")
    return Guest(vm, options["vcpus"])


async def _watch(vmmd: Client, guest: Guest, screen: Screen, write: Any, options: Mapping[str, Any]) -> Ending:
    """Pass on the console until the guest has ended, or its time is up."""
    pause_s = _SHORTEST_PAUSE_S
    try:
        async with asyncio.timeout(options["timeout"]):
            while True:
                before = guest.position
                data, ending = await guest.look(vmmd)
                lost = guest.position - before - len(data)
                if lost:
                    screen.note(f"vmmctl: {lost:,} bytes of the console came faster than they were read, and are lost")
                write(data)
                if ending is not None:
                    return ending
                pause_s = _SHORTEST_PAUSE_S if data else min(2 * pause_s, _LONGEST_PAUSE_S)
                await asyncio.sleep(pause_s)
    except TimeoutError:
        await guest.vm.stop()
        data, _ = await guest.look(vmmd)
        write(data)
        return Ending("timeout", TIME_IS_UP, f"the guest was stopped after {options['timeout']:g} s")


def lowest_address(image: bytes) -> int:
    """Give where an ELF file's memory begins, at a whole page; 0 where it cannot be read, which the daemon explains."""
    try:
        segments = list(ELFFile(io.BytesIO(image)).iter_segments("PT_LOAD"))
        return min((segment["p_paddr"] for segment in segments), default=0) & -_PAGE_SIZE
    except (ELFError, ValueError, LookupError, OverflowError):
        return 0
