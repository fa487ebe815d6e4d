"""What strace prints, in every form of it: who, when, what, and how it ended."""

from __future__ import annotations

import pytest

from tests.audit.lines import UNFINISHED, findings, line, resumed, run, slot, updates
from vmmd_client import Memslot
from vmmd_client.audit import StraceReader
from vmmd_client.audit.events import Event, GuestMode, RunBegins, RunEnds, SlotCallEnds, Woken

CREATE = "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=4096, userspace_addr=0}"


def events(*lines: str) -> list[Event]:
    return list(StraceReader().read(lines))


def calls(*lines: str) -> list[SlotCallEnds]:
    return [event for event in events(*lines) if isinstance(event, SlotCallEnds)]


def test_a_slot_call_is_read_with_its_fields_and_its_outcome() -> None:
    text = (
        "24705 1795354692.252800 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=KVM_MEM_LOG_DIRTY_PAGES|"
        "KVM_MEM_READONLY, guest_phys_addr=0xfffc0000, memory_size=262144, userspace_addr=0x7f1666800000}) = "
        "-1 EEXIST (File exists)"
    )
    (end,) = calls(text)
    assert end.call.region == Memslot(1, 3, 0xFFFC_0000, 0x4_0000, 0x7F16_6680_0000)
    assert (end.call.thread, end.call.vm_fd, end.call.begin_us) == (24705, 8, 1795354692_252800)
    assert (end.call.errno, end.call.line) == ("EEXIST", 1)


@pytest.mark.parametrize(
    ("beginning", "thread"),
    [
        ("7 1700000000.000001 ", 7),
        ("[pid 7] 1700000000.000001 ", 7),
        ("[pid     7] 1700000000.000001 ", 7),
        ("1700000000.000001 ", 0),
        ("7 1700000000.000001 (+     0.000100) ", 7),
        ("7 1700000000.000001234 ", 7),
    ],
)
def test_every_beginning_of_a_line_tells_thread_and_time(beginning: str, thread: int) -> None:
    (end,) = calls(f"{beginning}{CREATE}) = 0")
    assert (end.call.thread, end.call.begin_us) == (thread, 1_700_000_000_000_001)


def test_times_of_day_go_on_over_midnight() -> None:
    one, other = calls(f"7 23:59:59.999000 {CREATE}) = 0", f"7 00:00:00.001000 {CREATE}) = 0")
    assert other.call.begin_us - one.call.begin_us == 2_000


def test_relative_times_add_up_over_every_line_also_of_other_calls() -> None:
    one, other = calls(
        f"7      0.000000 {CREATE}) = 0",
        "8      0.000300 ioctl(3, KVM_GET_API_VERSION, 0) = 12",
        "8      0.000010 --- SIGUSR1 {si_signo=SIGUSR1} ---",
        f"7      0.000200 {CREATE}) = 0",
    )
    assert other.call.begin_us - one.call.begin_us == 510


def test_descriptions_of_file_descriptors_and_times_spent_are_understood() -> None:
    text = f"7 12:14:38.374833 {CREATE}) = 0 <0.000158>".replace("ioctl(8,", "ioctl(8<anon_inode:kvm-vm>,")
    (end,) = calls(text)
    assert (end.call.vm_fd, end.call.answered_us - end.call.begin_us) == (8, 158)


def test_an_unfinished_call_gets_the_outcome_of_its_own_threads_resumption() -> None:
    seen = events(
        run(1.0, tail=UNFINISHED),
        slot(1.1, 0, 0, 4096, tail=UNFINISHED),
        resumed(1.2, ", 0) = -1 EINTR (Interrupted system call)"),
        resumed(1.3, ") = -1 EINVAL (Invalid argument)", thread=10),
    )
    (ran,) = [event.run for event in seen if isinstance(event, RunEnds)]
    (call,) = [event.call for event in seen if isinstance(event, SlotCallEnds)]
    assert (ran.thread, ran.errno, (ran.end_us or 0) - ran.begin_us) == (11, "EINTR", 200_000)
    assert (call.errno, call.answered_us - call.begin_us) == ("EINVAL", 200_000)


def test_the_first_threads_call_is_resumed_under_the_number_that_it_gets_with_the_second_thread() -> None:
    (end,) = calls(f"1700000000.000001 {CREATE}{UNFINISHED}", "[pid 7] 1700000000.000050 <... ioctl resumed>) = 0")
    assert end.call.answered_us - end.call.begin_us == 49


def test_a_vcpu_that_never_came_back_stays_inside() -> None:
    create = slot(0.0, 0, 0, 8192)
    (_, update) = updates([create, run(1.0, tail=UNFINISHED), slot(2.0, 0, 0, 0), slot(2.001, 0, 0, 4096)])
    assert update.vcpus_inside == (11,)


@pytest.mark.parametrize(
    "text",
    [
        slot(1, 0, 0, 4096, tail=""),
        slot(1, 0, 0, 4096, tail=UNFINISHED),
        slot(1, 0, 0, 4096, tail=") = ?"),
        slot(1, 0, 0, 4096)[:90],
        slot(1, 0, 0, 4096, flags="KVM_MEM_NOVEL"),
        slot(1, 0, 0, 1 << 64),
        "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0}) = 0",
        run(1.0, tail=", 0"),
    ],
)
def test_a_line_that_cannot_be_read_is_counted_and_nothing_is_made_up(text: str) -> None:
    found, reader = findings([text])
    assert reader.unread_lines == 1
    assert all(update.deletes == update.creates == 0 for vm in found.vms for update in vm.updates)


