"""Programs in the manner of riscv-tests' "-p-" environment run as they are: a machine's reset, traps, `tohost`.

The real ones are run where `VMMD_RISCV_TESTS` names a folder that has them; the sources here are vmmd's own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.differential.riscv_tests import binaries, failures, main, run_image
from tests.isa.forced import every_engine, forced_engine
from vmmd.isa.assembler import assemble
from vmmd.isa.elf import Image, Segment
from vmmd.isa.engine import ENGINES, CompiledEngine, Engine, EvaluatedEngine, make_engine

FOLDER = os.environ.get("VMMD_RISCV_TESTS")

ORIGIN = 0x8000_0000

# Reset code for any RISC-V machine: what this one lacks traps, and the trap leads behind it.
ENVIRONMENT = """
_start:
    j reset
    .align 2
on_trap:
    csrr t5, mcause
    li t6, 8
    beq t5, t6, tell
    li t6, 11
    beq t5, t6, tell
    ori gp, gp, 1337
tell:
    la t5, tohost
    sw gp, 0(t5)
    sw zero, 4(t5)
    j tell
reset:
    csrr a0, mhartid
1:  bnez a0, 1b
    la t0, 1f
    csrw mtvec, t0
    csrwi 0x744, 8          # mnstatus
    .align 2
1:  la t0, 1f
    csrw mtvec, t0
    csrwi 0x180, 0          # satp
    .align 2
1:  la t0, 1f
    csrw mtvec, t0
    li t0, -1
    csrw 0x3b0, t0          # pmpaddr0
    csrwi 0x3a0, 0x1f       # pmpcfg0
    .align 2
1:  csrwi mie, 0
    la t0, 1f
    csrw mtvec, t0
    csrwi 0x302, 0          # medeleg
    csrwi 0x303, 0          # mideleg
    .align 2
1:  li gp, 0
    la t0, on_trap
    csrw mtvec, t0
    csrwi mstatus, 0
    la t0, body
    csrw mepc, t0
    mret
fail:
    slli gp, gp, 1
    ori gp, gp, 1
    ecall
pass:
    li gp, 1
    ecall
    .align 3
tohost: .dword 0
body:
"""

TRAPS_AND_COUNTERS = """
    li gp, 2                # the machine is in the state that mret leaves
    csrr t0, mstatus
    li t1, 0x80
    bne t0, t1, fail
    li gp, 3                # the last trap was the probe of medeleg, with its word
    csrr t0, mcause
    li t1, 2
    bne t0, t1, fail
    li gp, 4                # what retires is counted
    csrr t0, instret
    csrr t1, instret
    addi t0, t0, 1
    bne t0, t1, fail
    li gp, 5                # a trap of the body comes back behind its instruction
    la t0, skip
    csrw mtvec, t0
    li t3, 0
    .word 0
    li t3, 1
    la t0, on_trap
    csrw mtvec, t0
    beqz t3, fail
    csrr t0, mtval
    bnez t0, fail
    j pass
    .align 2
skip:
    csrr t0, mepc
    addi t0, t0, 4
    csrw mepc, t0
    mret
"""

CODE_AND_ATOMICS = """
    li gp, 2                # code that is rewritten
    la t0, from
    lw t0, 0(t0)
    la t1, to
    sw t0, 0(t1)
    fence.i
to: li a0, 1
    li t0, 2
    bne a0, t0, fail
    li gp, 3                # sc without a reservation
    la t0, cell
    sc.w t1, t0, (t0)
    beqz t1, fail
    li gp, 4                # a thousand times lr and sc
    li t2, 1000
1:  lr.d t1, (t0)
    addi t1, t1, 3
    sc.d t1, t1, (t0)
    bnez t1, 1b
    addi t2, t2, -1
    bnez t2, 1b
    ld t1, 0(t0)
    li t2, 3000
    bne t1, t2, fail
    j pass
from: li a0, 2
    .align 3
cell: .dword 0
"""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, cache_dir: Path) -> Engine:
    return forced_engine(cache_dir) if request.param == "translated" else make_engine(request.param, cache_dir)


def image(body: str) -> Image:
    assembly = assemble(ENVIRONMENT + body, ORIGIN)
    return Image(ORIGIN, (Segment(ORIGIN, assembly.code, len(assembly.code)),), assembly.symbols)


@pytest.mark.parametrize("body", [TRAPS_AND_COUNTERS, CODE_AND_ATOMICS], ids=["traps", "atomics"])
def test_a_program_with_a_machines_reset_code_passes(body: str, engine: Engine) -> None:
    assert run_image(engine, image(body)) is None


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("li gp, 7\n j fail", "test 7 failed (tohost 0xf)"),
        ("li gp, 6\n .word 0", "test 671 failed (tohost 0x53f)"),
        ("csrwi mtvec, 0\n .word 0", "left the guest at 0x800000"),
        ("j .", "no end within 1000000 instructions; pc is 0x800000"),
    ],
    ids=["a test that fails", "a trap", "a trap that nobody takes", "a loop"],
)
def test_what_goes_wrong_is_said(body: str, what: str, cache_dir: Path) -> None:
    said = run_image(CompiledEngine(cache_dir), image(body))
    assert said is not None
    assert said.startswith(what)


def test_a_program_without_tohost_is_refused() -> None:
    assert "tohost" in str(run_image(EvaluatedEngine(), Image(ORIGIN, (Segment(ORIGIN, b"", 4),), {})))


def test_a_program_that_is_too_large_is_refused() -> None:
    ends = Segment(ORIGIN, b"", 4), Segment(ORIGIN + (1 << 30), b"", 4)
    assert "bytes of memory" in str(run_image(EvaluatedEngine(), Image(ORIGIN, ends, {"tohost": ORIGIN})))


def test_a_folder_without_binaries_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rv64ui-p-add.dump").write_text("a listing")
    assert main([str(tmp_path)]) == 1
    assert "has no files called rv64ui-p-*" in capsys.readouterr().out


def test_a_file_that_is_no_executable_has_failed(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rv64ui-p-add").write_text("no ELF file")
    assert main([str(tmp_path)], cache_dir) == 1
    said = capsys.readouterr().out
    assert "rv64ui-p-add on the compiled engine: not loaded: ELF header" in said
    assert "0 passed, 1 failed" in said


@pytest.mark.skipif(not FOLDER, reason="VMMD_RISCV_TESTS names no folder with riscv-tests' binaries")
def test_the_binaries_of_riscv_tests_pass_on_every_engine(cache_dir: Path) -> None:
    folder = Path(FOLDER or "")
    assert binaries(folder), f"VMMD_RISCV_TESTS: {folder} has no binaries of rv64ui, rv64um and rv64ua"
    every = every_engine(cache_dir)
    assert {path.name: wrong for path, wrong in failures(folder, every) if wrong} == {}
