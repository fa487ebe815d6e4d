"""`vmmctl run`: guests that end in every way, their console, their exit codes, and a VM that never stays."""

from __future__ import annotations

import base64
import signal
import subprocess

import pytest

from tests.isa.elf_file import File, Load

from .conftest import Ctl

# Writes its text to the console; {} is what comes then.
SAYS = """
    li   t2, 0x3f8
    la   t0, text
1:  lbu  t1, 0(t0)
    beqz t1, 2f
    outb t1, 0(t2)
    addi t0, t0, 1
    j    1b
2:  {}
text: .asciz "hello\\n\\x1b[31mred\\n"
"""
WRITTEN = b"hello\n\x1b[31mred\n"
WRITES_FOR_GOOD = "li t2, 0x3f8\n li t1, 10\n1: outb t1, 0(t2)\n j 1b"
# Exits with seven more than its a0.
EXITS_WITH_A0 = "addi a0, a0, 7\n li a7, 93\n ecall"


def no_guest_is_left(ctl: Ctl) -> bool:
    return not [info for info in ctl.json("vm", "list") if info["name"] in {"stdin", "guest"}]


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        ("wfi", 0, ""),
        ("li a0, 0x103\n li a7, 93\n ecall", 3, ""),
        ("li a7, 1\n ecall", 125, "KVM_EXIT_HYPERCALL 0x1"),
        ("ebreak", 125, "KVM_EXIT_SHUTDOWN exception 3"),
        ("li a0, 1 << 40\n ld a0, 0(a0)", 125, "KVM_EXIT_MMIO load at 0x10000000000"),
        ("li a0, 1 << 40\n jr a0", 125, "no memory for the instruction at 0x10000000000"),
    ],
)
def test_the_console_is_streamed_and_the_exit_code_tells_how_the_guest_ended(
    ctl: Ctl, end: str, code: int, says: str
) -> None:
    result = ctl("run", "-", stdin=SAYS.format(end).encode())
    assert (result.exit_code, result.stdout_bytes) == (code, WRITTEN)
    assert says in result.stderr
    assert no_guest_is_left(ctl)


def test_json_has_the_ending_the_counts_and_the_console(ctl: Ctl) -> None:
    value = ctl.json("run", "-", stdin=SAYS.format("wfi").encode())
    assert base64.b64decode(value.pop("console")) == WRITTEN
    assert value.pop("instructions") > 50
    assert value == {"ended_by": "halt", "status": 0, "message": "", "vcpus": [], "stray_exits": 0}


def test_every_vcpu_has_its_id_in_a0_and_the_guest_ends_when_all_wait(ctl: Ctl) -> None:
    source = "slli a1, a0, 3\n sd a0, 0x100(a1)\n li t1, 0x3f8\n addi a0, a0, 65\n outb a0, 0(t1)\n wfi"
    result = ctl("run", "-", "--vcpus", "5", stdin=source.encode())
    assert (result.exit_code, sorted(result.stdout)) == (0, list("ABCDE"))


def test_an_elf_file_is_loaded_where_it_says(ctl: Ctl) -> None:
    code = ctl("asm", "-", stdin=EXITS_WITH_A0.encode()).stdout_bytes
    image = File([Load(0x8000_0010, code)], entry=0x8000_0010).bytes()
    assert ctl("run", "-", stdin=image).exit_code == 7
    assert "EFAULT" in ctl("run", "-", "--gpa", "0", stdin=image).stderr


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"\x7fELF and nothing more", "EINVAL"),
        (b"frobnicate a0", "line 1, column 1"),
        (b"\xff\xfe", "its byte 0 is no UTF-8"),
        (b".zero 128 << 10", "EFAULT"),
    ],
)
def test_what_is_no_guest_is_refused_and_leaves_no_vm(ctl: Ctl, image: bytes, says: str) -> None:
    result = ctl("run", "-", "--memory", "64K", stdin=image)
    assert (result.exit_code, result.stdout) == (1, "")
    assert says in result.stderr
    assert no_guest_is_left(ctl)


def test_a_guest_whose_time_is_up_is_stopped(ctl: Ctl) -> None:
    result = ctl("run", "-", "--timeout", "0.05", stdin=b"1: j 1b")
    assert result.exit_code == 124
    assert "stopped after 0.05 s" in result.stderr
    assert no_guest_is_left(ctl)


def test_with_the_interrupt_controller_a_guest_sleeps_and_goes_on(ctl: Ctl) -> None:
    # Sets its timer to now, and waits for it: wfi ends, since the interrupt is enabled in mie.
    source = "li t0, 0x2004000\n csrr t1, time\n sd t1, 0(t0)\n li t2, 0x80\n csrw mie, t2\n wfi\n" + EXITS_WITH_A0
    assert ctl("run", "-", "--irqchip", "--timeout", "20", stdin=source.encode()).exit_code == 7


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_quietly_and_its_vm_goes(ctl: Ctl, number: signal.Signals, code: int) -> None:
    with ctl.process("run", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(WRITES_FOR_GOOD.encode())
        process.stdin.close()
        assert process.stdout.read(1) == b"\n"
        process.send_signal(number)
        process.stdout.read()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == code
    assert no_guest_is_left(ctl)


def test_a_reader_that_goes_away_ends_it_quietly_and_its_vm_goes(ctl: Ctl) -> None:
    with ctl.process("run", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(WRITES_FOR_GOOD.encode())
        process.stdin.close()
        assert process.stdout.read(1) == b"\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 141
    assert no_guest_is_left(ctl)
