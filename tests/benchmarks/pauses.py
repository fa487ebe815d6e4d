"""What the guest loses to the merge of two slots, and how soon it goes on, by the number of running vCPUs.

Three ways to merge: by the list call in process, by single calls inside a hold in process, and by one batch over the
socket to a daemon of its own. A pause reaches from the kick's first request to the resume. When it goes on the guest
tells itself, so that no one has to watch it: its clock stands still from the kick to the resume, so the time that the
first vCPU reads behind the resume, less the time that the clock stands at, is how long the resume took to reach it.
"""

from __future__ import annotations

import asyncio
import struct

from rich.table import Table

from tests.benchmarks.holds import (
    BETWEEN_S,
    CODE,
    DATA,
    DATA_SIZE,
    LINE,
    RUNS,
    SOURCE,
    VCPUS,
    Figures,
    Running,
    in_a_run,
    kernel_cells,
    kernel_figures,
    p50_and_p99,
)
from vmmd.isa.assembler import assemble
from vmmd.kvm.vm import Vm
from vmmd.memory.limits import PAGE_SIZE
from vmmd.memory.region import Region
from vmmd_client.connection import Client, connect
from vmmd_client.local_daemon import local_daemon
from vmmd_client.vm import Vm as RemoteVm

ROUNDS = 60
HALF = DATA_SIZE // 2
_LINE = struct.Struct("<QQ48x")


def merge(data: int) -> list[Region]:
    """Return the changes that merge the two slots of data."""
    return [Region(0, 0, 0, 0, 0), Region(1, 0, 0, 0, 0), Region(0, 0, DATA, DATA_SIZE, data)]


def split(data: int) -> list[Region]:
    """Return the changes that take the merge back."""
    return [Region(0, 0, 0, 0, 0), Region(0, 0, DATA, HALF, data), Region(1, 0, DATA + HALF, HALF, data + HALF)]


async def _by_calls(vm: Vm, data: int, name: str) -> int:
    await vm.kick_all_running_vcpus(name, wait_ms=60_000)
    for region in merge(data):
        await vm.set_user_memory_region(
            region.slot,
            region.flags,
            region.guest_phys_addr,
            region.memory_size,
            region.userspace_addr,
            hold=name,
        )
    return (await vm.resume_all_kicked_vcpus(name)).pause_ns or 0


async def _until_next(vm: Vm, vcpus: int, name: str) -> float | None:
    """Return the microseconds from a resume to the first vCPU's next instructions; None where none got to tell."""
    await vm.kick_all_running_vcpus(name, wait_ms=60_000)
    stands_at = vm.vcpu(0).context.clock()
    await vm.write_guest_memory(DATA, _LINE.pack(1, 0) * vcpus, hold=name)
    await vm.resume_all_kicked_vcpus(name)
    await asyncio.sleep(BETWEEN_S)
    lines = _LINE.iter_unpack(await vm.read_guest_memory(DATA, vcpus * LINE))
    # One that was kicked between reading the time and telling it tells an old one.
    times = [time for asked, time in lines if not asked and time > stands_at]
    return (min(times) - stands_at) / 1000 if times else None


async def _in_process(running: Running) -> Figures:
    vm, data = running.vm, running.data
    figures: Figures = {"list": [], "calls": [], "next": []}
    for turn in range(ROUNDS):
        published = await vm.set_user_memory_region_list(merge(data), wait_ms=60_000)
        figures["list"].append((published.pause_ns or 0) / 1000)
        await vm.set_user_memory_region_list(split(data), wait_ms=60_000)
        await asyncio.sleep(BETWEEN_S)
        figures["calls"].append(await _by_calls(vm, data, f"calls {turn}") / 1000)
        await vm.set_user_memory_region_list(split(data), wait_ms=60_000)
        await asyncio.sleep(BETWEEN_S)
        next_us = await _until_next(vm, len(vm.vcpus), f"next {turn}")
        if next_us is not None:
            figures["next"].append(next_us)
    return figures


async def _by_batch(vmmd: Client, vcpus: int) -> list[float]:
    """Return the pauses of merges by one batch each."""
    vm = await vmmd.kvm.create_vm()
    data = await _start_remote(vm, vcpus)
    pauses = []
    for _ in range(ROUNDS):
        async with vm.transaction(hold=True, wait_ms=60_000) as change:
            change.merge(0, 1)
        pauses.append((change.result.pause_ns or 0) / 1000)
        async with vm.transaction(hold=True, wait_ms=60_000) as change:
            change.delete(0)
            change.create(0, guest_phys_addr=DATA, memory_size=HALF, userspace_addr=data)
            change.create(1, guest_phys_addr=DATA + HALF, memory_size=HALF, userspace_addr=data + HALF)
        await asyncio.sleep(BETWEEN_S)
    await vm.destroy()
    return pauses


async def _start_remote(vm: RemoteVm, vcpus: int) -> int:
    """Do what `holds.start` does, through the client; the run loops are the daemon's."""
    code = await vm.map_host_memory(PAGE_SIZE)
    data = await vm.map_host_memory(DATA_SIZE)
    for slot, gpa, size, hva in (
        (2, CODE, PAGE_SIZE, code),
        (0, DATA, HALF, data),
        (1, DATA + HALF, HALF, data + HALF),
    ):
        await vm.set_user_memory_region(slot, guest_phys_addr=gpa, memory_size=size, userspace_addr=hva)
    await vm.write_guest_memory(CODE, assemble(SOURCE).code)
    for index in range(vcpus):
        vcpu = await vm.create_vcpu(index)
        await vcpu.set_regs({"pc": CODE, "a0": DATA + index * LINE})
    await vm.start()
    while not (await vm.get_stats()).instructions:
        await asyncio.sleep(0)
    return data


async def measure() -> Table:
    """Measure pauses under 1 to 256 running vCPUs, and how soon the first of them goes on."""
    kernel = kernel_figures()
    note = f"the kernel was {kernel}" if isinstance(kernel, str) else "kernel: the first of its vCPUs to go on"
    columns = (
        "vCPUs",
        "list p50",
        "p99",
        "calls p50",
        "p99",
        "batch p50",
        "p99",
        "goes on p50",
        "p99",
        "kernel p50",
        "p99",
    )
    title = (
        f"the pause of a merge, and from a resume to the guest, microseconds: median of {RUNS} runs, and their range"
    )
    table = Table(*columns, title=title, caption=note)
    for column in table.columns:
        column.no_wrap = True
    async with local_daemon() as url, connect(url) as vmmd:
        for vcpus in VCPUS:
            runs = [await in_a_run(vcpus, _in_process) for _ in range(RUNS)]
            cells = [p50_and_p99([run[kind] for run in runs]) for kind in ("list", "calls")]
            cells.append(p50_and_p99([await _by_batch(vmmd, vcpus) for _ in range(RUNS)]))
            cells.append(p50_and_p99([run["next"] for run in runs]))
            table.add_row(str(vcpus), *(text for pair in cells for text in pair), *kernel_cells(kernel, vcpus, 2))
    return table
