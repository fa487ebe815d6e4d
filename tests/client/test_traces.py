import gzip
from pathlib import Path

import pytest

from vmmd_client import Memslot
from vmmd_client.traces import (
    Hole,
    Run,
    SlotCall,
    TraceError,
    parse_trace,
    read_trace,
    shipped_trace,
    updates,
)

DATA = Path(__file__).parent / "data"


def slot_line(seconds: float, slot: int, gpa: int, size: int, *, thread: int = 10, tail: str = ") = 0") -> str:
    return (
        f"{thread} {seconds:.6f} ioctl(8, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags=0, "
        f"guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr=0x7f0000000000}}{tail}"
    )


def test_the_shipped_trace_has_eleven_updates_five_of_which_overlap():
    found = updates(shipped_trace())
    assert (len(found), sum(update.needs_hold for update in found)) == (11, 5)


@pytest.mark.parametrize(
    ("name", "count", "overlapping"),
    [("qemu-7.2-pc-migrate", 11, 3), ("qemu-7.2-pam-dies", 9, 7), ("qemu-10.0-pam-lives", 407, 406)],
)
def test_recordings_have_their_known_numbers_of_updates(name: str, count: int, overlapping: int):
    trace = read_trace(DATA / f"{name}.strace.gz")
    found = updates(trace)
    assert (len(found), sum(update.needs_hold for update in found)) == (count, overlapping)
    assert trace.unread_lines == 0
    assert sum(len(update.calls) for update in found) == len(trace.slot_calls)


def test_what_seabios_does_to_its_low_memory_leaves_these_holes():
    second = updates(shipped_trace())[1]
    assert second.holes() == [
        Hole(0, 0xA0000, 0, 1),
        Hole(0, 0xA0000, 5, 6),
        Hole(0xC0000, 0x20000, 0, 2),
        Hole(0xE0000, 0x20000, 0, 3),
        Hole(0x100000, 0xFF00000, 0, 4),
    ]


def test_a_slot_call_is_read_with_its_fields_and_its_outcome():
    line = (
        "24705 1795354692.252800 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=KVM_MEM_LOG_DIRTY_PAGES|"
        "KVM_MEM_READONLY, guest_phys_addr=0xfffc0000, memory_size=262144, userspace_addr=0x7f1666800000}) = "
        "-1 EEXIST (File exists)"
    )
    region = Memslot(1, 3, 0xFFFC_0000, 0x4_0000, 0x7F16_6680_0000)
    assert parse_trace([line]).slot_calls == (SlotCall(24705, 8, 1795354692_252800, region, "EEXIST"),)


def test_an_unfinished_call_gets_the_outcome_of_its_own_threads_resumption():
    trace = parse_trace(
        [
            "11 1.000000 ioctl(9, KVM_RUN <unfinished ...>",
            slot_line(1.1, 0, 0, 4096, tail=" <unfinished ...>"),
            "11 1.200000 <... ioctl resumed>, 0) = -1 EINTR (Interrupted system call)",
            "10 1.300000 <... ioctl resumed>) = -1 EINVAL (Invalid argument)",
        ]
    )
    assert trace.runs == (Run(11, 9, 1_000_000, 1_200_000, "EINTR"),)
    assert [call.errno for call in trace.slot_calls] == ["EINVAL"]
    assert trace.unread_lines == 0


def test_a_vcpu_that_never_came_back_is_a_run_without_an_end():
    trace = parse_trace(["11 1.000000 ioctl(9, KVM_RUN <unfinished ...>", "12 2.000000 +++ exited with 0 +++"])
    assert trace.runs == (Run(11, 9, 1_000_000, None, None),)


@pytest.mark.parametrize(
    "line",
    [
        slot_line(1, 0, 0, 4096, tail=""),
        slot_line(1, 0, 0, 4096, tail=" <unfinished ...>"),
        slot_line(1, 0, 0, 4096)[:90],
        slot_line(1, 0, 0, 4096).replace("flags=0", "flags=KVM_MEM_NOVEL"),
        "10 1.000000 ioctl(8, KVM_SET_USER_MEMORY_REGION, 0x7ffd283ba670) = 0",
        "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0}) = 0",
        "10 1.000000 ioctl(9, KVM_RUN, 0",
    ],
)
def test_a_line_that_cannot_be_read_is_counted_and_nothing_is_made_up(line: str):
    trace = parse_trace([line])
    assert (trace.slot_calls, trace.runs, trace.unread_lines) == ((), (), 1)


def test_flags_that_strace_has_no_name_for_are_kept_as_bits():
    line = slot_line(1, 0, 0, 4096).replace("flags=0", "flags=KVM_MEM_READONLY|0x8 /* KVM_MEM_??? */")
    assert parse_trace([line]).slot_calls[0].region.flags == 10


def test_a_run_of_the_same_thread_ends_an_update_and_one_of_another_does_not():
    delete, create = slot_line(1.0, 0, 0, 0), slot_line(1.002, 0, 0, 4096)
    assert len(updates(parse_trace([delete, "11 1.001000 ioctl(9, KVM_RUN, 0) = 0", create]))) == 1
    assert len(updates(parse_trace([delete, "10 1.001000 ioctl(9, KVM_RUN, 0) = 0", create]))) == 2


def test_a_gap_of_five_milliseconds_is_within_an_update_and_more_is_not():
    assert len(updates(parse_trace([slot_line(1.0, 0, 0, 4096), slot_line(1.005, 1, 4096, 4096)]))) == 1
    assert len(updates(parse_trace([slot_line(1.0, 0, 0, 4096), slot_line(1.005001, 1, 4096, 4096)]))) == 2


def test_an_update_stays_open_while_what_it_took_away_was_never_given_back():
    create, delete = slot_line(1.0, 0, 0, 8192), slot_line(2.0, 0, 0, 0)
    assert len(updates(parse_trace([create, delete, slot_line(2.1, 0, 0, 4096)]))) == 2
    assert len(updates(parse_trace([create, delete, slot_line(2.100001, 0, 0, 4096)]))) == 3
    given_back = [create, delete, slot_line(2.001, 0, 0, 8192), slot_line(2.002, 0, 0, 0), slot_line(2.02, 0, 0, 4096)]
    assert len(updates(parse_trace(given_back))) == 3


def test_a_refused_call_changes_no_map():
    (update,) = updates(parse_trace([slot_line(1.0, 0, 0, 4096, tail=") = -1 EINVAL (Invalid argument)")]))
    assert update.after == {}
    assert not update.needs_hold


def test_a_change_of_flags_alone_needs_no_hold_and_a_move_onto_itself_does():
    create = slot_line(1.0, 0, 0, 8192)
    logged = slot_line(2.0, 0, 0, 8192).replace("flags=0", "flags=KVM_MEM_LOG_DIRTY_PAGES")
    moved = slot_line(3.0, 0, 4096, 8192)
    found = updates(parse_trace([create, logged, moved]))
    assert [update.needs_hold for update in found] == [False, False, True]


def test_a_plain_file_reads_like_a_gzipped_one(tmp_path: Path):
    packed = DATA / "qemu-7.2-pam-dies.strace.gz"
    plain = tmp_path / "trace"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    assert read_trace(plain) == read_trace(packed)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x1f\x8bnot gzip", b"\x1f\x8b\x08\x00"])
def test_a_file_that_is_no_recording_is_an_error_that_names_it(tmp_path: Path, content: bytes):
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="thing"):
        read_trace(path)


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(TraceError, match="none"):
        read_trace(tmp_path / "none")
