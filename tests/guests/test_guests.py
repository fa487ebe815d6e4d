"""Guests in C, compiled by GCC: they run, print on the console, and compute what the same sources do on the host."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guests.build import FLAVOURS, ORIGIN, WORKLOADS, CompilerMissing, build
from tests.guests.conftest import Build
from tests.kvm.guest import until
from vmmd.isa.elf import Image, parse
from vmmd.kvm.exits import HltExit
from vmmd.kvm.vcpu import Vcpu
from vmmd.machine.loader import load
from vmmd.machine.machine import Machine
from vmmd_client import connect
from vmmd_client.local_daemon import local_daemon

FEW = {name: workload.few for name, workload in WORKLOADS.items() if workload.few is not None}
SILENT = [name for name in WORKLOADS if name != "hello"]
QEMU = "qemu-system-riscv64"

compiled = pytest.mark.parametrize("engine_name", ["compiled"], indirect=True)


def hello(times: int) -> bytes:
    lines = (f"hello, world {i} of {times}: {i * 0x123456789ABCDEF:#018x}\n" for i in range(1, times + 1))
    return "".join(lines).encode()


def native(built: Build, name: str, count: int) -> int:
    """Return the checksum of a workload that the host has computed."""
    done = subprocess.run([built(name, "native"), str(count)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0], 16)


def image_of(elf: Path) -> Image:
    return parse(elf.read_bytes())


async def booted(machine: Machine, name: str, image: Image) -> Vcpu:
    """Give the machine memory with a guest in it, and a vCPU at its entry."""
    size = WORKLOADS[name].memory_bytes
    base = await machine.vm.map_host_memory(size)
    await machine.vm.set_user_memory_region(0, 0, ORIGIN, size, base)
    vcpu = await machine.vm.create_vcpu(0)
    await load(machine.vm, image, 0)
    return vcpu


async def checksum(vcpu: Vcpu, image: Image) -> int:
    """Run a guest to its end and return what it has computed."""
    assert await vcpu.run() == HltExit()
    regs = await vcpu.get_regs()
    assert regs["pc"] == image.symbols["done"] + 4
    return regs["x10"]


@pytest.mark.parametrize("name", [name for name in SILENT if name in FEW])
async def test_a_small_run_computes_on_both_engines_what_the_host_does(
    machine: Machine, built: Build, name: str
) -> None:
    image = image_of(built(name, "vmmd", FEW[name]))
    vcpu = await booted(machine, name, image)
    assert await checksum(vcpu, image) == native(built, name, FEW[name])


@compiled
@pytest.mark.parametrize("name", SILENT)
async def test_a_large_run_computes_what_the_host_does(machine: Machine, built: Build, name: str) -> None:
    image = image_of(built(name, "vmmd"))
    vcpu = await booted(machine, name, image)
    assert await checksum(vcpu, image) == native(built, name, WORKLOADS[name].many)
    assert machine.vm.stats().instructions > 1_000_000


@compiled
async def test_whoever_starts_a_guest_says_how_much_it_does_and_starts_it_again(machine: Machine, built: Build) -> None:
    image = image_of(built("sort", "vmmd"))
    vcpu = await booted(machine, "sort", image)
    for count in (1, 3000):
        await machine.vm.write_guest_memory(image.symbols["count"], count.to_bytes(8, "little"))
        await vcpu.set_regs({"pc": image.entry})
        assert await checksum(vcpu, image) == native(built, "sort", count)


async def test_the_areas_of_the_alternating_loads_may_lie_in_slots_of_their_own(machine: Machine, built: Build) -> None:
    count = FEW["alternating"]
    image = image_of(built("alternating", "vmmd", count))
    vcpu = await booted(machine, "alternating", image)
    base, areas = await machine.vm.map_host_memory(1 << 16), (0x1000_0000, 0x2000_0000)
    for slot, gpa in enumerate(areas, start=1):
        await machine.vm.set_user_memory_region(slot, 0, gpa, 1 << 15, base + (slot - 1) * (1 << 15))
    words = b"".join(gpa.to_bytes(8, "little") for gpa in areas)
    await machine.vm.write_guest_memory(image.symbols["areas"], words)
    assert await checksum(vcpu, image) == native(built, "alternating", count)
    assert await machine.vm.read_guest_memory(areas[0] + 8, 8) == (7).to_bytes(8, "little")
    assert await machine.vm.read_guest_memory(areas[1] + 8, 8) == (14).to_bytes(8, "little")


async def test_hello_prints_on_the_console(machine: Machine, built: Build) -> None:
    await booted(machine, "hello", image_of(built("hello", "vmmd", 3)))
    machine.start()
    await until(lambda: len(machine.read_console()[0]) >= len(hello(3)))
    assert machine.read_console()[0] == hello(3)
    assert machine.ended == {}


@compiled
async def test_a_guest_that_is_built_to_report_prints_its_checksum(machine: Machine, built: Build) -> None:
    await booted(machine, "crc32", image_of(built("crc32", "report", 5000)))
    machine.start()
    await until(lambda: machine.read_console()[0].endswith(b"\n"))
    assert machine.read_console()[0].decode() == f"{native(built, 'crc32', 5000):#018x}\n"


async def test_a_client_loads_hello_into_a_daemon_and_reads_its_console(built: Build) -> None:
    elf = built("hello", "vmmd", 3).read_bytes()
    async with local_daemon() as url, connect(url) as client:
        vm = await client.kvm.create_vm("hello")
        memory = await vm.map_host_memory(WORKLOADS["hello"].memory_bytes)
        await vm.set_user_memory_region(
            0, guest_phys_addr=ORIGIN, memory_size=WORKLOADS["hello"].memory_bytes, userspace_addr=memory
        )
        vcpu = await vm.create_vcpu(0)
        loaded = await vm.load_elf(elf, vcpu.id)
        assert (loaded.entry, loaded.symbols["_start"]) == (ORIGIN, ORIGIN)
        assert loaded.symbols == dict(parse(elf).symbols)
        assert (await vcpu.get_regs())["pc"] == ORIGIN
        await vm.start()
        said = b""
        while len(said) < len(hello(3)):
            said += (await vm.read_console(len(said))).data
        assert said == hello(3)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_sources_compute_the_same_in_qemu(built: Build, name: str) -> None:
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed; Debian and Ubuntu have it in the package qemu-system-misc")
    count = FEW.get(name, 1000)
    arguments = ("-M", "virt", "-bios", "none", "-nographic", "-monitor", "none", "-kernel")
    done = subprocess.run(
        [QEMU, *arguments, built(name, "qemu", count)], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    *said, last = done.stdout.splitlines(keepends=True)
    assert int(last, 16) == native(built, name, count)
    assert b"".join(said) == (hello(count) if name == "hello" else b"")


def test_what_was_built_is_not_built_again_and_what_differs_is_another_file(built: Build) -> None:
    elf = built("hello", "vmmd", 1)
    written = elf.stat().st_mtime_ns
    assert built("hello", "vmmd", 1) == elf
    assert elf.stat().st_mtime_ns == written
    assert len({built("hello", flavour, count) for flavour in FLAVOURS for count in (1, 2)}) == 7
    assert {path.name.split("-")[0] for path in elf.parent.iterdir()} <= set(WORKLOADS)


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerMissing, match="gcc-riscv64-unknown-elf"):
        build("hello", "vmmd", folder=tmp_path)
    with pytest.raises(CompilerMissing, match="package gcc"):
        build("hello", "native", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_the_compiler_refuses_is_an_error_with_what_it_says(
    built: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built("hello", "vmmd")
    monkeypatch.setitem(WORKLOADS, "gone", WORKLOADS["hello"])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"gone\.c"):
        build("gone", "vmmd", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