@pytest.mark.parametrize(
    "text",
    [
        line(1, "ioctl(8, KVM_SET_USER_MEMORY_REGION2, 0x7ffd283ba670) = 0", thread=10),
        slot(1, 0, 0, 4096)[:90],
    ],
)
def test_a_slot_call_without_contents_makes_its_vms_map_unknown_from_there_on(text: str) -> None:
    found, _ = findings([slot(0.5, 1, 0x10000, 4096), text, slot(2.0, 2, 0x20000, 4096)])
    (vm,) = found.vms
    assert vm.vm.unknown_since_us == 1_700_000_001_000_000
    assert [update.map_known for update in vm.updates] == [True, True, False]


def test_a_slot_call_without_contents_that_failed_changed_nothing() -> None:
    found, _ = findings([line(1, "ioctl(8, KVM_SET_USER_MEMORY_REGION2, 0x7ffd) = -1 EINVAL (Invalid argument)")])
    assert found.vms[0].vm.unknown_since_us is None


def test_contents_of_the_second_slot_call_are_read_where_a_recorder_shows_them() -> None:
    text = (
        slot(1, 0, 0x1000, 4096)
        .replace("REGION,", "REGION2,")
        .replace("0x7f0000000000}", "0x7f0000000000, guest_memfd=5}")
    )
    assert calls(text)[0].call.region == Memslot(0, 0, 0x1000, 4096, 0x7F00_0000_0000)


def test_flags_that_strace_has_no_name_for_are_kept_as_bits() -> None:
    (end,) = calls(slot(1, 0, 0, 4096, flags="KVM_MEM_READONLY|0x8 /* KVM_MEM_??? */"))
    assert end.call.region is not None
    assert end.call.region.flags == 10


def test_calls_about_dirty_logs_are_counted_and_leave_the_map_known() -> None:
    found, _ = findings([slot(0.5, 0, 0, 4096), line(1, "ioctl(8, KVM_GET_DIRTY_LOG, 0x7ffd) = 0", thread=10)])
    assert (found.vms[0].vm.log_calls, found.vms[0].vm.unknown_since_us) == (1, None)


def test_tracepoints_behind_straces_beginning_are_read() -> None:
    seen = events(line(1, "kvm_entry"), line(2, "kvm_exit"), line(3, "kvm_vcpu_wakeup: wait time 91252 ns"))
    assert seen == [
        GuestMode(11, 1_700_000_001_000_000, True),
        GuestMode(11, 1_700_000_002_000_000, False),
        Woken(11, 1_700_000_003_000_000, 91),
    ]


def test_requests_are_read_by_their_numbers_too() -> None:
    remake = [slot(0.0, 0, 0, 4096), run(0.5, tail=UNFINISHED), slot(1.0, 0, 0, 0), slot(1.001, 0, 0, 4096)]
    for forms in (
        ("0x4020ae46", "0xae80"),
        ("_IOC(_IOC_WRITE, 0xae, 0x46, 0x20)", "_IOC(_IOC_NONE, 0xae, 0x80, 0)"),
        ("0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */", "0xae80 /* KVM_RUN */"),
    ):
        numbers = [text.replace("KVM_SET_USER_MEMORY_REGION", forms[0]).replace("KVM_RUN", forms[1]) for text in remake]
        found, reader = findings([text.replace("ioctl(8,", "ioctl(0x8,") for text in numbers])
        assert (found.vms[0].updates[-1].exposed, reader.unread_lines) == (True, 0)


@pytest.mark.parametrize(("printed", "unread"), [("0x", 1), ("0x4020ae", 1), ("0x, 0) = 0", 0), ("0xN, 0) = 0", 0)])
def test_a_requests_number_that_is_broken_is_no_known_request(printed: str, unread: int) -> None:
    found, reader = findings([line(1, f"ioctl(8, {printed}")])
    assert (found.vms, reader.ioctls, reader.unread_lines) == ([], 1, unread)


@pytest.mark.parametrize("length", [9, 14, 20, 25, 27, 28, 30, 34, 36, 40, 60, 100])
def test_wherever_a_slot_call_is_cut_off_the_line_is_counted(length: int) -> None:
    whole = slot(1.0, 0, 0, 0)
    _, reader = findings([slot(0.0, 0, 0, 4096), whole[:length]])
    assert reader.unread_lines == 1, whole[:length]


def test_lines_that_ran_into_one_another_and_ends_without_a_begin_are_counted() -> None:
    _, glued = findings([run(0.5, tail=UNFINISHED) + slot(1.0, 0, 0, 0)])
    assert glued.unread_lines == 1
    _, orphan = findings([resumed(1.0)])
    assert orphan.unread_lines == 1
    _, other = findings([line(1, "ioctl(3, KVM_GET_MSRS <unfinished ...>"), resumed(1.1)])
    assert other.unread_lines == 0


def test_the_number_of_a_vcpu_is_read_beside_its_file_descriptor() -> None:
    found, _ = findings([slot(0, 0, 0, 4096), run(1).replace("ioctl(9,", "ioctl(9<anon_inode:kvm-vcpu:3>,")])
    assert found.vms[0].vcpu_ids == {11: 3}


def test_a_thread_that_makes_another_call_has_left_kvm_run() -> None:
    seen = events(run(1.0, tail=UNFINISHED), line(2, "ioctl(3, KVM_GET_API_VERSION, 0) = 12"))
    assert [type(event) for event in seen] == [RunBegins, RunEnds]
