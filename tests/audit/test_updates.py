"""How slot calls become updates, which holes they leave, and who is exposed to them."""

from __future__ import annotations

import pytest

from tests.audit.lines import UNFINISHED, findings, line, resumed, run, slot, updates

MADE = [slot(0.0, 0, 0, 0x8000), slot(0.001, 1, 0x8000, 0x8000)]
AGAIN = line(9.0, "ioctl(9, KVM_RUN <unfinished ...>", thread=11)


def test_a_run_of_the_same_thread_ends_an_update_and_one_of_another_does_not() -> None:
    delete, create = slot(1.0, 0, 0, 0), slot(1.002, 0, 0, 4096)
    assert len(updates([delete, run(1.001), create])) == 1
    assert len(updates([delete, run(1.001, thread=10), create])) == 2


def test_a_gap_of_five_milliseconds_is_within_an_update_and_more_is_not() -> None:
    assert len(updates([slot(1.0, 0, 0, 4096), slot(1.005, 1, 4096, 4096)])) == 1
    assert len(updates([slot(1.0, 0, 0, 4096), slot(1.005001, 1, 4096, 4096)])) == 2


def test_a_gap_counts_from_the_end_of_a_call_where_the_recording_tells_it() -> None:
    slow = [slot(1.0, 0, 0, 4096, tail=UNFINISHED), resumed(1.04, ") = 0", thread=10)]
    assert len(updates([*slow, slot(1.045, 1, 4096, 4096)])) == 1


def test_an_update_stays_open_while_what_it_took_away_was_never_given_back() -> None:
    create, delete = slot(1.0, 0, 0, 8192), slot(2.0, 0, 0, 0)
    assert len(updates([create, delete, slot(2.1, 0, 0, 4096)])) == 2
    assert len(updates([create, delete, slot(2.100001, 0, 0, 4096)])) == 3
    given_back = [create, delete, slot(2.001, 0, 0, 8192), slot(2.002, 0, 0, 0), slot(2.02, 0, 0, 4096)]
    assert len(updates(given_back)) == 3


def test_what_was_made_before_it_was_deleted_has_not_been_given_back() -> None:
    create, delete = slot(1.0, 0, 0, 8192), slot(1.001, 0, 0, 0)
    (update,) = updates([create, delete, run(1.04), slot(1.05, 0, 0, 4096)])
    assert (update.calls, update.needs_hold, update.vcpus_inside) == (3, True, (11,))


def test_two_threads_and_two_vms_have_updates_of_their_own() -> None:
    assert len(updates([slot(1.0, 0, 0, 4096), slot(1.001, 1, 8192, 4096, thread=12)])) == 2
    found, _ = findings([slot(1.0, 0, 0, 4096), slot(1.001, 0, 0, 4096, fd=20)])
    assert [(vm.vm.fd, len(vm.updates)) for vm in found.vms] == [(8, 1), (20, 1)]


def test_a_refused_call_belongs_to_its_update_and_changes_no_map() -> None:
    refused = slot(1.0, 0, 0, 4096, tail=") = -1 EINVAL (Invalid argument)")
    found, _ = findings([refused])
    (update,) = found.vms[0].updates
    assert (update.calls, update.deletes, update.creates, update.needs_hold) == (1, 0, 0, False)
    assert not found.vms[0].vm.slots


def test_a_change_of_flags_alone_needs_no_hold_and_a_move_onto_itself_does() -> None:
    logged = slot(2.0, 0, 0, 8192, flags="KVM_MEM_LOG_DIRTY_PAGES")
    found = updates([slot(1.0, 0, 0, 8192), logged, slot(3.0, 0, 4096, 8192)])
    assert [update.needs_hold for update in found] == [False, False, True]


def test_a_split_leaves_holes_of_different_lengths() -> None:
    split = [slot(1.0, 0, 0, 0), slot(1.001, 0, 0, 0x4000), slot(1.003, 2, 0x4000, 0x4000)]
    update = updates([*MADE, *split])[-1]
    assert [(hole.guest_phys_addr, hole.size, hole.open_us) for hole in update.holes] == [
        (0, 0x4000, 1_000),
        (0x4000, 0x4000, 3_000),
    ]


def test_what_stays_away_and_what_is_new_is_no_hole() -> None:
    update = updates([*MADE, slot(1.0, 0, 0, 0), slot(1.001, 2, 0x10000, 0x8000)])[-1]
    assert (update.holes, update.needs_hold) == ((), False)


def test_neighbours_that_share_both_calls_are_one_hole_and_others_are_not() -> None:
    merge = [slot(1.0, 0, 0, 0), slot(1.001, 1, 0, 0), slot(1.002, 0, 0, 0x10000)]
    update = updates([*MADE, *merge])[-1]
    assert [(hole.guest_phys_addr, hole.size, hole.open_us) for hole in update.holes] == [
        (0, 0x8000, 2_000),
        (0x8000, 0x8000, 1_000),
    ]


