"""The whole way on this machine's own KVM: build the firmware, record QEMU, audit the recording, replay it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmmd_client.audit import audit_file

FIRMWARE = Path(__file__).parents[2] / "docs" / "race-on-real-kvm" / "firmware.S"
TOOLS = ("qemu-system-x86_64", "strace", "gcc", "ld")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
QEMU = [
    *("qemu-system-x86_64", "-accel", "kvm", "-M", "pc", "-m", "256", "-smp", "2", "-vga", "none", "-display", "none"),
    *("-monitor", "none", "-serial", "none", "-nic", "none", "-no-reboot", "-debugcon", "stdio"),
    *("-global", "isa-debugcon.iobase=0xe9", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(
        not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm is not there, or not ours to use"
    ),
]


def test_qemu_is_recorded_audited_and_replayed(tmp_path: Path) -> None:
    built, firmware, trace = tmp_path / "firmware.o", tmp_path / "firmware.bin", tmp_path / "run.strace"
    subprocess.run(["gcc", "-m32", "-DROUNDS=4", "-c", FIRMWARE, "-o", built], check=True, timeout=60)
    subprocess.run(
        ["ld", "-m", "elf_i386", "-Ttext=0", "-e", "0", "--oformat", "binary", built, "-o", firmware],
        check=True,
        timeout=60,
    )
    assert firmware.stat().st_size == 64 << 10
    recorder = ["strace", "-f", "-ttt", "-e", "trace=ioctl", "-o", str(trace), "timeout", "-k", "1", "3", *QEMU]
    subprocess.run(
        [*recorder, "-bios", str(firmware)], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    audited = audit_file(str(trace))
    (found,) = audited.findings.vms
    assert audited.unread_lines == 0
    assert sorted(number for number in found.vm.vcpus.values() if number is not None) == [0, 1]
    assert found.needs_hold > 0
    assert found.longest_hole_us > 0
    command = [sys.executable, "-c", "from vmmd_client.cli import main; main()", "replay", str(trace)]
    done = subprocess.run(
        [*command, "--updates", "20", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    last = json.loads(done.stdout)
    assert (last["atomic"]["stray_exits"], last["atomic"]["wrong_values"]) == (0, 0)
