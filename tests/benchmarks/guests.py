"""How fast guests in C run: the same machine code on vmmd and on Unicorn, and the same C on the host as the limit.

vmmd is there with its interpreter's loop alone, and with what it translates: the first run, in which it finds out what
is hot and waits for nothing, and those behind it, which find translated code there. Every other figure is the median of
several runs, taken in turns in one process. Where Debian's qemu-system-riscv64 is
installed, the same C runs on its `virt` machine too; what it takes to start and to stop is measured and taken off.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from pathlib import Path

from rich.table import Table
from unicorn import UC_ARCH_RISCV, UC_MODE_RISCV64, Uc

from tests.guests.build import ORIGIN, WORKLOADS, CompilerMissing, build, run_native
from vmmd.isa.elf import Image, parse
from vmmd.kvm.exits import HltExit
from vmmd.kvm.limits import Limits
from vmmd.kvm.system import System
from vmmd.machine.loader import load

RUNS = 3
TIMES_MANY = 10
"""The counts: what the workloads call many, times so many, so that a run takes a few tenths of a second."""

QEMU = "qemu-system-riscv64"
NAMES = [name for name in WORKLOADS if name != "hello"]
AREAS = (0x9000_0000, 0x9100_0000)
AREA_BYTES = 1 << 20
"""Where the two arrays of `alternating` lie: each in a slot of its own."""


async def measure() -> Table:
    """Measure every workload."""
    table = Table(
        *("workload", "instr.", "loop", "first", "vmmd", "Unicorn", "ratio", "qemu", "host's time"),
        title=f"guests in C, one vCPU: million instructions a second, and vmmd : Unicorn; medians of {RUNS}",
    )
    limits = Limits(guest_memory_bytes=1 << 30, vms=1 << 10, vcpus_per_vm=1)
    cache_dir = Path.home() / ".cache" / "vmmd"
    loop = System(engine="compiled", cache_dir=cache_dir, workers=2, limits=limits)
    vmmd = System(engine="translated", cache_dir=cache_dir, workers=2, limits=limits)
    ratios = []
    try:
        for name in NAMES:
            ratio, cells = await _row(loop, vmmd, name)
            ratios.append(ratio)
            table.add_row(name, *cells)
        table.caption = f"geometric mean of the ratios: {statistics.geometric_mean(ratios):.2f}"
    except CompilerMissing as missing:
        table.caption = str(missing)
    finally:
        await loop.close()
        await vmmd.close()
    return table


async def _row(loop: System, vmmd: System, name: str) -> tuple[float, list[str]]:
    count = WORKLOADS[name].many * TIMES_MANY
    image = parse(build(name, "vmmd", count=count).read_bytes())
    interpreted, translated, unicorn, host = [], [], [], []
    first, retired = await _on_vmmd(vmmd, name, image)
    for _ in range(RUNS):
        interpreted.append((await _on_vmmd(loop, name, image))[0])
        translated.append((await _on_vmmd(vmmd, name, image))[0])
        unicorn.append(_on_unicorn(name, image))
        host.append(run_native(name, count)[1] / 1e9)
    ours, theirs = statistics.median(translated), statistics.median(unicorn)
    qemu = _on_qemu(name, count)
    return theirs / ours, [
        f"{retired / 1e6:.0f} M",
        f"{retired / statistics.median(interpreted) / 1e6:.0f}",
        f"{retired / first / 1e6:.0f}",
        f"{retired / ours / 1e6:.0f}",
        f"{retired / theirs / 1e6:.0f}",
        f"{theirs / ours:.2f}",
        "" if qemu is None else f"{retired / qemu / 1e6:.0f}",
        f"{ours / statistics.median(host):.1f}",
    ]


def _areas(name: str, image: Image) -> list[tuple[int, bytes]]:
    """Return what is to be written to let the two arrays lie apart."""
    if name != "alternating":
        return []
    return [(image.symbols["areas"], b"".join(area.to_bytes(8, "little") for area in AREAS))]


async def _on_vmmd(system: System, name: str, image: Image) -> tuple[float, int]:
    vm = system.create_vm()
    size = WORKLOADS[name].memory_bytes
    base = await vm.map_host_memory(size + 2 * AREA_BYTES)
    await vm.set_user_memory_region(0, 0, ORIGIN, size, base)
    for index, area in enumerate(AREAS):
        await vm.set_user_memory_region(1 + index, 0, area, AREA_BYTES, base + size + index * AREA_BYTES)
    vcpu = await vm.create_vcpu(0)
    await load(vm, image, 0)
    for address, data in _areas(name, image):
        await vm.write_guest_memory(address, data)
    start = time.perf_counter()
    ended = await vcpu.run()
    seconds = time.perf_counter() - start
    if ended != HltExit():
        raise RuntimeError(f"{name} ended with {ended}")
    retired = vcpu.stats().instructions
    await system.destroy_vm(vm.id)
    return seconds, retired


def _on_unicorn(name: str, image: Image) -> float:
    machine = Uc(UC_ARCH_RISCV, UC_MODE_RISCV64)
    machine.mem_map(ORIGIN, WORKLOADS[name].memory_bytes)
    for area in AREAS:
        machine.mem_map(area, AREA_BYTES)
    writes = [(segment.paddr, segment.data) for segment in image.segments]
    for address, data in writes + _areas(name, image):
        machine.mem_write(address, data)
    start = time.perf_counter()
    machine.emu_start(image.entry, image.symbols["done"])
    return time.perf_counter() - start


def _on_qemu(name: str, many: int) -> float | None:
    """Return the seconds that the work takes, without the emulator's start and end; None where it is not installed."""
    if shutil.which(QEMU) is None:
        return None
    long, short = (
        statistics.median(_qemu_seconds(build(name, "qemu", count=count)) for _ in range(RUNS)) for count in (many, 1)
    )
    return max(long - short, 1e-9)


def _qemu_seconds(elf: Path) -> float:
    command = [QEMU, "-M", "virt", "-m", "256", "-bios", "none", "-nographic", "-no-reboot", "-kernel", str(elf)]
    start = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=120)
    return time.perf_counter() - start