def test_memory_that_two_slots_claimed_is_missing_since_the_first_of_them_was_deleted() -> None:
    # No map has such slots; a recording in which a delete was lost does.
    made = [slot(0.0, 0, 0x1000, 0x1000), slot(0.001, 1, 0, 0x3000)]
    found = updates([*made, slot(1.0, 0, 0, 0), slot(1.001, 1, 0, 0), slot(1.002, 2, 0, 0x3000)])
    holes = [(hole.guest_phys_addr, hole.size, hole.opened_by, hole.open_us) for hole in found[-1].holes]
    assert holes == [(0, 0x1000, 1, 1_000), (0x1000, 0x1000, 0, 2_000), (0x2000, 0x1000, 1, 1_000)]


def test_a_range_of_one_address_space_fills_no_hole_of_another() -> None:
    other = 1 << 16
    update = updates([*MADE, slot(1.0, 0, 0, 0), slot(1.001, other, 0, 0x8000)])[-1]
    assert (update.holes, update.needs_hold) == ((), False)
    both = [slot(0.5, other, 0, 0x8000), slot(1.0, other, 0, 0), slot(1.001, other, 0, 0x8000)]
    assert [hole.address_space for hole in updates([*MADE, *both])[-1].holes] == [1]


REMAKE = [slot(1.0, 0, 0, 0), slot(1.002, 0, 0, 0x8000)]


@pytest.mark.parametrize(
    ("lines", "inside"),
    [
        ([run(0.5, tail=UNFINISHED), *REMAKE, resumed(1.5)], (11,)),
        ([run(0.5, tail=UNFINISHED), REMAKE[0], resumed(1.001), REMAKE[1]], (11,)),
        ([REMAKE[0], run(1.001), REMAKE[1]], (11,)),
        ([run(0.5), *REMAKE], ()),
        ([run(0.5, tail=UNFINISHED), resumed(0.9), *REMAKE], ()),
        ([*REMAKE, run(1.5)], ()),
        ([run(0.5, tail=UNFINISHED), *REMAKE, resumed(1.5, ", 0) = -1 EAGAIN (Resource…)")], ()),
        ([run(0.5, tail=UNFINISHED, thread=12), *REMAKE, run(1.5, tail=UNFINISHED)], (12,)),
    ],
    ids=[
        "over it all",
        "left in it",
        "entered in it",
        "before",
        "ended before",
        "after",
        "never started",
        "one of two",
    ],
)
def test_who_was_inside_kvm_run_between_the_first_delete_and_the_last_call(
    lines: list[str], inside: tuple[int, ...]
) -> None:
    update = updates([*MADE, *lines])[-1]
    assert (update.vcpus_inside, update.needs_hold, update.exposed) == (inside, True, bool(inside))


def test_a_vcpu_that_left_while_the_delete_went_on_was_inside() -> None:
    delete = [slot(1.0, 0, 0, 0, tail=UNFINISHED), resumed(1.001), resumed(1.002, ") = 0", thread=10)]
    assert updates([*MADE, run(0.5, tail=UNFINISHED), *delete, slot(1.003, 0, 0, 0x8000)])[-1].vcpus_inside == (11,)


def test_a_vcpu_that_entered_while_the_last_call_went_on_was_inside() -> None:
    create = [slot(1.002, 0, 0, 0x8000, tail=UNFINISHED), run(1.003), resumed(1.004, ") = 0", thread=10)]
    assert updates([*MADE, REMAKE[0], *create])[-1].vcpus_inside == (11,)


def test_calls_before_the_first_delete_let_nobody_in() -> None:
    create = slot(0.999, 5, 0x90000, 0x1000)
    assert updates([*MADE, create, run(0.9995), *REMAKE])[-1].vcpus_inside == ()


def test_nobody_is_exposed_by_an_update_that_deletes_nothing() -> None:
    update = updates([*MADE, run(0.5, tail=UNFINISHED), slot(1.0, 7, 0x90000, 0x1000)])[-1]
    assert (update.vcpus_inside, update.exposed) == ((), False)


def test_tracepoints_tell_guest_mode_from_sleep() -> None:
    two = [run(0.5, tail=UNFINISHED, thread=thread) for thread in (11, 12)]
    entered = [line(0.6, "kvm_entry", thread=11), line(0.6, "kvm_entry", thread=12), line(0.7, "kvm_exit", thread=12)]
    update = updates([*MADE, *two, *entered, *REMAKE])[-1]
    assert (update.vcpus_inside, update.in_guest_mode) == ((11, 12), (11,))


def test_a_vcpu_that_enters_guest_mode_within_the_window_is_told() -> None:
    update = updates([*MADE, run(0.5, tail=UNFINISHED), REMAKE[0], line(1.001, "kvm_entry"), REMAKE[1]])[-1]
    assert update.in_guest_mode == (11,)


def test_a_very_long_update_is_worked_out_in_time_that_grows_with_its_length() -> None:
    made = [slot(1.0 + number / 1e5, number, number << 13, 4096) for number in range(5_000)]
    (update,) = updates(made)
    assert (update.calls, update.creates, update.holes) == (5_000, 5_000, ())
