"""What kernel tracers print: real text of perf trace and perf script, and lines as the formats of the kernel say."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from vmmd_client.audit import TraceError, TracepointReader, audit_file
from vmmd_client.audit.events import Event, GuestMode, RunBegins, RunEnds, SlotCallBegins, SlotCallEnds, Woken
from vmmd_client.audit.text import notes

DATA = Path(__file__).parent / "data"
DIES = ["qemu-7.2-pam-dies.perf-trace.gz", "qemu-7.2-pam-dies.perf-script.gz"]


def events(*lines: str) -> list[Event]:
    return list(TracepointReader().read(lines))


@pytest.mark.parametrize(("name", "slot_calls", "runs"), [(DIES[0], 40, [2, 22]), (DIES[1], 36, [2, 20])])
def test_tracers_show_who_was_inside_and_that_there_were_slot_calls(
    name: str, slot_calls: int, runs: list[int]
) -> None:
    audited = audit_file(str(DATA / name))
    (found,) = audited.findings.vms
    assert (found.vm.unseen_calls, found.exposed, audited.unread_lines) == (slot_calls, 0, 0)
    assert sorted(lane.runs for lane in found.lanes.values()) == runs
    assert found.vm.unknown_since_us is not None
    assert audited.is_doubtful


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            "    43.515 (         ): CPU 1/KVM/30066 kvm:kvm_entry(vcpu_id: 1, rip: 8)",
            GuestMode(30066, 43_515, True),
        ),
        ("    43.515 qemu-system-x8/30066 kvm:kvm_exit(exit_reason: 12)", GuestMode(30066, 43_515, False)),
        (
            " qemu-system-x86 24998 [000] 22435.691115:  kvm:kvm_entry: vcpu 0, rip 0xfff0 intr_info 0x0",
            GuestMode(24998, 22_435_691_115, True),
        ),
        (
            "       CPU 0/KVM-4201  [001] d..1.  1842.570412: kvm_exit: vcpu 0 reason HLT rip 0xffffffff81e0115a",
            GuestMode(4201, 1_842_570_412, False),
        ),
        (
            "    qemu-kvm-1637698 [019] 758186.750321: kvm_entry:            vcpu 0, rip 0x4028b7",
            GuestMode(1637698, 758_186_750_321, True),
        ),
        (
            "    qemu-system-4521  [004] d..1.  1842.570590: kvm_vcpu_wakeup:      poll time 176841 ns, polling valid",
            Woken(4521, 1_842_570_590, 176),
        ),
        (
            "    fc_vcpu 0-2779478 [076] .... 1820822.384342: kvm_vcpu_wakeup: wait time 91252 ns, polling valid",
            Woken(2779478, 1_820_822_384_342, 91),
        ),
        (
            "  3153.561 (         ): qemu-system-x8/9209 kvm:kvm_vcpu_wakeup(ns: 2281356631, waited: 1, valid: 1)",
            Woken(9209, 3_153_561, 2_281_356),
        ),
    ],
)
def test_each_tracers_form_of_a_tracepoint_is_read(line: str, event: Event) -> None:
    assert events(line) == [event]


@pytest.mark.parametrize(("entering", "leaving"), [(" ", " "), (" " * 6, " " * 7)], ids=["perf", "trace-cmd"])
def test_the_system_call_tracepoints_give_runs_and_slot_calls_by_their_numbers(entering: str, leaving: str) -> None:
    seen = events(
        f"  vcpu-77  [001] .....  10.000001: sys_enter_ioctl:{entering}fd: 0x0000000b, cmd: 0x0000ae80, arg: 0x0",
        f"  main-70  [000] .....  10.000002: sys_enter_ioctl:{entering}fd: 0x00000008, cmd: 0x4020ae46, arg: 0x7ffd00",
        f"  main-70  [000] .....  10.000003: sys_exit_ioctl:{leaving}0x0",
        f"  vcpu-77  [001] .....  10.000004: sys_exit_ioctl:{leaving}0xfffffffffffffffc",
    )
    assert isinstance(seen[0], RunBegins)
    (call,) = [event.call for event in seen if isinstance(event, SlotCallEnds)]
    (run,) = [event.run for event in seen if isinstance(event, RunEnds)]
    assert (call.vm_fd, call.region, call.errno) == (8, None, None)
    assert (run.vcpu_fd, run.errno, run.end_us) == (11, "EINTR", 10_000_004)


@pytest.mark.parametrize(
    "printed", ["(0xae, 0x49, 0xa0)", "(WRITE, 0xae, 0x49, 0xa0)", "(_IOC_WRITE, 0xae, 0x49, 0xa0)"]
)
def test_a_slot_call_that_perf_has_no_name_for_is_one(printed: str) -> None:
    (begins, ends) = events(f"    42.614 ( 0.016 ms): vmm/67 ioctl(fd: 12, cmd: {printed}, arg: 0x7f82) = 0")
    assert isinstance(begins, SlotCallBegins)
    assert isinstance(ends, SlotCallEnds)


@pytest.mark.parametrize(
    "line",
    [
        "  main-70  [000] .....  10.000002: sys_enter_ioctl:      fd: 0x0000",
        "  main-70  [000] .....  10.000002: sys_exit_ioctl:",
        "    42.614 ( 0.016 ms): vmm/67 ioctl(fd: 12, cm",
    ],
)
def test_an_ioctl_that_is_cut_off_is_counted(line: str) -> None:
    reader = TracepointReader()
    assert list(reader.read([line])) == []
    assert reader.unread_lines == 1


def test_a_line_of_a_tracepoint_that_cannot_be_read_is_counted() -> None:
    reader = TracepointReader()
    assert list(reader.read(["kvm_entry: vcpu 0", "hello"])) == []
    assert reader.unread_lines == 1


def test_a_wakeup_without_a_time_is_counted() -> None:
    reader = TracepointReader()
    assert list(reader.read(["  3153.561 (         ): qemu/9209 kvm:kvm_vcpu_wakeup(novel: 1)"])) == []
    assert reader.unread_lines == 1


def test_a_tracers_file_without_an_entry_or_exit_says_so(tmp_path: Path) -> None:
    strace, perf = both(tmp_path)
    text = "\n".join(line for line in Path(perf).read_text().splitlines() if "kvm_e" not in line)
    Path(perf).write_text(text)
    audited = audit_file(strace, tracepoints=perf)
    assert any("holds no kvm_entry and no kvm_exit" in note for note in notes(audited))


def both(tmp_path: Path, *tracepoints: str) -> tuple[str, str]:
    """The two recordings that were made of one run, with tracepoints added to the tracer's."""
    path = tmp_path / "perf"
    text = gzip.decompress((DATA / "qemu-7.2-pam-dies-both.perf-trace.gz").read_bytes()).decode()
    path.write_text(text + "".join(f"{line}\n" for line in tracepoints))
    return str(DATA / "qemu-7.2-pam-dies-both.strace.gz"), str(path)


