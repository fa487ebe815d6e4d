"""What is drawn: the same for the same seed, inside what both KVMs have, and everything of interest."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.conformance.askable import UNREACHED_GPA, Askable
from tests.conformance.generate import THEMES, sequence, sequences
from tests.conformance.host import VMMD, Host
from tests.conformance.recording import Operation, Sequence
from tests.conformance.replay import CODE_GPA, CODE_SLOT, U64
from vmmd.memory.limits import MAX_SLOT_PAGES, PAGE_SIZE

SMALL_HOST = Host(
    slots=509,
    spaces=2,
    slot_bits=46,
    guest_bits=39,
    userspace_end=(1 << 56) - PAGE_SIZE,
    affordable_pages=1 << 20,
    log_modes=1,
    readonly=False,
)


@pytest.fixture
def askable() -> Askable:
    return Askable(VMMD)


def operations(askable: Askable, name: str, count: int = 300) -> list[Operation]:
    return [op for each in sequences(askable, "a seed", count) for op in each["ops"] if op["op"] == name]


def one(operation: Operation, **memory: Any) -> Sequence:
    return {"host": {"b0": 1 << 20}, "holes": {"hole": 1 << 44}, "ops": [operation]} | memory


def region(**fields: Any) -> Operation:
    where = {"at": "b0", "offset": 0}
    plain = {"slot": 1, "flags": 0, "guest_phys_addr": 0, "memory_size": PAGE_SIZE, "userspace_addr": where}
    return {"op": "set_user_memory_region"} | plain | fields


def test_a_seed_draws_the_same_sequences_again(askable: Askable) -> None:
    assert list(sequences(askable, "a seed", 30)) == list(sequences(askable, "a seed", 30))
    assert sequence(askable, "a seed", 7) == list(sequences(askable, "a seed", 8))[7]


def test_another_seed_draws_others(askable: Askable) -> None:
    assert sequence(askable, "a seed", 0)["ops"] != sequence(askable, "another", 0)["ops"]


@pytest.mark.parametrize("host", [VMMD, SMALL_HOST], ids=["a host like vmmd", "a small host"])
def test_whatever_is_drawn_may_be_asked(host: Host) -> None:
    askable = Askable(host)
    assert all(askable.allows(drawn) for drawn in sequences(askable, "a seed", 200))


def test_every_kind_of_operation_and_every_theme_is_drawn(askable: Askable) -> None:
    drawn = list(sequences(askable, "a seed", 100))
    assert {each["theme"] for each in drawn} == set(THEMES)
    assert set(Counter(op["op"] for each in drawn for op in each["ops"])) == {
        "set_user_memory_region",
        "enable_cap",
        "get_dirty_log",
        "clear_dirty_log",
        "guest_read",
        "guest_write",
        "host_read",
        "host_write",
        "host_unmap",
    }


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("slot", {0, 32763, 32764, 65535, 1 << 16}),
        ("memory_size", {0, 1, MAX_SLOT_PAGES * PAGE_SIZE, (MAX_SLOT_PAGES + 1) * PAGE_SIZE, U64 - PAGE_SIZE + 1}),
        ("guest_phys_addr", {(1 << 52) - PAGE_SIZE, 1 << 52, U64 - PAGE_SIZE + 1}),
        ("userspace_addr", {0, VMMD.userspace_end - PAGE_SIZE, VMMD.userspace_end, U64 - PAGE_SIZE + 1}),
        ("flags", {0, 1, 2, 3, 4, 1 << 31}),
    ],
)
def test_the_edges_of_a_region_are_drawn(askable: Askable, field: str, values: set[int]) -> None:
    drawn = [op[field] for op in operations(askable, "set_user_memory_region", 1000)]
    assert values <= {value for value in drawn if isinstance(value, int)}


def test_odd_ends_of_clearing_are_drawn(askable: Askable) -> None:
    drawn = operations(askable, "clear_dirty_log")
    assert any(op["num_pages"] % 64 and op["first_page"] for op in drawn)
    assert any(op["num_pages"] == 0 for op in drawn)
    assert any(op["first_page"] % 64 for op in drawn)


def test_a_host_without_a_mode_or_a_flag_is_not_asked_for_it() -> None:
    askable = Askable(SMALL_HOST)
    assert not any(op["flags"] & 2 for op in operations(askable, "set_user_memory_region"))
    assert 3 not in {op["arg"] for op in operations(askable, "enable_cap")}


def test_ids_that_only_one_side_has_are_not_asked() -> None:
    askable = Askable(SMALL_HOST)
    legal = {slot: askable.allows(one(region(slot=slot))) for slot in (0, 508, 509, 32763, 32764, 1 << 16, 2 << 16)}
    assert [slot for slot, is_legal in legal.items() if is_legal] == [0, 508, 32764, 2 << 16]


def test_a_slot_where_the_guest_reaches_points_into_the_sequences_memory(askable: Askable) -> None:
    assert not askable.allows(one(region(userspace_addr=PAGE_SIZE)))
    assert not askable.allows(one(region(memory_size=1 << 21)))
    assert askable.allows(one(region(userspace_addr=PAGE_SIZE, guest_phys_addr=UNREACHED_GPA)))


def test_the_guests_own_code_is_left_alone(askable: Askable) -> None:
    assert not askable.allows(one(region(slot=CODE_SLOT)))
    assert not askable.allows(one({"op": "guest_write", "gpa": CODE_GPA, "size": 8, "value": 0}))
    # Where vmmd has no slot, the kernel may have one of its own.
    assert not askable.allows(one(region(guest_phys_addr=CODE_GPA + (1 << 20))))
    assert askable.allows(one(region(guest_phys_addr=CODE_GPA)))


def test_a_slot_too_large_for_the_host_is_asked_only_where_it_overlaps() -> None:
    askable = Askable(SMALL_HOST)
    largest = {"memory_size": MAX_SLOT_PAGES * PAGE_SIZE, "userspace_addr": {"at": "hole", "offset": 0}}
    assert not askable.allows(one(region(guest_phys_addr=UNREACHED_GPA, **largest)))
    assert askable.allows(one(region(**largest)))


def test_lost_pages_are_not_touched_through_the_host_again(askable: Askable) -> None:
    lost = {"op": "host_unmap", "userspace_addr": {"at": "b0", "offset": PAGE_SIZE}, "length": PAGE_SIZE}
    read = {"op": "host_read", "userspace_addr": {"at": "b0", "offset": PAGE_SIZE - 1}, "length": 2}
    assert askable.allows(one(read))
    assert not askable.allows({**one(read), "ops": [lost, read]})
