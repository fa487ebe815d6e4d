"""Compiles and runs a C program that asks this machine's own KVM, or says why that cannot be done."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def ask_kernel(source: str, *arguments: str) -> list[list[str]] | str:
    """Run a program of this folder; give the words of its lines, or why there are none."""
    compiler = shutil.which("cc")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "not asked: /dev/kvm is missing, or may not be used"
    if compiler is None:
        return "not asked: there is no C compiler"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program"
        subprocess.run([compiler, "-O2", "-pthread", "-o", program, HERE / source], check=True)
        ran = subprocess.run([program, *arguments], check=False, capture_output=True, text=True)
    if ran.returncode:
        return f"not asked: {ran.stderr.strip()}"
    return [line.split() for line in ran.stdout.splitlines()]