def test_two_recordings_of_one_run_are_brought_to_one_clock_by_their_slot_calls(tmp_path: Path) -> None:
    strace, perf = both(tmp_path)
    matched = audit_file(strace, tracepoints=perf).matched
    assert matched is not None
    assert (matched.calls, matched.spread_us) == (28, 30)


def test_two_recordings_of_different_runs_are_refused_and_both_named() -> None:
    with pytest.raises(TraceError, match=r"pam-r.*perf-trace"):
        audit_file(str(DATA / "qemu-7.2-pam-r.strace.gz"), tracepoints=str(DATA / DIES[0]))


def test_standard_input_cannot_be_matched_with_another_recording() -> None:
    with pytest.raises(TraceError, match="standard input"):
        audit_file("-", tracepoints=str(DATA / DIES[0]))


def test_guest_mode_is_told_by_the_other_recording(tmp_path: Path) -> None:
    lines = [
        "11 1700000000.000000 ioctl(8, KVM_SET_USER_MEMORY_REGION, "
        "{slot=0, flags=0, guest_phys_addr=0, memory_size=4096, userspace_addr=0x7f00}) = 0",
        "12 1700000001.000000 ioctl(9, KVM_RUN <unfinished ...>",
        "13 1700000001.000000 ioctl(10, KVM_RUN <unfinished ...>",
        "11 1700000002.000000 ioctl(8, KVM_SET_USER_MEMORY_REGION, "
        "{slot=0, flags=0, guest_phys_addr=0, memory_size=0, userspace_addr=0x7f00}) = 0",
        "11 1700000002.001000 ioctl(8, KVM_SET_USER_MEMORY_REGION, "
        "{slot=0, flags=0, guest_phys_addr=0, memory_size=4096, userspace_addr=0x7f00}) = 0",
    ]
    tracer = [
        "    0.000 ( 0.010 ms): vmm/11 ioctl(fd: 8, cmd: KVM_SET_USER_MEMORY_REGION, arg: 0x7ffd) = 0",
        " 1000.100 (         ): vmm/12 kvm:kvm_entry(vcpu_id: 0, rip: 65520)",
        " 1000.100 (         ): vmm/13 kvm:kvm_entry(vcpu_id: 1, rip: 65520)",
        " 1500.000 (         ): vmm/13 kvm:kvm_exit(exit_reason: 12)",
        " 2000.000 ( 0.010 ms): vmm/11 ioctl(fd: 8, cmd: KVM_SET_USER_MEMORY_REGION, arg: 0x7ffd) = 0",
        " 2001.000 ( 0.010 ms): vmm/11 ioctl(fd: 8, cmd: KVM_SET_USER_MEMORY_REGION, arg: 0x7ffd) = 0",
    ]
    strace, perf = tmp_path / "strace", tmp_path / "perf"
    strace.write_text("\n".join(lines))
    perf.write_text("\n".join(tracer))
    (found,) = audit_file(str(strace), tracepoints=str(perf)).findings.vms
    assert (found.updates[-1].vcpus_inside, found.updates[-1].in_guest_mode) == ((12, 13), (12,))
