"""What keeps a window open: calls under way, holes that reach into the next update, times that -T tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.audit.lines import RECORDINGS, UNFINISHED, findings, line, resumed, run, slot, updates
from vmmd_client.audit import Hole, audit_file

MADE = [slot(0.0, 0, 0, 0x8000), slot(0.001, 1, 0x8000, 0x8000)]


def test_a_create_that_takes_a_quarter_of_a_second_belongs_to_its_update() -> None:
    create = [slot(1.001, 0, 0, 0x8000, tail=UNFINISHED), run(1.2, tail=UNFINISHED)]
    done = [resumed(1.25, ") = 0", thread=10), resumed(1.3)]
    update = updates([*MADE, slot(1.0, 0, 0, 0), *create, *done])[-1]
    assert (update.calls, update.vcpus_inside, update.exposed) == (2, (11,), True)
    assert update.holes == (Hole(0, 0x8000, 0, 1, 250_000),)
    assert update.met_us == 50_000


def test_a_delete_that_takes_a_quarter_of_a_second_opens_its_window_when_it_begins() -> None:
    delete = [slot(1.001, 0, 0, 0, tail=UNFINISHED), run(1.2, tail=UNFINISHED), resumed(1.25, ") = 0", thread=10)]
    found = updates([*MADE, slot(1.0, 5, 0x90000, 4096), *delete, slot(1.251, 0, 0, 0x8000), resumed(1.3)])
    assert [update.calls for update in found] == [2, 3]
    assert (found[-1].vcpus_inside, found[-1].exposed) == ((11,), True)


def test_a_slot_call_whose_vm_is_closed_meanwhile_is_an_update_all_the_same() -> None:
    lines = [slot(1.0, 0, 0, 4096, tail=UNFINISHED), line(1.1, "close(8) = 0"), resumed(1.2, ") = 0", thread=10)]
    found, reader = findings(lines)
    assert [len(vm.updates) for vm in found.vms] == [1]
    assert reader.unread_lines == 0


TWICE = [slot(1.0, 0, 0, 0), slot(1.0001, 0, 0, 0x8000), slot(1.0002, 0, 0, 0)]


def test_a_hole_that_the_next_update_ends_is_the_first_ones_and_exposes_it() -> None:
    two = [*TWICE, run(1.003, tail=UNFINISHED), slot(1.0085, 0, 0, 0x8000), resumed(1.02)]
    found = updates([*MADE, *two])[-2:]
    assert [update.calls for update in found] == [3, 1]
    assert found[0].holes == (Hole(0, 0x8000, 0, 1, 100), Hole(0, 0x8000, 2, 3, 8_300))
    assert (found[0].vcpus_inside, found[0].exposed, found[1].exposed) == ((11,), True, False)


def test_a_hole_of_which_a_part_was_new_is_carried_for_the_part_that_was_not() -> None:
    larger = [slot(1.0001 + n / 1e4, 0, 0, n % 2 * 0xC000) for n in range(5)]
    late = [run(1.003, tail=UNFINISHED), slot(1.0085, 0, 0, 0xC000), resumed(1.02)]
    found = updates([MADE[0], *larger, *late])[-2:]
    assert found[0].holes[-1] == Hole(0, 0x8000, 4, 5, 8_000)
    assert found[0].vcpus_inside == (11,)


def test_a_vcpu_that_comes_after_a_carried_hole_was_not_inside() -> None:
    found = updates([*MADE, *TWICE, slot(1.0085, 0, 0, 0x8000), run(1.01, tail=UNFINISHED), resumed(1.02)])
    assert [update.vcpus_inside for update in found] == [(), (), ()]


@pytest.mark.parametrize(
    "between",
    [[slot(1.2, 7, 0xA0000, 4096)], [run(1.004, thread=10)]],
    ids=["too late", "a KVM_RUN of the thread"],
)
def test_what_comes_back_otherwise_is_no_carried_hole(between: list[str]) -> None:
    seconds = 1.201 if "1700000001.2" in between[0] else 1.0085
    found = updates([*MADE, *TWICE, *between, slot(seconds, 0, 0, 0x8000)])
    assert found[1].holes == ()


def test_a_carried_hole_may_be_filled_in_parts() -> None:
    parts = [slot(1.0085, 0, 0, 0x4000), slot(1.0087, 2, 0x4000, 0x4000)]
    first = updates([*MADE, *TWICE, *parts])[1]
    assert [(hole.guest_phys_addr, hole.size, hole.open_us) for hole in first.holes if hole.opened_by == 2] == [
        (0, 0x4000, 8_300),
        (0x4000, 0x4000, 8_500),
    ]


def test_the_hole_of_eight_milliseconds_in_a_booting_qemu_is_shown() -> None:
    (found,) = audit_file(str(RECORDINGS / "qemu-7.2-pc-migrate.strace.gz")).findings.vms
    assert found.longest_hole_us == 8_238
    (update,) = [update for update in found.updates if any(hole.open_us == 8_238 for hole in update.holes)]
    assert [hole for hole in update.holes if hole.open_us == 8_238] == [Hole(0, 0xA0000, 5, 6, 8_238)]
    assert not update.exposed


def test_a_run_on_one_line_lasts_as_long_as_its_time_says() -> None:
    remake = [slot(1.0, 0, 0, 0, tail=") = 0 <0.000050>"), slot(1.001, 0, 0, 0x8000, tail=") = 0 <0.000050>")]
    over = updates([*MADE, run(0.9, tail=", 0) = 0 <0.500000>"), *remake])[-1]
    assert (over.vcpus_inside, over.met_us) == ((11,), 1_050)
    before = updates([*MADE, run(0.9, tail=", 0) = 0 <0.050000>"), *remake])[-1]
    assert before.vcpus_inside == ()


def test_merged_files_without_times_are_doubtful_and_it_is_said(tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merged.write_text("\n".join([*MADE, run(0.9), slot(1.0, 0, 0, 0), slot(1.001, 0, 0, 0x8000)]))
    audited = audit_file(str(merged))
    assert (audited.has_untimed_runs, audited.is_doubtful) == (True, True)
    merged.write_text("\n".join([*MADE, run(0.9, tail=", 0) = 0 <0.050000>")]))
    assert not audit_file(str(merged)).is_doubtful


def test_a_vcpu_that_never_came_back_stays_inside_until_the_recording_ends() -> None:
    found, reader = findings([*MADE, run(0.5, tail=UNFINISHED), slot(1.0, 0, 0, 0), slot(1.001, 0, 0, 0x8000)])
    assert found.vms[0].lanes[11].stays == [(1_700_000_000_500_000, 1_700_000_001_001_000)]
    assert found.vms[0].updates[-1].stays == ((11, 1_700_000_000_500_000, 1_700_000_001_001_000),)
    assert reader.unread_lines == 0


@pytest.mark.parametrize(
    "end",
    [
        [run(0.5, tail=" <detached ...>")],
        [run(0.5, tail=UNFINISHED), resumed(2.0, " <detached ...>")],
        [run(0.5, tail=UNFINISHED), resumed(2.0, ") = ?")],
    ],
)
def test_a_run_that_ends_with_its_tracer_or_its_thread_has_a_normal_end(end: list[str]) -> None:
    _, reader = findings([*MADE, *end])
    assert reader.unread_lines == 0


def test_a_vcpu_that_comes_when_no_range_is_missing_any_more_met_no_hole() -> None:
    late = [slot(1.0, 0, 0, 0), slot(1.003, 0, 0, 0x8000), run(1.004, tail=UNFINISHED), slot(1.005, 5, 0x90000, 4096)]
    update = updates([*MADE, *late])[-1]
    assert (update.exposed, update.met_us) == (True, 0)
