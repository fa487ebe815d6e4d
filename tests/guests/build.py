"""Builds the guests whose C sources lie in `src`, for each way to run them.

A workload is one file with a function `run`; what is linked around it makes it a guest or a program of the host. Built
files are kept in a folder, under a name made of everything that they were made of, so nothing is built twice and
nothing stale is ever run. This module knows compilers and files, and neither pytest nor vmmd.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Flavour = Literal["vmmd", "report", "qemu", "native"]
"""How a workload is to run.

vmmd: from `_start` to `done`, silently; also for Unicorn. The checksum is in a0 at `done`.
report: as vmmd, and the checksum is printed on the console, port 0x3f8.
qemu: on `qemu-system-riscv64 -M virt -bios none`; the checksum is printed on its UART, and the emulator ends.
native: a program of this host; its argument is the count, and it prints the checksum and the nanoseconds of the run.
"""

FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

SOURCES = Path(__file__).parent / "src"
RISCV_GCC = "riscv64-unknown-elf-gcc"
ORIGIN = 0x8000_0000
"""Where a guest's memory begins."""

_WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
_RISCV_FLAGS = (
    *("-march=rv64ima_zicsr_zifencei", "-mabi=lp64", "-mcmodel=medany", "-O2", *_WARNINGS),
    *("-ffreestanding", "-nostdlib", "-static", "-fno-tree-loop-distribute-patterns"),
    *("-Wl,--no-relax", "-Wl,-z,max-page-size=4096", "-Wl,--build-id=none"),
)
_FLAVOUR_FLAGS: Mapping[Flavour, Sequence[str]] = {
    "vmmd": (),
    "report": ("-DREPORT",),
    "qemu": ("-DREPORT", "-DUART=0x10000000"),
}


@dataclass(frozen=True)
class Workload:
    """One of the guests.

    Attributes:
        few: a count for a run of some ten thousand instructions, for the evaluated engine; None: there is none.
        many: a count for a run of some ten million.
        memory_bytes: guest memory from `ORIGIN` on that holds it.
    """

    few: int | None
    many: int
    memory_bytes: int = 4 << 20


WORKLOADS: Mapping[str, Workload] = {
    "hello": Workload(1, 100),
    "arithmetic": Workload(1_000, 1_000_000),
    "sieve": Workload(2_000, 1 << 20),
    "crc32": Workload(1_000, 1_000_000),
    "sort": Workload(200, 1 << 16),
    "matrix": Workload(1, 400),
    "fibonacci": Workload(13, 2_000),
    "switch_loop": Workload(50, 50_000),
    "chase": Workload(None, 1_000_000, 66 << 20),
    "atomics": Workload(200, 300_000),
    "loads_stores": Workload(1_000, 1_000_000),
    "alternating": Workload(1_000, 1_000_000),
    "compress": Workload(300, 100_000),
}
"""Every guest by its name, which is its source's too."""


class CompilerMissing(Exception):  # noqa: N818  (it is what is the matter, and no fault of the program)
    """A compiler is not installed. The message says which, and where it comes from."""


def build(name: str, flavour: Flavour, *, count: int | None = None, folder: Path | None = None) -> Path:
    """Build a guest, or find it built.

    Args:
        name: one of `WORKLOADS`.
        flavour: how it is to run.
        count: what the guest's symbol `count` holds in the file; by default the workload's `many`.
        folder: where built files are kept; by default one of this user's own among the temporary files.

    Returns:
        The path of the ELF file, or of the host's program.

    Raises:
        CompilerMissing: the compiler is not installed.
        RuntimeError: it refuses the sources.
    """
    compiler, flags, sources = _recipe(name, flavour, WORKLOADS[name].many if count is None else count)
    found = shutil.which(compiler)
    if found is None:
        package = "gcc-riscv64-unknown-elf" if compiler == RISCV_GCC else "gcc"
        raise CompilerMissing(f"{compiler} is not installed; Debian and Ubuntu have it in the package {package}")
    folder = folder or Path(tempfile.gettempdir()) / f"vmmd-guests-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / f"{name}-{flavour}-{_key(found, flags)}"
    if not target.exists():
        # Whoever builds the same at the same time makes the same: the last one's file stands.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            output = Path(scratch) / "out"
            command = [found, *flags, *(str(SOURCES / source) for source in sources), "-o", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
            output.replace(target)
    return target


def _recipe(name: str, flavour: Flavour, count: int) -> tuple[str, list[str], list[str]]:
    """Return the compiler, its flags and the sources."""
    workload = [f"{name}.c", "console.c"]
    if flavour == "native":
        return "cc", ["-O2", *_WARNINGS, "-I", str(SOURCES)], [*workload, "host_main.c"]
    flags = [*_RISCV_FLAGS, *_FLAVOUR_FLAGS[flavour], f"-DCOUNT={count}u", "-I", str(SOURCES)]
    flags += ["-T", str(SOURCES / "link.ld")]
    start = "start_qemu.S" if flavour == "qemu" else "start.S"
    return RISCV_GCC, flags, [start, *workload, "guest_main.c"]


def _key(compiler: str, flags: Sequence[str]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr((compiler, version, flags)).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def run_native(name: str, count: int, *, folder: Path | None = None) -> tuple[int, int]:
    """Run a workload on the host; return its checksum, and the nanoseconds that it took."""
    program = build(name, "native", folder=folder)
    done = subprocess.run([program, str(count)], capture_output=True, text=True, check=True)
    checksum, nanoseconds = done.stdout.split()
    return int(checksum, 16), int(nanoseconds)
